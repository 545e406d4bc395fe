"""Texts of tokens, coloured by how surprising each is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.figures.style import FAINT, INK, MUTED, drawn, paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = 104
"""Characters of a line."""
MOST = 12.0
"""Bits of the deepest colour."""


class Passage(NamedTuple):
    """Tokens as text, the bits of each, a line about them."""

    tokens: Sequence[str]
    bits: Sequence[float]
    about: str


@drawn
def surprise(passages: Sequence[Passage], title: str) -> "Figure":
    """Passages with each token on a colour: the deeper, the more bits it took to say it."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    laid = [_lines(one.tokens) for one in passages]
    rows = [1.5 + max((line for line, _, _ in spots), default=0) + 0.7 for spots in laid]
    figure, axes = paper(0.19, LETTERS, sum(rows), title)
    top = 0.0
    for one, spots, height in zip(passages, laid, rows, strict=True):
        axes.axhline(top, color=FAINT, lw=0.8)
        axes.text(0, top + 0.6, one.about, va="center", fontsize=8, color=MUTED)
        for bits, (line, left, text) in zip(one.bits, spots, strict=True):
            middle, colour = top + 1.6 + line, colormaps["OrRd"](0.75 * min(bits / MOST, 1))
            axes.add_patch(Rectangle((left, middle - 0.45), len(text), 0.9, fc=colour, lw=0))
            axes.text(left + len(text) / 2, middle, text, ha="center", va="center", fontsize=7.5,
                      color=INK, family="DejaVu Sans Mono")  # fmt: skip
        top += height
    return figure


def _lines(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """Line, column and shown text of each token."""
    spots, line, left = [], 0, 0
    for token in tokens:
        text = "".join("↵" if letter == "\n" else letter for letter in token)[:LETTERS]
        if left + len(text) > LETTERS:
            line, left = line + 1, 0
        spots.append((line, left, text))
        left += len(text)
    return spots
