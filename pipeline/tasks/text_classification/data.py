"""Labelled texts: prepared splits as batches, raw texts as inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.classification.data.labels import labels_of
from pipeline.launcher import shard
from pipeline.prepared import SplitName, first_row, read_split
from pipeline.training.batches import Batches, Ragged
from pipeline.training.net import Net

TASK = "text_classification"


class Cut(NamedTuple):
    """What of some texts a network does not read.

    Attributes:
        texts: how many are cut.
        given: how many there are.
        tokens: of those that are cut.
        lost: tokens that are not read.
        longest: tokens of the longest text; 0 where none is cut.
    """

    texts: int
    given: int
    tokens: int
    lost: int
    longest: int

    def tell(self, split: SplitName, most: int) -> None:
        """Print it, if anything is cut; one process does where several train."""
        if self.texts and shard()[0] == 0:
            print(
                f"{self.texts:,} of {self.given:,} {split} texts ({self.texts / self.given:.1%}) "
                f"are longer than transformer.max_length={most} tokens (the longest has "
                f"{self.longest:,}): {self.lost / self.tokens:.1%} of their tokens are not read; "
                "raise it",
                flush=True,
            )


def load(folder: Path, split: SplitName, net: Net, *, device: torch.device, **how: Any) -> Batches:
    """Batches of one split: `input_ids` and `attention_mask`, int64 [batch, tokens].

    All texts are tokenised here, once, and cut to the `max_length` of the network's settings; what
    that leaves out is printed. Batches hold texts of similar length and are padded to the longest
    of them. `how` is what `Batches` takes besides.

    Raises:
        PipelineError: the split can't be read.
    """
    card, table = read_split(folder, split, TASK)
    texts, padding = table["text"].to_pylist(), net.tokenizer.pad_token_id
    tokens = tokenised(texts, net, device)
    cut(texts, tokens, net).tell(split, net.settings.max_length)
    labels = labels_of(table, card.facts.classes, folder / f"{split}.parquet")
    targets = torch.tensor(labels, device=device)

    def collate(index: Tensor, place: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return _padded(tokens, index, padding), targets[place]

    return Batches(len(labels), device, collate, lengths=tokens.offsets.diff(), **how)


def encode(raw: Sequence[Any], net: Net) -> dict[str, Tensor]:
    """Texts as `input_ids` and `attention_mask`, int64 [n, tokens], padded to the longest.

    Raises:
        ValueError: one is no string.
    """
    if wrong := [type(each).__name__ for each in raw if not isinstance(each, str)]:
        raise ValueError(f"a text is a string, not {wrong[0]}")
    tokens = tokenised(list(raw), net, torch.device("cpu"))
    return _padded(tokens, torch.arange(len(raw)), net.tokenizer.pad_token_id)


def example(folder: Path) -> str:
    """The first text of the validation split."""
    return first_row(folder)["text"]


def tokenised(texts: list[str], net: Net, device: torch.device) -> Ragged:
    """The tokens of each text, int32, cut to the `max_length` of the network's settings."""
    found = _ids(texts, net, truncation=True, max_length=net.settings.max_length)
    return Ragged.of([np.asarray(ids, np.int32) for ids in found], device)


def cut(texts: Sequence[str], tokens: Ragged, net: Net) -> Cut:
    """What is missing in the `tokens` of these texts; only those that may be cut are read again."""
    most = net.settings.max_length
    full = np.flatnonzero(tokens.offsets.diff().numpy() >= most)
    whole = _ids([texts[int(row)] for row in full], net, verbose=False) if len(full) else []
    long = [len(ids) for ids in whole if len(ids) > most]
    lost = sum(long) - most * len(long)
    return Cut(len(long), len(texts), sum(long), lost, max(long, default=0))


def _ids(texts: list[str], net: Net, **how: Any) -> list[list[int]]:
    found = net.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **how)
    ids: list[list[int]] = found["input_ids"]
    return ids


def _padded(tokens: Ragged, index: Tensor, padding: int) -> dict[str, Tensor]:
    ids, sizes = tokens.pad(index, padding)
    mask = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
    return {"input_ids": ids.long(), "attention_mask": mask.long()}
