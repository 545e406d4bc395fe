"""How surprising tokens are to counts of what stood before them, in numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
ORDER = 5


class _Table(NamedTuple):
    """The n-grams of one length, packed into integers and sorted, and what they are worth."""

    grams: Integers
    counts: Integers
    discounts: Floats
    heads: Integers
    totals: Integers
    left: Floats


def kneser_ney(
    train: Sequence[Sequence[int]], test: Sequence[Sequence[int]], vocabulary: int
) -> list[Floats]:
    """Bits of each token of the test documents but the first, by interpolated n-grams.

    Modified Kneser-Ney smoothing (Chen & Goodman 1999) of n-grams of up to five tokens, fewer where
    five don't fit into 63 bits. No context reaches beyond its document.

    Args:
        train: tokens of the documents to count in; each starts with the same one.
        test: of those to measure.
        vocabulary: how many tokens there are.
    """
    bits = int(vocabulary - 1).bit_length()
    order = min(ORDER, 63 // bits)
    seen = np.concatenate([np.asarray(ids, np.int64) for ids in train])
    told = np.concatenate([np.asarray(ids, np.int64) for ids in test])
    lengths = np.array([len(ids) for ids in test])
    ends = lengths.cumsum()
    depth = np.arange(len(told)) - np.repeat(ends - lengths, lengths)
    chance = np.full(len(told), 1 / vocabulary)
    found = {size: np.unique(_grams(seen, size, bits), return_counts=True)
             for size in range(1, order + 1)}  # fmt: skip
    for size in range(1, order + 1):
        keys, counts = found[size]
        if size < order:  # in how many different contexts
            shorter = found[size + 1][0] & ((1 << bits * size) - 1)
            keys, counts = np.unique(shorter, return_counts=True)
        table = _table(keys, counts, bits)
        grams = np.zeros(len(told), np.int64)
        if len(told) >= size:
            grams[size - 1 :] = _grams(told, size, bits)
        place, known = _look(table.grams, grams)
        head, met = _look(table.heads, grams >> bits)
        count = np.where(known, table.counts[place], 0)
        discount = table.discounts[np.minimum(count, 3)]
        mixed = (count - discount) / table.totals[head] + table.left[head] * chance
        chance = np.where(met & (depth >= size - 1), mixed, chance)
    return [part[1:] for part in np.split(-np.log2(chance), ends[:-1])]


def _grams(tokens: Integers, size: int, bits: int) -> Integers:
    """Each run of `size` tokens as one number, the last token in its lowest bits."""
    packed = tokens[size - 1 :].copy()
    for back in range(1, size):
        packed |= tokens[size - 1 - back : len(tokens) - back] << (bits * back)
    return packed


def _table(grams: Integers, counts: Integers, bits: int) -> _Table:
    rare = [max(int((counts == times).sum()), 1) for times in (1, 2, 3, 4)]
    share = rare[0] / (rare[0] + 2 * rare[1])
    raw = [0, *(n - (n + 1) * share * rare[n] / rare[n - 1] for n in (1, 2, 3))]
    # of few counts they may come out so that nothing is left for what was not seen
    discounts = np.clip(raw, [0, 0.1, 0.1, 0.1], [0, 0.9, 1.9, 2.9])
    heads, first = np.unique(grams >> bits, return_index=True)
    totals = np.add.reduceat(counts, first)
    left = np.add.reduceat(discounts[np.minimum(counts, 3)], first) / totals
    return _Table(grams, counts, discounts, heads, totals, left)


def _look(keys: Integers, wanted: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return place, keys[place] == wanted
