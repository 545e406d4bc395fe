"""Lines against something: epochs, depth, confidence, severity."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.style import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    MUTED,
    ORANGE,
    canvas,
    drawn,
    percent,
    shorten,
    written,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.task import About

FEWEST = 5
"""Examples of a bin that is drawn, at least."""


class Reliability(NamedTuple):
    """One row per non-empty confidence bin: mean confidence, accuracy, examples; and its edges."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    examples: NDArray[np.int64]


@drawn
def learning_curves(
    rows: Sequence[Mapping[str, str]], about: "About", best: int, loss_unit: str, title: str
) -> "Figure":
    """Loss, the headline on the validation split, and the learning rate by epoch.

    `rows` are those of a training stage's table: epoch, train_loss, validation_<headline>, lr, and
    validation_loss where the task has one; in row `best` the headline is best.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in rows])

    figure = canvas(9, 3, title)
    loss, scores, rate = figure.subplots(1, 3)
    epoch, heldout = column("epoch"), column(f"validation_{about.headline}")
    loss.plot(epoch, column("train_loss"), color=BLUE, marker="o", label="training")
    if "validation_loss" in rows[0]:
        loss.plot(
            epoch, column("validation_loss"), color=ORANGE, marker="s", ls="--", label="validation"
        )
    loss.set_title("Loss")
    loss.set_ylabel(loss_unit)
    low, high = min(0, loss.dataLim.ymin), max(0, loss.dataLim.ymax)
    loss.set_ylim(low, high + 0.05 * (high - low))
    loss.legend()
    scores.plot(epoch, heldout, color=GREEN, marker="^")
    scores.plot(epoch[best], heldout[best], "o", ms=11, mfc="none", mec=AMBER, mew=1.6)
    scores.set_title(f"Validation {about.words}, best {written(heldout[best], about.unit)}")
    if about.unit == "share":
        percent(scores.yaxis)
    scores.margins(y=0.12)
    rate.plot(epoch, column("lr"), color=MUTED, marker="o")
    rate.set_title("Learning rate")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    for axes in (loss, scores, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_xlim(epoch[0] - 0.5, epoch[-1] + 0.5)
        axes.grid(axis="y")
    return figure


@drawn
def reliability_diagram(
    table: Reliability, scaled: Reliability | None, errors: Sequence[float], title: str
) -> "Figure":
    """Accuracy against confidence, above a histogram of the confidence.

    `scaled` is the same after temperature scaling; `errors` are the calibration errors of both.
    The larger a mark, the more examples; bins of fewer than five are not drawn.
    """
    figure = canvas(4.6, 5.4, title)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color=MUTED, lw=1, ls=":", label="perfectly calibrated")
    for part, colour, marker, line, label in (
        (table, BLUE, "o", "-", f"as trained: ECE {errors[0]:.1%}"),
        (scaled, ORANGE, "s", "--", f"temperature scaled: ECE {errors[-1]:.1%}"),
    ):
        if part is not None:
            many = part.examples >= FEWEST
            x, y, examples = part.confidence[many], part.accuracy[many], part.examples[many]
            top.plot(x, y, color=colour, ls=line, lw=1.2)
            size = 10 + 90 * np.sqrt(examples / max(part.examples.sum(), 1))
            top.scatter(x, y, size, color=colour, marker=marker, label=label)
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1.02)
    top.grid()
    top.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0)
    width = table.high - table.low
    share = table.examples / table.examples.sum()
    bottom.bar(table.low, share, width, align="edge", color=BLUE, edgecolor="white", lw=0.5)
    bottom.set_xlabel("confidence")
    bottom.set_ylabel("examples")
    bottom.set_xlim(0, 1)
    bottom.set_ylim(0, max(share.max() * 1.1, 0.1))
    bottom.grid(axis="y", color=FAINT)
    for axis in (top.xaxis, top.yaxis, bottom.xaxis, bottom.yaxis):
        percent(axis)
    return figure


@drawn
def robustness_curves(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    units: Mapping[str, str],
    chance: float,
    title: str,
    score: str = "accuracy",
) -> "Figure":
    """A score against severity, one panel for each kind of damage.

    `curves` maps a kind to points (severity, score, low, high). They are drawn in the order of
    severity; an infinite one (noise that is not there) comes first, as `none`.
    """
    figure = canvas(2.7 * len(curves) + 0.4, 2.9, title)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (kind, points) in zip(panels, curves.items(), strict=True):
        endless = any(np.isinf(point[0]) for point in points)
        rows = np.array(sorted(points, key=lambda point: -point[0] if endless else point[0]))
        where = np.arange(len(rows))
        if chance:
            axes.axhline(chance, color=MUTED, lw=1, ls=":")
        axes.fill_between(where, rows[:, 2], rows[:, 3], color=BLUE, alpha=0.16, lw=0)
        axes.plot(where, rows[:, 1], color=BLUE, marker="o")
        axes.set_xticks(where, ["none" if np.isinf(s) else f"{s:g}" for s in rows[:, 0]])
        axes.set_title(kind)
        axes.set_xlabel(units[kind], fontsize=8)
        axes.grid(axis="y")
        axes.set_ylim(0, 1.03)
        percent(axes.yaxis)
    panels[0].set_ylabel(f"test {score}")
    if chance:
        panels[0].annotate(
            "chance", (0, chance), xytext=(0, 2), textcoords="offset points", color=MUTED,
            fontsize=8,
        )  # fmt: skip
    return figure


@drawn
def intervals(
    rows: Sequence[tuple[str, str, float, float, float]],
    whole: float,
    title: str,
    *,
    marked: bool = False,
) -> "Figure":
    """Accuracies with their 95 % intervals as points on lines, in groups.

    `rows` are (group, name, accuracy, low, high) with the rows of a group together; `whole` is the
    accuracy over all examples; `marked` makes a diamond of the lowest.
    """
    groups = list(dict.fromkeys(row[0] for row in rows))
    height = len(rows) + 0.9 * len(groups)
    figure = canvas(6.2, max(1.6, 0.19 * height + 0.9))
    axes = figure.subplots()
    axes.set_title(title)
    ticks: list[tuple[float, str]] = []
    place = 0.0
    lowest = min(row[2] for row in rows)
    for group in groups:
        ticks.append((place, group))
        place += 0.95
        for _, name, value, low, high in (row for row in rows if row[0] == group):
            worst = marked and value == lowest
            axes.plot([low, high], [place, place], color=AMBER if worst else FAINT, lw=3)
            axes.plot(value, place, "D" if worst else "o", color=ORANGE if worst else BLUE)
            ticks.append((place, shorten(name, 34)))
            place += 1
    axes.axvline(whole, color=MUTED, lw=1, ls=":")
    left, right = axes.get_xlim()
    leftish = whole < (left + right) / 2
    axes.annotate(
        f"all: {whole:.1%}",
        (whole, -0.2),
        xytext=(4 if leftish else -4, 0),
        textcoords="offset points",
        ha="left" if leftish else "right",
        fontsize=8,
        color=MUTED,
    )
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks], fontsize=8)
    for label, (_, name) in zip(axes.get_yticklabels(), ticks, strict=True):
        if name in groups:
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(place - 0.4, -0.8)
    axes.set_xlabel("test accuracy")
    percent(axes.xaxis)
    axes.grid(axis="x")
    return figure
