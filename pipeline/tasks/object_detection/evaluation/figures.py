"""Pictures of how often boxes are right."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

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
    canvas,
    drawn,
    percent,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawn
def precision_and_recall(
    curves: Floats, sweep: Sequence[Floats], threshold: float, classes: Sequence[str], title: str
) -> "Figure":
    """Precision by recall of each class, [classes, 101]; precision, recall, F1 by threshold.

    `sweep` are the scores, and precision, recall and F1 when boxes of that score and above count.
    """
    figure = canvas(8.6, 3.4, title)
    left, right = figure.subplots(1, 2)
    recall = np.linspace(0, 1, 101)
    if len(curves) <= MOST_CLASSES:
        for curve in curves:
            left.plot(recall, curve, color=SKY, lw=0.8)
    known = curves[~np.isnan(curves).all(axis=1)]
    if len(known):
        left.plot(recall, known.mean(axis=0), color=BLUE, label="mean of the classes")
        hardest = int(np.nanargmin(np.nanmean(curves, axis=1)))
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
