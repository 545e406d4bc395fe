"""The plots of docs/performance.md, drawn from the raw points of the measured rows.

A row's points name their plot by `kind`: `accuracy` has a title and, by program, a curve of
(seconds, accuracy) for each seed; `throughput` a label and, by program, examples/s; `growth` rows
and the seconds of each repetition; `memory` rows and gigabytes likewise.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import Row
from pipeline.figures.style import CYCLE, FAINT, MARKERS, MUTED, canvas, drawn, percent, save
from pipeline.files import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[dict[str, Any]]


def draw(rows: Sequence[Row], folder: Path) -> dict[str, str]:
    """Write the plots there are points for; their alternative texts by file name."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row.points.get("kind", ""), []).append(row.points)
    texts: dict[str, str] = {}
    if found := kinds.get("accuracy"):
        texts["performance-accuracy.png"] = _say(
            "Test accuracy against seconds of training", [one["title"] for one in found]
        )
        _save(accuracy(found), folder / "performance-accuracy.png")
    if found := kinds.get("throughput"):
        texts["performance-throughput.png"] = _say(
            "Examples per second", [one["label"] for one in found]
        )
        _save(throughput(found), folder / "performance-throughput.png")
    if found := kinds.get("growth"):
        texts["performance-growth.png"] = "Growth with the rows: seconds of an epoch, memory"
        _save(growth(found[0], kinds.get("memory", [{}])[0]), folder / "performance-growth.png")
    return texts


@drawn
def accuracy(found: Points) -> "Figure":
    """A panel per task: accuracy by time, a line or a point per seed."""
    figure = canvas(4.2 * len(found), 3)
    for axes, points in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        for (name, curves), colour, marker in zip(
            points["curves"].items(), CYCLE, MARKERS, strict=False
        ):
            for number, curve in enumerate(curves):
                seconds, values = zip(*curve, strict=True)
                label = name if number == 0 else None
                axes.plot(seconds, values, color=colour, marker=marker, alpha=0.8, label=label)
        axes.set_title(points["title"])
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds")
        axes.set_ylabel("test accuracy")
        axes.margins(y=0.15)
        percent(axes.yaxis)
        axes.legend()
    return figure


@drawn
def throughput(found: Points) -> "Figure":
    """A line per measurement, a mark per program at its median, with the range as a bar."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    programs = list(dict.fromkeys(name for points in found for name in points["rates"]))
    figure = canvas(8.4, 1.2 + 0.32 * len(found))
    axes = figure.subplots()
    for program, colour, marker in zip(programs, CYCLE, MARKERS, strict=False):
        for height, points in enumerate(found):
            if rates := points["rates"].get(program):
                axes.plot([min(rates), max(rates)], [height, height], color=colour)
                axes.plot(statistics.median(rates), height, marker, color=colour, label=program)
    axes.set_yticks(range(len(found)), [points["label"] for points in found])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("examples per second")
    axes.grid(axis="y", color=FAINT)
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    figure.legend(
        [first[name] for name in programs], programs, loc="outside upper left",
        ncols=min(3, len(programs)),
    )  # fmt: skip
    return figure


@drawn
def growth(epochs: dict[str, Any], memory: dict[str, Any]) -> "Figure":
    """Seconds of an epoch by rows, with the line of proportion; memory by rows."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = canvas(8.4, 3)
    time, held = figure.subplots(1, 2)
    for axes, points, name, title in (
        (time, epochs, "seconds", "Seconds of an epoch"),
        (held, memory, "gigabytes", "Memory, data on the disk"),
    ):
        axes.set_title(title)
        axes.set_xlabel("rows")
        axes.set_ylabel(name)
        if not points:
            continue
        rows, middles = points["rows"], [statistics.median(some) for some in points[name]]
        if axes is time:
            line = [one * middles[0] / rows[0] for one in rows]
            axes.plot(rows, line, color=MUTED, ls="--", label="in proportion")
        for count, some in zip(rows, points[name], strict=True):
            axes.plot([count] * len(some), some, ".", color=CYCLE[0])
        axes.plot(rows, middles, color=CYCLE[0], label="median")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.1 * max(max(some) for some in points[name]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.legend(loc="lower right")
    return figure


def _save(figure: "Figure", path: Path) -> None:
    """Write a PNG of 256 colours, a third of the bytes."""
    from PIL import Image

    save(figure, path)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with new_file(path) as temporary:
        small.save(temporary, format="png", optimize=True)


def _say(what: str, titles: Sequence[str]) -> str:
    return f"{what}: {', '.join(titles)}"
