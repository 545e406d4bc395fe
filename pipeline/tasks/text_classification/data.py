"""Labelled texts: prepared splits as batches, raw texts as inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.classification.data.labels import labels_of
from pipeline.prepared import SplitName, first_row, read_split
from pipeline.training.batches import Batches, Ragged
from pipeline.training.net import Net

TASK = "text_classification"


def load(folder: Path, split: SplitName, net: Net, *, device: torch.device, **how: Any) -> Batches:
    """Batches of one split: `input_ids` and `attention_mask`, int64 [batch, tokens].

    All texts are tokenised here, once, and cut to the `max_length` of the network's settings.
    Batches hold texts of similar length and are padded to the longest of them. `how` is what
    `Batches` takes besides.

    Raises:
        PipelineError: the split can't be read.
    """
    card, table = read_split(folder, split, TASK)
    tokens, padding = _tokens(table["text"].to_pylist(), net, device), net.tokenizer.pad_token_id
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
    tokens = _tokens(list(raw), net, torch.device("cpu"))
    return _padded(tokens, torch.arange(len(raw)), net.tokenizer.pad_token_id)


def example(folder: Path) -> str:
    """The first text of the validation split."""
    return first_row(folder)["text"]


def _tokens(texts: list[str], net: Net, device: torch.device) -> Ragged:
    """The tokens of each text, int32, cut to the `max_length` of the network's settings."""
    found = net.tokenizer(
        texts,
        truncation=True,
        max_length=net.settings.max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return Ragged.of([np.asarray(ids, np.int32) for ids in found["input_ids"]], device)


def _padded(tokens: Ragged, index: Tensor, padding: int) -> dict[str, Tensor]:
    ids, sizes = tokens.pad(index, padding)
    mask = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
    return {"input_ids": ids.long(), "attention_mask": mask.long()}
