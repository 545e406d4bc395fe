"""The data report: balance, sizes, and rows that occur more than once.

That no example is in two splits is seen to where the splits are written; here is looked for what
is left: repeats within a split, and rows that are nearly the same.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.page import Page

LISTED = 200
"""Near duplicates that a report lists, at most."""
BLOCK = 1024
"""Rows that are compared with the others at a time, which bounds the memory."""


class Duplicate(NamedTuple):
    """Two rows that are the same or nearly so; `similarity` is the cosine of their features."""

    first: tuple[str, int]
    second: tuple[str, int]
    similarity: float


def near_duplicates(splits: Mapping[str, Any], threshold: float) -> list[Duplicate]:
    """Pairs of rows whose feature vectors point the same way, the most alike first.

    `splits` holds features [n, d] with rows of length 1, dense or scipy sparse; see
    `text_features` and `dense_features`.
    """
    from scipy.sparse import issparse, vstack

    names = [(split, row) for split, part in splits.items() for row in range(part.shape[0])]
    parts = list(splits.values())
    rows = vstack(parts).tocsr() if issparse(parts[0]) else np.concatenate(parts)
    found = []
    for start in range(0, rows.shape[0], BLOCK):
        products = rows[start : start + BLOCK] @ rows.T[:, start:]
        if issparse(products):
            table = products.tocoo()
            near = table.data >= threshold
            pairs = zip(table.row[near], table.col[near], table.data[near], strict=True)
        else:
            first, second = np.nonzero(products >= threshold)
            pairs = zip(first, second, products[first, second], strict=True)
        found += [
            Duplicate(names[start + a], names[start + b], min(round(float(value), 4), 1.0))
            for a, b, value in pairs
            if a < b
        ]
    return sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def list_duplicates(
    page: Page, splits: Mapping[str, Any], threshold: float, among: str, what: str = "pairs"
) -> tuple[str, dict[str, float]]:
    """List the near duplicates in a table; how many there are, in words and for tracking."""
    near = near_duplicates(splits, threshold)
    rows = [
        {
            "first": " ".join(map(str, pair.first)),
            "second": " ".join(map(str, pair.second)),
            "similarity": pair.similarity,
        }
        for pair in near[:LISTED]
    ]
    page.table("near_duplicates", rows, ["first", "second", "similarity"])
    across = sum(pair.first[0] != pair.second[0] for pair in near)
    within = len(near) - across
    told = (
        f"{across} {what} across splits and {within} within one, with a similarity of "
        f"{threshold} or more {among}; the closest are listed in near_duplicates.csv"
    )
    numbers = {"near_duplicates/within": float(within), "near_duplicates/across": float(across)}
    return told, numbers


def text_features(splits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Sparse unit vectors over words and word pairs, weighted down where they are common."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    everything = [text for texts in splits.values() for text in texts]
    vectoriser = TfidfVectorizer(
        ngram_range=(1, 2),
        tokenizer=str.split,
        token_pattern=None,
        max_df=0.05,
        dtype=np.float32,
    )
    try:
        table = vectoriser.fit_transform(everything)
    except ValueError:  # So few rows that every word is a common one.
        table = vectoriser.set_params(max_df=1.0).fit_transform(everything)
    edges = pairwise(np.cumsum([0, *map(len, splits.values())]))
    return {split: table[start:end] for split, (start, end) in zip(splits, edges, strict=True)}


def dense_features(examples: NDArray[Any]) -> NDArray[np.float32]:
    """Unit vectors from images or other arrays of one size [n, …], each centred on its mean."""
    flat = np.asarray(examples, dtype=np.float32).reshape(len(examples), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(norms > 0, norms, 1)


def balance(labels: Mapping[str, NDArray[np.int64]], classes: Sequence[str]) -> dict[str, Any]:
    """Rows per split and class: {split: {class: rows}}."""
    return {
        split: dict(zip(classes, np.bincount(part, minlength=len(classes)).tolist(), strict=True))
        for split, part in labels.items()
    }


def summary(values: NDArray[Any]) -> dict[str, float]:
    """Smallest, lower quartile, median, upper quartile, largest: of lengths, sizes or durations."""
    names = ("min", "q1", "median", "q3", "max")
    found = np.quantile(np.asarray(values, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1])
    return {name: round(float(value), 4) for name, value in zip(names, found, strict=True)}
