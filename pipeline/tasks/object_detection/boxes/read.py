"""A prepared data set of images with boxes; loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from pipeline.errors import PipelineError
from pipeline.images import png
from pipeline.prepared import Card, SplitName, contents, read_split

TASK = "object_detection"
Image = NDArray[np.uint8]
"""[channels, height, width]."""


class Boxes(NamedTuple):
    """Of one image: corners x1 y1 x2 y2 in its pixels, float32 [n, 4]; labels int64 [n]; scores.

    Scores are float32 [n], from the highest to the lowest; true boxes have 1.
    """

    corners: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def where(self, kept: NDArray[np.bool_]) -> "Boxes":
        """Some of them."""
        return Boxes(self.corners[kept], self.labels[kept], self.scores[kept])


class Images(Sequence[Image]):
    """Images of a split as they came, decoded when they are asked for: all would fill the memory.

    To take one raises a PipelineError that names its row, if it is corrupt.
    """

    def __init__(self, files: list[bytes], channels: int, path: Path) -> None:
        self.files, self.channels, self.path = files, channels, path

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, which: int) -> Image: ...
    @overload
    def __getitem__(self, which: slice) -> "list[Image]": ...
    @override
    def __getitem__(self, which: int | slice) -> "Image | list[Image]":
        if isinstance(which, slice):
            return [self[row] for row in range(len(self))[which]]
        row = range(len(self))[which]
        where = f"{self.path}, row {row}"
        return png.pillow(self.files[row], where, self.channels).transpose(2, 0, 1)


class Split(NamedTuple):
    """Images of any sizes, the boxes of each, and those that are neither learnt nor counted."""

    images: Sequence[Image]
    boxes: list[Boxes]
    ignored: Sequence[Boxes] = ()

    def first(self, most: int) -> "Split":
        """At most so many of them."""
        return Split(self.images[:most], self.boxes[:most], self.ignored[:most])


def read(folder: Path, split: SplitName) -> tuple[Card, Split]:
    """One split, as it was written.

    Raises:
        PipelineError: it is missing or damaged, or a box is no box.
    """
    card, table = read_split(folder, split, TASK)
    path = folder / f"{split}.parquet"
    images = Images(contents(table["image"]).to_pylist(), card.facts.channels, path)
    boxes = boxes_of(table, len(card.facts.classes), path)
    true, ignored = ([one.where(one.scores == score) for one in boxes] for score in (1, 0))
    return card, Split(images, true, ignored)


def boxes_of(table: pa.Table, classes: int, path: Path) -> list[Boxes]:
    """The boxes of each row of a split that was read from `path`; those to be ignored score 0.

    Raises:
        PipelineError: a box has no area, or a label is no class.
    """
    found = []
    columns = (table[name].to_pylist() for name in ("boxes", "labels", "ignore"))
    for row, (corners, labels, ignore) in enumerate(zip(*columns, strict=True)):
        box = np.array(corners, np.float32).reshape(-1, 4)
        label = np.array(labels, np.int64)
        if not len(box) == len(label) == len(ignore) or not (box[:, :2] < box[:, 2:]).all():
            raise PipelineError(f"{path}, row {row}: has a box without area or label; mend it")
        if len(label) and not 0 <= label.min() <= label.max() < classes:
            raise PipelineError(f"{path}, row {row}: has labels outside 0–{classes - 1}; mend it")
        found.append(Boxes(box, label, 1 - np.array(ignore, np.float32)))
    return found
