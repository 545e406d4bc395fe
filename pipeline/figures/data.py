"""What is in a data set."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.style import CYCLE, LINES, MOST_CLASSES, canvas, drawn, percent, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HATCHES = ("", "////", "....")


@drawn
def balance_and_sizes(
    counts: Mapping[str, Mapping[str, int]],
    sizes: Mapping[str, NDArray[Any]],
    unit: str,
    title: str,
) -> "Figure":
    """Rows of each class by split, and how the sizes spread, as cumulative shares.

    Of more than `MOST_CLASSES` classes the rows are a line, from the largest class to the smallest.
    """
    figure = canvas(7.6, 2.9, title)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    classes = list(next(iter(counts.values())))
    width, one_by_one = 0.8 / len(counts), len(classes) <= MOST_CLASSES
    for number, (split, rows) in enumerate(counts.items()):
        label = f"{split} ({sum(rows.values()):,})"
        if one_by_one:
            left.bar(
                np.arange(len(classes)) + (number - (len(counts) - 1) / 2) * width,
                [rows[name] for name in classes],
                width,
                color=CYCLE[number],
                hatch=HATCHES[number % 3],
                edgecolor="white",
                linewidth=0.4,
                label=label,
            )
        else:
            ranked = sorted(rows.values(), reverse=True)
            left.plot(ranked, color=CYCLE[number], ls=LINES[number], label=label)
        values = np.sort(np.asarray(sizes[split], dtype=np.float64))
        share = (np.arange(len(values)) + 1) / len(values)
        right.plot(values, share, color=CYCLE[number], ls=LINES[number], label=split)
    left.set_title("rows of each class", fontsize=9)
    if one_by_one:
        names = [shorten(name, 10) for name in classes]
        long = len(names) > 4 and max(map(len, names)) > 2
        left.set_xticks(range(len(names)), names, rotation=40 if long else 0)
        if long:
            for text in left.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        left.tick_params(axis="x", length=0)
    else:
        left.set_xlabel("classes, the largest first")
    left.margins(y=0.32)
    left.legend(loc="upper left", ncols=3, fontsize=7.5, columnspacing=1, handlelength=1.2)
    left.grid(axis="y")
    left.set_axisbelow(True)
    right.set_title("share of the examples up to this size", fontsize=9)
    right.set_xlabel(unit)
    right.set_ylim(0, 1.02)
    percent(right.yaxis)
    right.grid()
    right.legend(loc="lower right", fontsize=7.5)
    return figure
