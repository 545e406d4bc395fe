"""A prepared data set of sentences in batches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batches, Ragged
from pipeline.data.prepared import SplitName, read_split


def load(
    folder: Path,
    split: SplitName,
    tokenizer: Any,
    *,
    max_length: int,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Batches of one split: `input_ids` and `attention_mask`, int64 [batch, tokens].

    All texts are tokenised here, once. Batches hold texts of similar length and are padded to the
    longest of them.

    Args:
        folder: a prepared data set.
        split: which split of it.
        tokenizer: a fast tokenizer of transformers.
        max_length: tokens a text is cut to, special ones included.
        batch_size: texts per batch and process.
        device: where the tokens are kept.
        seed: decides the order.
        shuffle: whether the order changes with every epoch.
        shard: (rank, processes) for data-parallel training.

    Raises:
        PipelineError: the split can't be read.
    """
    _, table = read_split(folder, split, "text")
    encoded = tokenizer(
        table["text"].to_pylist(),
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    values = np.concatenate([np.asarray(ids, np.int32) for ids in encoded])
    ragged = Ragged(
        torch.from_numpy(values).to(device),
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
    )
    padding = tokenizer.pad_token_id

    def collate(index: Tensor) -> dict[str, Tensor]:
        ids, sizes = ragged.pad(index, padding)
        mask = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
        return {"input_ids": ids.long(), "attention_mask": mask.long()}

    return Batches(
        labels=torch.tensor(table["label"].to_numpy(), device=device),
        collate=collate,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        lengths=torch.from_numpy(lengths),
        shard=shard,
    )


def load_training(
    folder: Path,
    tokenizer: Any,
    *,
    max_length: int,
    batch_size: int,
    device: torch.device,
    seed: int,
    shard: tuple[int, int] = (0, 1),
) -> tuple[Batches, Batches]:
    """Shuffled training batches, and all of the validation split in larger ones."""
    return (
        load(
            folder,
            "train",
            tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            device=device,
            seed=seed,
            shuffle=True,
            shard=shard,
        ),
        load(
            folder,
            "validation",
            tokenizer,
            max_length=max_length,
            batch_size=4 * batch_size,
            device=device,
        ),
    )
