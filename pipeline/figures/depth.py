"""What is learnt at which depth: filters, maps, patches, probes, similarity."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    bare,
    canvas,
    drawn,
    percent,
    picture,
    shorten,
    tiles,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@drawn
def probe_curve(
    trained: Mapping[str, Estimate],
    control: Mapping[str, Estimate],
    model: float,
    chance: float,
    title: str,
) -> "Figure":
    """Test accuracy of linear probes by depth, of the trained and of the untrained network."""
    figure = canvas(6, 3.7, title)
    axes = figure.subplots()
    axes.axhline(model, color=INK, lw=1, ls=":")
    axes.axhline(chance, color=MUTED, lw=1, ls=":")
    last = len(trained) - 1
    where = np.arange(len(trained))
    _measured(axes, where - 0.02, trained, "trained network")
    _measured(axes, where + 0.02, control, "the same network untrained", control=True)
    edge = last + 0.28
    axes.set_xlim(-0.25, edge)
    for height, text, place, side in (
        (model, "the model itself", -0.22, "left"),
        (chance, "chance", edge - 0.03, "right"),
    ):
        axes.annotate(
            text, (place, height), xytext=(0, 1.5), textcoords="offset points", fontsize=8,
            color=MUTED, ha=side, va="bottom",
        )  # fmt: skip
    axes.set_xticks(range(len(trained)), [name.replace(": ", "\n") for name in trained])
    axes.set_ylabel("test accuracy of a linear probe")
    axes.set_ylim(max(0, chance - 0.12), 1.03)
    percent(axes.yaxis)
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2)
    return figure


@drawn
def probe_panels(models: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> "Figure":
    """Probe accuracy by depth of several models side by side.

    `models` maps a heading to {"trained": …, "untrained": …}, each {name of the depth: Estimate}.
    """
    figure = canvas(3.1 * len(models), 2.9)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, (heading, networks) in zip(panels, models.items(), strict=True):
        axes.set_title(heading)
        for label, points in networks.items():
            _measured(axes, list(points), points, label, control=label == "untrained")
        axes.margins(x=0.1)
        axes.grid(axis="y")
    panels[0].set_ylabel("test accuracy of a linear probe")
    panels[0].set_ylim(0, 1.03)
    percent(panels[0].yaxis)
    panels[-1].legend(loc="lower right")
    return figure


@drawn
def similarities(
    tables: Mapping[str, tuple[NDArray[np.float64], Sequence[str]]],
    rows: Sequence[str],
    title: str,
) -> "Figure":
    """Linear CKA of the stages `rows` with others, as squares with their value.

    `tables` maps a heading to (values [rows, columns], names of the columns).
    """
    size = 0.55
    width = sum(size * len(columns) + 0.35 for _, columns in tables.values())
    figure = canvas(width + 1.1, size * len(rows) + 1.45, title)
    grid = figure.subplots(1, len(tables), squeeze=False)[0]
    for number, (axes, (heading, (matrix, columns))) in enumerate(
        zip(grid, tables.items(), strict=True)
    ):
        axes.set_title(heading, fontsize=8.5, weight="normal")
        axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
        axes.set_xticks(
            range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(rows)), rows if number == 0 else [])
        axes.tick_params(length=0)
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7.5,
                color="black" if value > 0.6 else "white",
            )  # fmt: skip
        axes.spines[:].set_visible(False)
    return figure


@drawn
def filters(weights: NDArray[np.float32], title: str) -> "Figure":
    """First-layer filters float [maps, channels, height, width]; blue is negative, red positive.

    The first 32 of them; filters over three channels are shown in colour.
    """
    chosen = weights[:32]
    columns = min(16, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = canvas(max(0.5 * columns, 4), 0.52 * rows + 0.45, title)
    limit = float(np.abs(chosen).max()) or 1.0
    for axes, kernel in zip(tiles(figure, rows, columns).flat, chosen, strict=False):
        if len(kernel) == 3:
            axes.imshow((kernel / limit / 2 + 0.5).transpose(1, 2, 0))
        else:
            axes.imshow(kernel.mean(axis=0), cmap="RdBu_r", vmin=-limit, vmax=limit)
    return figure


@drawn
def maps(
    image: NDArray[np.uint8], stages: Mapping[str, NDArray[np.float32]], title: str
) -> "Figure":
    """One image uint8 [channels, h, w], and its eight strongest feature maps at each stage.

    `stages` maps a name to [channels, h, w]. Each map has its own scale from its least to its
    greatest value.
    """
    columns = 8
    figure = canvas(0.85 * columns + 2.6, 0.9 * len(stages) + 0.4, title)
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.35, 0.85 * columns + 1.1])
    left, right = halves
    axes = left.subplots()
    bare(axes)
    picture(axes, image)
    axes.set_title("the image", fontsize=8, weight="normal", loc="center")
    grid = tiles(right, len(stages), columns)
    for line, (name, stage) in zip(grid, stages.items(), strict=True):
        strongest = np.argsort(-stage.reshape(len(stage), -1).max(axis=1), kind="stable")
        for tile, channel in zip(line, strongest, strict=False):
            tile.imshow(stage[channel], cmap="viridis")
        line[0].set_ylabel(
            name.replace(": ", "\n"), rotation=0, ha="right", va="center", fontsize=8
        )
    return figure


class Patches(NamedTuple):
    """For one depth: its name, the channels, and for each the patches uint8 that excite it most.

    `patches` is [channels][patches] of arrays [image channels, height, width].
    """

    depth: str
    channels: Sequence[int]
    patches: Sequence[Sequence[NDArray[np.uint8]]]


@drawn
def patch_sheet(depths: Sequence[Patches], title: str) -> "Figure":
    """A block of patches for each depth, one row for each channel."""
    columns = max(len(row) for depth in depths for row in depth.patches)
    rows = max(len(depth.patches) for depth in depths)
    figure = canvas(len(depths) * (0.42 * columns + 0.65), 0.44 * rows + 0.85, title)
    blocks: Any = figure.subfigures(1, len(depths), squeeze=False)[0]
    for block, depth in zip(blocks, depths, strict=True):
        height, width = depth.patches[0][0].shape[1:]
        block.suptitle(f"{depth.depth}\n{height}×{width} pixels", fontsize=8.5, weight="normal")
        grid = tiles(block, rows, columns)
        for line, channel, patches in zip(grid, depth.channels, depth.patches, strict=False):
            line[0].set_ylabel(
                f"map {channel}", rotation=0, ha="right", va="center", fontsize=7, color=MUTED
            )
            for tile, patch in zip(line, patches, strict=False):
                picture(tile, patch)
    return figure


@drawn
def attention(
    layers: Mapping[str, NDArray[np.float32]], tokens: Sequence[str], title: str
) -> "Figure":
    """Attention weights [from, to] of chosen layers over one sentence, heads averaged.

    Each row sums to 1; the scale is the root, so that weak links can be seen.
    """
    words = [shorten(token, 12) for token in tokens]
    side = max(2.4, 0.145 * len(words) + 0.6)
    figure = canvas(side * len(layers) + 0.9, side + 1.25, title)
    grid = figure.subplots(1, len(layers), squeeze=False)[0]
    size = 7 if len(words) <= 24 else 5.5
    for number, (axes, (name, weights)) in enumerate(zip(grid, layers.items(), strict=True)):
        axes.imshow(np.sqrt(weights), cmap="magma", vmin=0, vmax=1)
        axes.set_title(name, fontsize=8.5)
        axes.set_xticks(range(len(words)), words, rotation=90, fontsize=size)
        axes.set_yticks(range(len(words)), words if number == 0 else [], fontsize=size)
        axes.tick_params(length=0, pad=2)
        if number == 0:
            axes.set_ylabel("this word looks at …", fontsize=8)
    return figure


def _measured(
    axes: Any, where: Any, points: Mapping[str, Estimate], label: str, control: bool = False
) -> None:
    values = np.array(list(points.values()))
    axes.errorbar(
        where, values[:, 0], yerr=np.abs(values[:, 1:].T - values[:, 0]), capsize=3, elinewidth=1,
        color=ORANGE if control else BLUE, marker="s" if control else "o",
        ls="--" if control else "-", label=label,
    )  # fmt: skip
