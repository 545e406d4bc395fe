"""Prepared documents in batches, raw texts as inputs: rows of tokens, none from two documents."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.batches import Batches, Ragged
from pipeline.net import Net
from pipeline.prepared import SplitName, first_row, read_split
from pipeline.tasks.language_modeling.model import END

TASK = "language_modeling"


class Targets(NamedTuple):
    """What a batch is measured by.

    Attributes:
        tokens: the next token of each, int64 [rows, tokens]; -1 where it does not count.
        size: bytes of the documents.
    """

    tokens: Tensor
    size: int


class Rows(NamedTuple):
    """Documents cut into rows.

    Attributes:
        tokens: of each row, and one more that only the last token of a row is measured by.
        counts_from: of each row, the first of its tokens whose next one counts.
        first: of each example the first of its rows, [examples + 1].
        sizes: bytes of each example.
    """

    tokens: Ragged
    counts_from: Tensor
    first: Tensor
    sizes: Tensor

    def gather(self, index: Tensor) -> tuple[dict[str, Tensor], Targets]:
        """Examples `index` [n] as inputs and targets."""
        counts = self.first[index + 1] - self.first[index]
        document = torch.repeat_interleave(torch.arange(len(index)), counts)
        start = torch.repeat_interleave(self.first[index] - counts.cumsum(0) + counts, counts)
        rows = start + torch.arange(len(document))
        ids, sizes = self.tokens.pad(rows, END)
        device, place = ids.device, torch.arange(ids.shape[1], device=ids.device)
        after = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], END)], dim=1).long()
        begin = self.counts_from[rows].to(device, non_blocking=True)
        counted = (place >= begin[:, None]) & (place < sizes[:, None] - 1)
        inputs = {
            "input_ids": ids.long(),
            "lengths": sizes,
            "document": document.to(device, non_blocking=True),
        }
        return inputs, Targets(after.masked_fill(~counted, -1), int(self.sizes[index].sum()))


def load(
    folder: Path,
    split: SplitName,
    net: Net,
    *,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    shard: tuple[int, int] = (0, 1),
    tokens: int | None = None,
) -> Batches:
    """Batches of one split, of examples of like length.

    With `shuffle`, for training, an example is a row: a document, or one of the blocks that it is
    cut into, and its end is learnt too. Without, it is a document with all its rows.

    Args:
        folder: a prepared data set.
        split: one of its splits.
        net: whose tokenizer and settings are used.
        batch_size: examples in a batch.
        device: where the batches are made.
        seed: of the order.
        shuffle: whether this is for training.
        shard: which of how many processes this is.
        tokens: with `shuffle`, the first documents are taken that have as many; null takes all.

    Raises:
        PipelineError: the split can't be read.
    """
    _, table = read_split(folder, split, TASK)
    texts = table["text"].to_pylist()
    rows = _blocks(_documents(texts, net), net, tokens) if shuffle else documents(texts, net)
    lengths = rows.tokens.offsets.diff()
    weights = lengths - 1 - rows.counts_from
    if not shuffle:
        weights = torch.stack([weights[a:b].sum() for a, b in _pairs(rows.first)])
        lengths = torch.stack([lengths[a:b].max() for a, b in _pairs(rows.first)])
    where = rows._replace(tokens=Ragged(rows.tokens.values.to(device), rows.tokens.offsets))
    return Batches(
        examples=len(rows.sizes),
        device=device,
        collate=where.gather,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        lengths=lengths,
        weights=weights.double(),
        shard=shard,
    )


def documents(texts: Sequence[str], net: Net) -> Rows:
    """Whole texts: every token of each counts once, in its first row or after half a row of others.

    A row has the tokens that the network sees at once, at most; the next one begins half a row on.
    """
    most, cut = net.settings.context, []
    for ids in _documents(texts, net):
        starts = range(0, max(len(ids) - 1 - most // 2, 1), most // 2)
        cut.append([(ids[at : at + most + 1], most // 2 if at else 0) for at in starts])
    return _rows(cut, [len(text.encode()) for text in texts])


def encode(raw: Sequence[Any], net: Net) -> dict[str, Tensor]:
    """Texts as `input_ids` [rows, tokens], `lengths` [rows] and `document` [rows], int64.

    Raises:
        ValueError: one is no text.
    """
    if wrong := [type(each).__name__ for each in raw if not isinstance(each, str)]:
        raise ValueError(f"a text is a string, not {wrong[0]}")
    return documents(raw, net).gather(torch.arange(len(raw)))[0]


def example(folder: Path) -> str:
    """The first text of the validation split."""
    text: str = first_row(folder)["text"]
    return text


def _documents(texts: Sequence[str], net: Net) -> Iterator[list[int]]:
    """The tokens of each text, `END` before them."""
    for at in range(0, len(texts), 256):
        for one in net.tokenizer.encode_batch(texts[at : at + 256], add_special_tokens=False):
            yield [END, *one.ids]


def _blocks(found: Iterator[list[int]], net: Net, tokens: int | None) -> Rows:
    size, cut, left = net.settings.block, [], tokens
    for ids in found:
        whole = [*ids, END]
        cut += [[(whole[at : at + size + 1], 0)] for at in range(0, len(whole) - 1, size)]
        if left is not None and (left := left - len(ids)) <= 0:
            break
    return _rows(cut, [0] * len(cut))


def _rows(cut: Sequence[list[tuple[list[int], int]]], sizes: Sequence[int]) -> Rows:
    """Rows of each example: its tokens, and the first that counts."""
    every = [row for rows in cut for row in rows]
    ends = np.cumsum([0, *(len(ids) for ids, _ in every)])
    values = np.concatenate([np.asarray(ids, np.int32) for ids, _ in every])
    return Rows(
        Ragged(torch.from_numpy(values), torch.from_numpy(ends)),
        torch.tensor([begin for _, begin in every]),
        torch.from_numpy(np.cumsum([0, *map(len, cut)])),
        torch.tensor(sizes),
    )


def _pairs(edges: Tensor) -> Iterator[tuple[int, int]]:
    values = edges.tolist()
    return zip(values, islice(values, 1, None), strict=False)
