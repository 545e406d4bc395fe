"""A prepared data set of images in batches."""

import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.data import png
from pipeline.data.augment import affine
from pipeline.data.batches import Batches
from pipeline.data.prepared import SplitName, contents, open_split, rows
from pipeline.errors import PipelineError
from pipeline.settings import Augment

_AT_ONCE = 4096


def load(
    folder: Path,
    split: SplitName,
    *,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
    shuffle: bool = False,
    augment: Augment | None = None,
    shard: tuple[int, int] = (0, 1),
    in_memory_limit: float = math.inf,
) -> Batches:
    """Batches of one split: inputs `images`, uint8 [batch, channels, height, width].

    Pixels of more than `in_memory_limit` bytes stay on the disk, in a file without a name beside
    the data, and a thread gathers each batch while the one before is computed.

    Raises:
        PipelineError: the split can't be read, or an image is corrupt.
    """
    card, file, labels = open_split(folder, split, "image")
    path = folder / f"{split}.parquet"
    shape = (card.channels, card.height, card.width)
    pixels = _decoded(path, file, png.Layout(card.height, card.width, card.channels))
    on_disk = len(labels) * math.prod(shape) > in_memory_limit
    if on_disk:
        images = _on_disk(folder, pixels, (len(labels), *shape))
    else:
        images = torch.empty((len(labels), *shape), dtype=torch.uint8)
        start = 0
        for part in pixels:
            images[start : start + len(part)] = torch.from_numpy(part)
            start += len(part)
        images = images.to(device)

    def collate(index: Tensor) -> dict[str, Tensor]:
        if on_disk:
            batch = images[index]
            batch = batch.pin_memory() if device.type == "cuda" else batch
            return {"images": batch.to(device, non_blocking=True)}
        return {"images": images[index.to(device, non_blocking=True)]}

    return Batches(
        labels=torch.tensor(labels, device=device),
        collate=collate,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        augment=affine(augment) if augment is not None else None,
        shard=shard,
        ahead=on_disk,
    )


def _decoded(path: Path, file: Any, layout: png.Layout) -> Iterator[png.Bytes]:
    """The pixels of an opened split, [n, channels, height, width] at a time."""
    first = 0
    for part in rows(path, file, ["image"]):
        column = pa.chunked_array([part.column("image")])
        yield png.decode(contents(column), layout, str(path), first)
        first += len(part)


def _on_disk(folder: Path, pixels: Iterable[png.Bytes], shape: tuple[int, ...]) -> Tensor:
    """Pixels in a memory-mapped file without a name, which is gone when the process ends."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in pixels:
                file.write(part.data)
            file.flush()
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
    except OSError as error:
        raise PipelineError(
            f"{folder}: {math.prod(shape):,} bytes of pixels can't be put on the disk "
            f"({error.strerror}); make room or raise in_memory_limit"
        ) from error
    if hasattr(mmap, "MADV_RANDOM"):
        content.madvise(mmap.MADV_RANDOM)  # reading ahead would fetch what no batch wants
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)


def pixel_statistics(batches: Batches) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels scaled to 0..1, over a whole split.

    Counted in integers, so the order of summation can't change the result.
    """
    counts: Tensor | int = 0
    for index in torch.arange(batches.examples).split(_AT_ONCE):
        images = batches.collate(index)["images"]
        counts = counts + torch.stack(
            [torch.bincount(one.flatten().int(), minlength=256) for one in images.unbind(1)]
        )
    mean, std = [], []
    for channel in torch.as_tensor(counts).double().cpu():
        share, value = channel / channel.sum(), torch.arange(256).double() / 255
        mean.append(float(share @ value))
        std.append(float((share @ (value - mean[-1]) ** 2).sqrt()))
    return mean, std


def load_training(
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    seed: int,
    augment: Augment | None,
    shard: tuple[int, int] = (0, 1),
    in_memory_limit: float = math.inf,
) -> tuple[Batches, Batches]:
    """Shuffled, augmented training batches, and all of the validation split in larger ones."""
    return (
        load(
            folder,
            "train",
            batch_size=batch_size,
            device=device,
            seed=seed,
            shuffle=True,
            augment=augment,
            shard=shard,
            in_memory_limit=in_memory_limit,
        ),
        load(
            folder,
            "validation",
            batch_size=4 * batch_size,
            device=device,
            in_memory_limit=in_memory_limit,
        ),
    )
