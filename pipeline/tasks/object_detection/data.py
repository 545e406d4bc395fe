"""A prepared data set of images with boxes in batches."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images.given import given
from pipeline.prepared import SplitName, first_row
from pipeline.tasks.object_detection.augment import changes
from pipeline.tasks.object_detection.boxes.read import read
from pipeline.tasks.object_detection.settings import Augment
from pipeline.training.batches import Batches
from pipeline.training.net import Net

GREY = 128
"""What an image that is not square is filled up with."""


def load(
    folder: Path,
    split: SplitName,
    net: Net,
    *,
    device: torch.device,
    shuffle: bool = False,
    augment: Augment | None = None,
    **how: Any,
) -> Batches:
    """Batches of one split: see `inputs`; targets are boxes and labels.

    Boxes are float32 [batch, most, 4] in the network's pixels, labels int64 [batch, most]; where an
    image has fewer boxes than another its labels are -1, and -2 - label of a box that is ignored. A
    batch weighs as many as its boxes, an image without any as one. Shuffled batches are changed by
    `augment`. `how` is what `Batches` takes besides.

    Raises:
        PipelineError: the split can't be read.
    """
    _, rows = read(folder, split)
    tensors = inputs(rows.images, net)
    counts = torch.tensor([len(one.labels) for one in rows.boxes])
    every = [
        (np.concatenate([one.corners, other.corners]), np.append(one.labels, -2 - other.labels))
        for one, other in zip(rows.boxes, rows.ignored, strict=True)
    ]
    most = max(1, *(len(label) for _, label in every))
    boxes, labels = torch.zeros(len(counts), most, 4), torch.full((len(counts), most), -1)
    for row, (corners, label) in enumerate(every):
        height, width = tensors["sizes"][row].tolist()
        scale = scales(height, width, net.settings.size)
        boxes[row, : len(label)] = torch.from_numpy(corners) * torch.tensor(scale * 2)
        labels[row, : len(label)] = torch.from_numpy(label)
    boxes, labels = boxes.to(device), labels.to(device)
    tensors = {name: value.to(device) for name, value in tensors.items()}

    def collate(_: Tensor, place: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        found = {name: value[place] for name, value in tensors.items()}
        return found, (boxes[place], labels[place])

    return Batches(
        len(counts),
        device,
        collate,
        shuffle=shuffle,
        weights=counts.clamp_min(1).float(),
        augment=changes(augment) if augment is not None and shuffle else None,
        **how,
    )


def inputs(images: Sequence[NDArray[np.uint8]], net: Net) -> dict[str, Tensor]:
    """What the network takes of images uint8 [channels, height, width] of any sizes.

    `images`, uint8 [n, channels, size, size], have each fitted into the upper left; `sizes`, int64
    [n, 2], are the heights and widths they had.
    """
    fitted, sizes = zip(
        *((_fitted(image, net.settings.size), image.shape[1:]) for image in images), strict=True
    )
    return {"images": torch.from_numpy(np.stack(fitted)), "sizes": torch.tensor(sizes)}


def encode(raw: Any, net: Net) -> dict[str, Tensor]:
    """Images as `given` takes them, see `inputs`.

    Raises:
        ValueError: an image is of another kind.
    """
    return inputs([given(one, net.facts.channels) for one in raw], net)


def example(folder: Path) -> str:
    """The first image of the validation split, a PNG file as base64 text."""
    return base64.b64encode(first_row(folder)["image"]["bytes"]).decode()


def fitted_sides(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image when its longer side is `size`."""
    longest = max(height, width)
    rows, columns = ((2 * side * size + longest) // (2 * longest) for side in (height, width))
    return max(rows, 1), max(columns, 1)


def scales(height: int, width: int, size: int) -> tuple[float, float]:
    """What x and y of an image are multiplied by to be the network's."""
    rows, columns = fitted_sides(height, width, size)
    return columns / width, rows / height


def _fitted(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    from PIL import Image

    rows, columns = fitted_sides(image.shape[1], image.shape[2], size)
    if (rows, columns) != image.shape[1:]:
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        pixels = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))
        image = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    square = np.full((len(image), size, size), GREY, np.uint8)
    square[:, :rows, :columns] = image
    return square
