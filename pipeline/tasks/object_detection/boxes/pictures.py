"""Pictures with boxes drawn on them; loads no torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.intervals import Floats
from pipeline.figures.style import DPI, GREEN, ORANGE, bare, canvas, drawn, shorten, tiles
from pipeline.images import png
from pipeline.tasks.object_detection.boxes.read import Boxes, Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 800
"""Pixels of a picture's longer side, at least: on fewer, names and scores could not be read."""


@drawn
def boxes_sheet(
    images: Sequence[Image],
    truth: Sequence[Boxes],
    found: Sequence[Boxes] | None,
    classes: Sequence[str],
    title: str,
    heat: Sequence[Floats] | None = None,
) -> "Figure":
    """Images [channels, height, width] with true boxes dashed and found ones drawn through.

    `heat` are shares [rows, columns], drawn below each image: how sure the network is that a thing
    has its centre there.
    """
    columns, times = min(4, max(len(images), 1)), 2 if heat else 1
    rows = -(-len(images) // columns)
    figure = canvas(2.3 * columns, (2.3 * rows + 0.1) * times + 0.35, title)
    grid = tiles(figure, rows * times, columns)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        axes = grid[row * times, column]
        axes.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), vmin=0, vmax=255)
        _boxes(axes, truth[number], classes, GREEN, named=found is None)
        if found:
            _boxes(axes, found[number], classes, ORANGE)
        if heat:
            below = grid[row * times + 1, column]
            below.imshow(heat[number], cmap="magma", vmin=0, vmax=1)
    return figure


@drawn
def picture(file: Path, found: Sequence[Mapping[str, Any]]) -> "Figure":
    """An image file in its own pixels, enlarged if it is small, with what was found in it.

    Args:
        file: a PNG, JPEG or other image that `prepare` takes too.
        found: the boxes as a detector's `answer` tells them.

    Raises:
        PipelineError: it is no image that can be read.
    """
    image = png.pillow(file.read_bytes(), str(file), 3)
    height, width = image.shape[:2]
    inch = DPI * min(1, max(height, width) / LEAST)
    figure = canvas(width / inch, height / inch)
    figure.set_layout_engine("none")  # to the edge
    axes = figure.add_axes((0, 0, 1, 1))
    bare(axes)
    axes.imshow(image)
    corners = np.array([one["box"] for one in found], np.float32).reshape(-1, 4)
    scores = np.array([one["score"] for one in found], np.float32)
    names = [one["label"] for one in found]
    _boxes(axes, Boxes(corners, np.arange(len(found)), scores), names, ORANGE)
    return figure


def _boxes(
    axes: "Axes", boxes: Boxes, classes: Sequence[str], colour: str, *, named: bool = True
) -> None:
    """Draw boxes through and with their names, or dashed and without."""
    from matplotlib.patches import Rectangle

    for (x1, y1, x2, y2), label, score in zip(*boxes, strict=True):
        # the centre of the first pixel is at 0
        place = (x1 - 0.5, y1 - 0.5)
        line = "-" if named else (0, (2, 1.5))
        axes.add_patch(Rectangle(place, x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.3, ls=line))
        if named:
            name = shorten(classes[label], 10)
            text = name if score == 1 else f"{name} {score:.2f}"
            axes.text(
                *place, text, fontsize=6, color="white", va="bottom", clip_on=True,
                bbox={"facecolor": colour, "lw": 0, "pad": 0.6},
            )  # fmt: skip
