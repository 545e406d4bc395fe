"""Figures that answer to the pointer: plotly, for the page `explore.html`.

plotly reads a few HTML tags in names and in what is shown under the pointer, so whatever comes from
the data is escaped. Coordinates are rounded: the last bits of a sum do not show.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.curves import Reliability
from pipeline.figures.matrices import MAX_NUMBERS
from pipeline.figures.style import BLUE, CYCLE, FAINT, INK, MUTED, shorten, wrap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon")
WRONG = "x"


class Dot(NamedTuple):
    """One test example on the map.

    `facts` are lines for its hover text, such as the voice, and `text` is its sentence, or nothing.
    """

    row: int
    label: int
    prediction: int
    confidence: float
    facts: Sequence[str] = ()
    text: str = ""


def confusion_map(matrix: NDArray[np.int64], classes: Sequence[str]) -> "Figure":
    """Counts [actual, predicted] as numbers and shades; the pointer shows names and shares.

    The shade is the root of the share of the actual class, so that rare mistakes can be seen.
    """
    import plotly.graph_objects as go

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [_safe(name) for name in classes]
    count = len(names)
    hover = [
        [
            f"true class: <b>{names[row]}</b><br>predicted: <b>{names[column]}</b><br>"
            f"{matrix[row, column]} examples, {share[row, column]:.1%} of the true class"
            for column in range(count)
        ]
        for row in range(count)
    ]
    squares = go.Heatmap(
        z=_rounded(np.sqrt(share)),
        zmin=0,
        zmax=1,
        colorscale=[[0, "#f1f3f6"], [1, BLUE]],
        showscale=False,
        xgap=1,
        ygap=1,
        text=[[str(number) if number else "" for number in row] for row in matrix.tolist()],
        texttemplate="%{text}" if count <= MAX_NUMBERS else None,
        hovertext=hover,
        hoverinfo="text",
    )
    figure = go.Figure(squares, _layout(int(np.clip(32 * count + 150, 340, 900))))
    # Of many classes not every name has room.
    ticks = range(0, count, -(-count // 40))
    axis = {
        "tickvals": list(ticks),
        "ticktext": [_safe(classes[tick], 14) for tick in ticks],
        "showgrid": False,
        "ticks": "",
        "fixedrange": True,
    }
    # An angle of plotly's own choice leaves out names on a phone.
    angle = -45 if max(map(len, classes)) > 3 else 0
    figure.update_xaxes(title_text="predicted class", tickangle=angle, **axis)
    figure.update_yaxes(title_text="true class", autorange="reversed", **axis)
    return figure


def example_map(
    places: NDArray[np.float64],
    shares: Sequence[float],
    points: Sequence[Dot],
    classes: Sequence[str],
) -> "Figure":
    """Examples at places [n, 2], one trace for each true class; wrong answers are crosses.

    `shares` say how much of the variance lies along each axis.
    """
    import plotly.graph_objects as go

    labels = np.array([point.label for point in points])
    wrong = np.array([point.prediction != point.label for point in points])
    figure = go.Figure(layout=_layout(620))
    for number, name in enumerate(classes):
        # Crosses come last, on top of the others.
        own = np.flatnonzero(labels == number)
        rows = own[np.argsort(wrong[own], kind="stable")].tolist()
        symbol = SYMBOLS[(number + number // len(CYCLE)) % len(SYMBOLS)]
        figure.add_scatter(
            x=_rounded(places[rows, 0]),
            y=_rounded(places[rows, 1]),
            name=_safe(name, 24),
            mode="markers",
            marker={
                "color": CYCLE[number % len(CYCLE)],
                "symbol": [WRONG if wrong[row] else symbol for row in rows],
                "size": [11 if wrong[row] else 7 for row in rows],
                "opacity": [1.0 if wrong[row] else 0.7 for row in rows],
                "line": {"width": [1 if wrong[row] else 0 for row in rows], "color": INK},
            },
            hovertext=[_about(points[row], classes) for row in rows],
            hoverinfo="text",
        )
    titles = [
        f"{place} component: {share:.1%} of the variance"
        for place, share in zip(("first", "second"), shares, strict=True)
    ]
    figure.update_xaxes(title_text=titles[0])
    figure.update_yaxes(title_text=titles[1])
    figure.update_layout(showlegend=True)
    return figure


def reliability_map(table: Reliability) -> "Figure":
    """Accuracy against confidence, a mark for each bin, the larger the more examples."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout(460))
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        name="perfectly calibrated",
        mode="lines",
        line={"color": MUTED, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=_rounded(table.confidence),
        y=_rounded(table.accuracy),
        name="this model",
        cliponaxis=False,
        mode="lines+markers",
        line={"color": BLUE, "width": 1.2},
        marker={
            "color": BLUE,
            "opacity": 1,
            "size": _rounded(6 + 24 * np.sqrt(table.examples / table.examples.sum())),
        },
        hovertext=[
            f"confidence {low:.0%} to {high:.0%}<br><b>{examples}</b> examples<br>"
            f"mean confidence {confidence:.1%}<br>accuracy {accuracy:.1%}"
            for low, high, confidence, accuracy, examples in zip(*table, strict=True)
        ],
        hoverinfo="text",
    )
    axis = {"tickformat": ".0%", "fixedrange": True}
    figure.update_xaxes(title_text="confidence", range=[-0.03, 1.03], **axis)
    figure.update_yaxes(title_text="accuracy", range=[-0.05, 1.05], **axis)
    return figure


def _layout(height: int) -> dict[str, Any]:
    axis = {
        "gridcolor": FAINT,
        "linecolor": MUTED,
        "ticks": "outside",
        "tickcolor": MUTED,
        "title": {"font": {"size": 14}, "standoff": 12},
        "zeroline": False,
        "automargin": True,
    }
    return {
        "height": height,
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 10, "r": 10, "t": 16, "b": 10},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"color": INK, "size": 13}},
        "xaxis": axis,
        "yaxis": axis,
    }


def _about(point: Dot, classes: Sequence[str]) -> str:
    lines = [
        f"row <b>{point.row}</b> of the test split",
        f"true class: <b>{_safe(classes[point.label])}</b>",
        f"predicted: <b>{_safe(classes[point.prediction])}</b>, {point.confidence:.1%}",
        *(_safe(fact) for fact in point.facts),
        *(escape(line, quote=False) for line in wrap(point.text, 40, 3).splitlines()),
    ]
    return "<br>".join(lines)


def _safe(text: str, width: int = 40) -> str:
    return escape(shorten(text, width), quote=False)


def _rounded(values: NDArray[np.float64]) -> list[Any]:
    return np.round(values, 4).tolist()
