"""Scenes of real digits on crops of real photographs, with the exact box of each digit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sources import package_file

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE = 128
"""Pixels a side."""
SMALLEST, LARGEST = 14, 60
"""Height of a digit in pixels, uniform in its logarithm."""
MOST = 8
"""Digits in a scene, and fragments of digits."""
EMPTY = 0.08
"""Share of scenes without a digit."""
OVERLAP = 0.15
"""Of the smaller of two boxes, that lies in the other, at most."""
INK = 64
"""Pixels of a digit above this are inside its box."""

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


class Scene(NamedTuple):
    """One image uint8 [h, w]; boxes x1 y1 x2 y2 in pixels, float32 [n, 4]; labels int64 [n]."""

    image: Pixels
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def photographs() -> "list[Picture]":
    """scikit-learn's two photographs in grey, 640×427.

    Raises:
        PipelineError: the package or a photograph is missing.
    """
    from PIL import Image

    names = ("china.jpg", "flower.jpg")  # by their paths: to import scikit-learn takes a second
    files = [package_file("sklearn", f"datasets/images/{name}") for name in names]
    return [Image.open(file, formats=("JPEG",)).convert("L") for file in files]


def compose(
    count: int,
    digits: Pixels,
    labels: NDArray[np.int64],
    pictures: "Sequence[Picture]",
    seed: Sequence[int],
) -> list[Scene]:
    """`count` scenes, each a function of the seed and its number, whatever `count` is.

    Args:
        count: how many.
        digits: [n, 28, 28], ink is bright.
        labels: of the digits.
        pictures: photographs that the grounds are cut from.
        seed: of all draws.
    """
    from PIL import Image

    whole = [Image.fromarray(digit) for digit in digits]
    tight = [picture.crop(_ink(digit)) for picture, digit in zip(whole, digits, strict=True)]
    return [
        _scene(np.random.default_rng([*seed, number]), whole, tight, labels, pictures)
        for number in range(count)
    ]


def _scene(
    generator: np.random.Generator,
    whole: "Sequence[Picture]",
    tight: "Sequence[Picture]",
    labels: NDArray[np.int64],
    pictures: "Sequence[Picture]",
) -> Scene:
    canvas = _ground(generator, pictures)
    # what a digit is made of and is none (cluttered MNIST; Mnih et al. 2014)
    for _ in range(generator.integers(MOST + 1)):
        digit = whole[int(generator.integers(len(whole)))]
        left, top = generator.integers(4, 16, 2).tolist()
        piece = (left, top, left + 8, top + 8)
        side = int(generator.integers(8, 21))
        left, top = generator.integers(0, SIDE - side, 2).tolist()
        _paste(generator, canvas, _resized(digit, side, side, piece), top, left)
    boxes: list[Box] = []
    found: list[int] = []
    wanted = 0 if generator.random() < EMPTY else int(generator.integers(1, MOST + 1))
    for _ in range(wanted):
        which = int(generator.integers(len(tight)))
        digit = tight[which]
        tall = float(np.exp(generator.uniform(np.log(SMALLEST), np.log(LARGEST))))
        wide = tall * digit.width / digit.height * float(np.exp(generator.uniform(-0.15, 0.15)))
        height, width = round(tall), min(max(4, round(wide)), SIDE - 2)
        for _ in range(12):
            top = int(generator.integers(SIDE - height))
            left = int(generator.integers(SIDE - width))
            box = (left, top, left + width, top + height)
            if all(_overlap(box, other) < OVERLAP for other in boxes):
                _paste(generator, canvas, _resized(digit, height, width), top, left)
                boxes.append(box)
                found.append(int(labels[which]))
                break
    # a scene that was to have digits has one at least: the first finds its place at once
    noise = generator.standard_normal(canvas.shape, np.float32)
    canvas += noise * np.float32(generator.uniform(2, 10))
    return Scene(
        np.clip(canvas, 0, 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(found, np.int64),
    )


def _ground(generator: np.random.Generator, pictures: "Sequence[Picture]") -> NDArray[np.float32]:
    """A piece of a photograph, turned or mirrored, of random brightness and low contrast."""
    picture = pictures[int(generator.integers(len(pictures)))]
    side = int(generator.integers(96, 400))
    top = int(generator.integers(picture.height - side + 1))
    left = int(generator.integers(picture.width - side + 1))
    crop = _resized(picture, SIDE, SIDE, (left, top, left + side, top + side))
    crop = np.rot90(crop, int(generator.integers(4)))
    if generator.random() < 0.5:
        crop = crop[:, ::-1]
    crop = (crop - crop.mean()) / (crop.std() + np.float32(1e-3))
    return crop * np.float32(generator.uniform(8, 40)) + np.float32(generator.uniform(60, 195))


def _ink(digit: Pixels) -> Box:
    """The box of a digit's ink."""
    ink = digit > INK
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _resized(
    picture: "Picture", height: int, width: int, part: Box | None = None
) -> NDArray[np.float32]:
    from PIL import Image

    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, part), np.float32)


def _overlap(first: Box, second: Box) -> float:
    """Share of the smaller box that lies in the other."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(width, 0) * max(height, 0) / min(areas)


def _paste(
    generator: np.random.Generator,
    canvas: NDArray[np.float32],
    ink: NDArray[np.float32],
    top: int,
    left: int,
) -> None:
    """Draw strokes, lighter than what is below them or darker; mostly whichever shows more."""
    alpha = ink / 255 * np.float32(generator.uniform(0.7, 1))
    below = canvas[top : top + ink.shape[0], left : left + ink.shape[1]]
    mean, step = float(below.mean()), generator.uniform(50, 130)
    lighter = (mean < 128) == (generator.random() < 0.85)
    tone = np.float32(np.clip(mean + step if lighter else mean - step, 0, 255))
    below[...] = below * (1 - alpha) + tone * alpha
