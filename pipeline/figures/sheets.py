"""Sheets of examples for a person to look through: images, sentences, spectrograms."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.style import (
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    bare,
    canvas,
    drawn,
    paper,
    picture,
    tiles,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Caption(NamedTuple):
    """What is said about one example: two short lines; `wrong` marks the second as a mistake."""

    first: str
    second: str
    wrong: bool = True


@drawn
def image_sheet(
    images: NDArray[np.uint8], captions: Sequence[Caption], title: str, columns: int = 6
) -> "Figure":
    """Images uint8 [n, channels, height, width] with a caption each."""
    if not len(images):
        return _empty(title)
    figure, grid = _grid(len(images), columns, 1.35, 1.66, title)
    for axes, image, caption in zip(grid, images, captions, strict=False):
        picture(axes, image)
        _caption(axes, caption)
    return figure


@drawn
def spectrogram_sheet(
    spectrograms: Sequence[NDArray[np.float32]],
    seconds: Sequence[float],
    captions: Sequence[Caption],
    title: str,
) -> "Figure":
    """Log-mel spectrograms float [mels, frames], of given durations, with a caption each."""
    if not len(spectrograms):
        return _empty(title)
    figure, grid = _grid(len(spectrograms), 4, 2.1, 1.65, title)
    longest = max(seconds)
    for axes, bands, length, caption in zip(grid, spectrograms, seconds, captions, strict=False):
        axes.imshow(
            bands,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, length, 0, len(bands)),
            interpolation="antialiased",
        )
        _caption(axes, caption)
        axes.set_xlim(0, longest)
        axes.set_xticks([0, length], ["0", f"{length:.2f} s"], fontsize=7)
        axes.tick_params(length=2, pad=1)
    return figure


@drawn
def text_sheet(texts: Sequence[str], captions: Sequence[Caption], title: str) -> "Figure":
    """Sentences as a table: caption to the left, at most three lines of text to the right."""
    if not len(texts):
        return _empty(title)
    wrapped = [wrap(text, 84, 3) for text in texts]
    heights = [max(2, text.count("\n") + 1) + 0.8 for text in wrapped]
    figure, axes = paper(0.165, 1, sum(heights), title)
    top = 0.0
    for text, caption, height in zip(wrapped, captions, heights, strict=False):
        axes.axhline(top, color=FAINT, lw=0.8)
        axes.text(0, top + 0.35, caption.first, va="top", fontsize=8, color=MUTED)
        colour = ORANGE if caption.wrong else GREEN
        axes.text(0, top + 1.35, caption.second, va="top", fontsize=8, color=colour, weight="bold")
        axes.text(0.255, top + 0.35, text, va="top", fontsize=8.5, color=INK, linespacing=1.25)
        top += height
    return figure


def _grid(
    count: int, columns: int, width: float, height: float, title: str
) -> "tuple[Figure, Iterable[Axes]]":
    columns = min(columns, max(count, 3))
    rows = -(-count // columns)
    figure = canvas(width * columns, height * rows + 0.35, title)
    return figure, tiles(figure, rows, columns).flat


def _caption(axes: "Axes", caption: Caption) -> None:
    colour = ORANGE if caption.wrong else GREEN
    axes.set_title(caption.first, loc="left", fontsize=7.5, color=MUTED, weight="normal", pad=12)
    axes.annotate(
        caption.second,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 2.5),
        textcoords="offset points",
        fontsize=7.5,
        color=colour,
        weight="bold",
    )


def _empty(title: str) -> "Figure":
    figure = canvas(5, 1)
    axes = figure.subplots()
    bare(axes)
    axes.set_title(title)
    axes.text(0, 0.5, "None: there is no example to show.", transform=axes.transAxes, color=MUTED)
    return figure
