"""A prepared data set of images in batches."""

import base64
import math
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.classification.data.labels import labels_of
from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.images.given import given
from pipeline.prepared import SplitName, contents, first_row, open_split, rows
from pipeline.tasks.image_classification.augment import affine
from pipeline.tasks.image_classification.settings import Augment
from pipeline.training.batches import Batches, moved
from pipeline.training.net import Net

TASK = "image_classification"


def load(
    folder: Path,
    split: SplitName,
    _net: Net | None = None,
    *,
    device: torch.device,
    shuffle: bool = False,
    augment: Augment | None = None,
    in_memory_limit: float = math.inf,
    **how: Any,
) -> Batches:
    """Batches of one split: inputs `images`, uint8 [batch, channels, height, width].

    Shuffled batches are changed by `augment`. Pixels of more than `in_memory_limit` bytes stay on
    the disk, in a file without a name beside the data, and a thread gathers each batch while the
    one before is computed. `how` is what `Batches` takes besides.

    Raises:
        PipelineError: the split can't be read, or an image is corrupt.
    """
    card, file = open_split(folder, split, TASK)
    path, facts = folder / f"{split}.parquet", card.facts
    schema = pa.schema([field for field in file.schema_arrow if field.name == "label"])
    table = pa.Table.from_batches(rows(path, file, ["label"]), schema)
    labels = torch.tensor(labels_of(table, facts.classes, path), device=device)
    shape = (len(labels), facts.channels, facts.height, facts.width)
    pixels = _decoded(path, file, shape[1:])
    on_disk = math.prod(shape) > in_memory_limit
    if on_disk:
        images = _on_disk(folder, pixels, shape)
    else:
        images = torch.empty(shape, dtype=torch.uint8)
        start = 0
        for part in pixels:
            images[start : start + len(part)] = torch.from_numpy(part)
            start += len(part)
        images = images.to(device)

    def collate(index: Tensor, place: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        found = moved(images[index], device) if on_disk else images[place]
        return {"images": found}, labels[place]

    change = affine(augment) if augment is not None and shuffle else None
    return Batches(
        len(labels),
        device,
        collate,
        shuffle=shuffle,
        augment=change and (lambda one, draw: one._replace(inputs=change(one.inputs, draw))),
        ahead=on_disk,
        **how,
    )


def encode(raw: Any, net: Net) -> dict[str, Tensor]:
    """Images as `given` takes them, as `images`, uint8 [n, channels, height, width].

    Raises:
        ValueError: an image is of another kind.
    """
    facts = net.facts
    shape = (facts.channels, facts.height, facts.width)
    if isinstance(raw, np.ndarray) and raw.dtype == np.uint8 and raw.shape[1:] == shape:
        return {"images": torch.from_numpy(raw)}
    size = (facts.height, facts.width)
    return {"images": torch.from_numpy(np.stack([given(one, facts.channels, size) for one in raw]))}


def example(folder: Path) -> str:
    """The first image of the validation split, a PNG file as base64 text."""
    return base64.b64encode(first_row(folder)["image"]["bytes"]).decode()


def _decoded(path: Path, file: Any, shape: tuple[int, int, int]) -> Iterator[png.Bytes]:
    """The pixels of an opened split, [n, channels, height, width] at a time."""
    first = 0
    for part in rows(path, file, ["image"]):
        files = contents(pa.chunked_array([part.column("image")]))
        yield png.decode(files, shape, str(path), first)
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
