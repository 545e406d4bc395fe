"""The look of all figures, and how they become bytes."""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from pipeline.files import new_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Parameters = ParamSpec("Parameters")

INK, MUTED, FAINT = "#1f2430", "#5c6370", "#d9dce1"
BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#B37A00",
    "#56B4E9",
)
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
DPI = 160
WIDTH = 8.6
"""Inches of a figure for text."""
MOST_CLASSES = 60
"""Classes that a figure shows one by one: of more, names can't be read and each costs time."""

_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    # Sentences and class names hold dollar signs that are no formulas.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.facecolor": "white",
    "figure.titlesize": 10,
    "figure.titleweight": "bold",
    "savefig.facecolor": "white",
    "image.interpolation": "nearest",
    "image.cmap": "gray",
}


_LOOKING = ContextVar("looking", default=False)


@contextmanager
def look() -> Iterator[None]:
    """Draw with this project's settings and none of the user's.

    Entering takes 20 ms, so whoever draws many figures enters around them all: inside, it is free.
    """
    if _LOOKING.get():
        yield
        return
    import matplotlib

    token = _LOOKING.set(True)
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A character that the font lacks is drawn as a box; that is no reason to stop or to warn.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", category=matplotlib.MatplotlibDeprecationWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        try:
            yield
        finally:
            _LOOKING.reset(token)


def drawn(function: "Callable[Parameters, Figure]") -> "Callable[Parameters, Figure]":
    """Decorate a function that returns a figure, so that it draws with `look`."""

    @wraps(function)
    def draw(*args: Parameters.args, **kwargs: Parameters.kwargs) -> "Figure":
        with look():
            return function(*args, **kwargs)

    return draw


def canvas(width: float, height: float, title: str = "") -> "Figure":
    """An empty figure, size in inches, whose parts are kept from overlapping."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def paper(inch: float, columns: float, rows: float, title: str) -> "tuple[Figure, Axes]":
    """A figure for text: places are in columns and, from the top, in rows of so many inches."""
    figure = canvas(WIDTH, inch * rows + 0.45)
    axes = figure.subplots()
    bare(axes)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_title(title)
    return figure, axes


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG whose bytes depend on the figure only."""
    with look(), new_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def percent(axis: Any) -> None:
    """Label an axis of shares in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))


def written(value: float, unit: str) -> str:
    """A score in words: a `share` in percent, or a `number`."""
    return f"{value:.1%}" if unit == "share" else f"{value:.4g}"


def bare(axes: "Axes") -> None:
    """Take ticks and frame away, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def tiles(figure: Any, rows: int, columns: int) -> NDArray[Any]:
    """Axes for images [rows, columns]; `figure` may be a part of one."""
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        bare(axes)
    return grid


def picture(axes: "Axes", image: NDArray[np.uint8]) -> None:
    """Show an image [channels, height, width]: three channels in colour, others by their mean."""
    axes.imshow(image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0), vmin=0, vmax=255)


def shorten(text: str, width: int) -> str:
    """At most `width` characters on one line."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def wrap(text: str, width: int, lines: int) -> str:
    """At most `lines` lines of at most `width` characters."""
    parts = textwrap.wrap(" ".join(text.split()), width, max_lines=lines, placeholder=" …")
    return "\n".join(parts)
