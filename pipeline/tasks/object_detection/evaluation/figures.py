"""Pictures of boxes, and of how often they are right."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Floats
from pipeline.figures.style import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    INK,
    MOST_CLASSES,
    MUTED,
    ORANGE,
    SKY,
    bare,
    canvas,
    drawn,
    percent,
    shorten,
)
from pipeline.tasks.object_detection.boxes.read import Boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]


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
    figure = canvas(2.3 * columns, (2.3 * rows + 0.1) * times + 0.35)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=10)
    grid = figure.subplots(rows * times, columns, squeeze=False)
    for axes in grid.ravel():
        bare(axes)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        axes = grid[row * times, column]
        axes.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), vmin=0, vmax=255)
        _boxes(axes, truth[number], classes, GREEN, found is None)
        if found:
            _boxes(axes, found[number], classes, ORANGE, True)
        if heat:
            below = grid[row * times + 1, column]
            below.imshow(heat[number], cmap="magma", vmin=0, vmax=1)
    return figure


def _boxes(axes: "Axes", boxes: Boxes, classes: Sequence[str], colour: str, surest: bool) -> None:
    from matplotlib.patches import Rectangle

    for (x1, y1, x2, y2), label, score in zip(*boxes, strict=True):
        # the centre of the first pixel is at 0
        place = (x1 - 0.5, y1 - 0.5)
        line = "-" if surest else (0, (2, 1.5))
        axes.add_patch(Rectangle(place, x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.3, ls=line))
        name = shorten(classes[label], 10)
        text = name if score == 1 else f"{name} {score:.2f}"
        if surest:
            axes.text(
                *place, text, fontsize=6, color="white", va="bottom", clip_on=True,
                bbox={"facecolor": colour, "lw": 0, "pad": 0.6},
            )  # fmt: skip


@drawn
def precision_and_recall(
    curves: Floats, sweep: Sequence[Floats], threshold: float, classes: Sequence[str], title: str
) -> "Figure":
    """Precision by recall of each class, [classes, 101]; precision, recall, F1 by threshold.

    `sweep` are the scores, and precision, recall and F1 when boxes of that score and above count.
    """
    figure = canvas(8.6, 3.4)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=10)
    left, right = figure.subplots(1, 2)
    recall = np.linspace(0, 1, 101)
    if len(curves) <= MOST_CLASSES:
        for curve in curves:
            left.plot(recall, curve, color=SKY, lw=0.8)
    known = curves[~np.isnan(curves).all(axis=1)]
    if len(known):
        left.plot(recall, known.mean(axis=0), color=BLUE, label="mean of the classes")
        hardest = int(np.nanargmin(np.nanmean(curves, axis=1) if len(known) else [0]))
        name = shorten(classes[hardest], 12)
        left.plot(recall, curves[hardest], color=ORANGE, ls="--", label=f"lowest: {name}")
        left.legend(loc="lower left")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    score, *values = sweep
    looks = (("precision", BLUE, "-"), ("recall", ORANGE, "--"), ("F1", GREEN, "-."))
    for line, (name, colour, style) in zip(values, looks, strict=True):
        right.plot(score, line, color=colour, ls=style, label=name)
    right.axvline(threshold, color=MUTED, lw=1, ls=":")
    right.set(xlabel="boxes with this score or more", xlim=(0, 1), ylim=(0, 1.02))
    right.legend(loc="lower left")
    for axes in (left, right):
        axes.grid()
        percent(axes.yaxis)
    percent(left.xaxis)
    return figure


@drawn
def kinds(counts: Mapping[str, int], title: str) -> "Figure":
    """How many boxes went wrong in which way, as bars."""
    figure = canvas(6, 0.3 * len(counts) + 0.7)
    axes = figure.subplots()
    axes.set_title(title)
    bars = axes.barh(list(counts), list(counts.values()), color=AMBER, edgecolor=FAINT)
    axes.bar_label(bars, padding=3, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("boxes")
    axes.margins(x=0.12)
    return figure
