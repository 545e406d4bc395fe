"""Tables of numbers as coloured squares with the numbers in them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.style import MOST_CLASSES, canvas, drawn, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NUMBERS = 30


@drawn
def confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> "Figure":
    """Counts [actual, predicted] as numbers and shades.

    The shade is the root of the share of the actual class, so that rare mistakes can be seen.
    Numbers are left out above 30 classes, names above `MOST_CLASSES`.
    """
    count = len(classes)
    size = float(np.clip(0.42 * count + 1.4, 3.6, 11))
    figure = canvas(size, size)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=10)
    _names(axes, classes, "actual", "predicted")
    if count <= MAX_NUMBERS:
        for row, column in np.argwhere(matrix > 0):
            dark = share[row, column] > 0.36
            axes.text(
                column,
                row,
                f"{matrix[row, column]}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=8,
            )
    return figure


def _names(axes, names: Sequence[str], rows: str, columns: str) -> None:  # type: ignore[no-untyped-def]
    labels = [shorten(name, 14) for name in names if len(names) <= MOST_CLASSES]
    long = len(labels) > 3 and max(map(len, labels)) > 2
    axes.set_xticks(range(len(labels)), labels, rotation=50 if long else 0)
    if long:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
