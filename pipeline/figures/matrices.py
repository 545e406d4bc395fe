"""Tables of numbers as coloured squares with the numbers in them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    figure = canvas(size, size, title)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    names = [shorten(name, 14) for name in classes if count <= MOST_CLASSES]
    long = len(names) > 3 and max(map(len, names)) > 2
    slanted: Any = {"rotation": 50, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="actual")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if count <= MAX_NUMBERS:
        for row, column in np.argwhere(matrix > 0):
            axes.text(
                column,
                row,
                f"{matrix[row, column]}",
                ha="center",
                va="center",
                color="white" if share[row, column] > 0.36 else "black",
                fontsize=8,
            )
    return figure
