"""A prepared data set of sounds in batches."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import Batches, Ragged
from pipeline.data.prepared import SplitName, contents, read_split
from pipeline.data.wav import read_wav
from pipeline.errors import PipelineError


def load(
    folder: Path,
    split: SplitName,
    *,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Batches of one split: `waveforms`, float32 [batch, samples] in [-1, 1), and `lengths`, int64.

    Batches hold clips of similar length and are padded with zeros to the longest of them; `lengths`
    [batch] counts the samples before the padding.

    Raises:
        PipelineError: the split can't be read, or a clip is corrupt.
    """
    card, table = read_split(folder, split, "audio")
    path = folder / f"{split}.parquet"
    clips = []
    for row, content in enumerate(contents(table["audio"]).to_pylist()):
        samples, rate = read_wav(content, f"{path}, row {row}")
        if rate != card.sample_rate:
            raise PipelineError(
                f"{path}, row {row}: has {rate} Hz, the data set says {card.sample_rate}; "
                "run `dvc repro -f prepare@audio`"
            )
        clips.append(samples)
    lengths = np.fromiter(map(len, clips), np.int64, len(clips))
    ragged = Ragged(
        torch.from_numpy(np.concatenate(clips)).to(device),
        torch.from_numpy(np.concatenate([[0], lengths.cumsum()])),
    )

    def collate(index: Tensor) -> dict[str, Tensor]:
        samples, sizes = ragged.pad(index)
        return {"waveforms": samples.float().div_(32768), "lengths": sizes}

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
    *,
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
            batch_size=batch_size,
            device=device,
            seed=seed,
            shuffle=True,
            shard=shard,
        ),
        load(folder, "validation", batch_size=4 * batch_size, device=device),
    )
