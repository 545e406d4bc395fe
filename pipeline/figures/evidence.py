"""Where in an input the answer comes from: words of a sentence, moments of a sound."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.figures.style import (
    CYCLE,
    FAINT,
    INK,
    LINES,
    MOST_CLASSES,
    MUTED,
    WIDTH,
    canvas,
    drawn,
    paper,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NUMBER = 0.4
"""Inches that a number over a word takes."""
NAMED = 3
"""Classes whose evidence is drawn in colour."""


class Words(NamedTuple):
    """Words of one sentence, what each adds to the answer, and a line about the sentence."""

    words: Sequence[str]
    scores: Sequence[float]
    about: str


def join_pieces(tokens: Sequence[str], scores: Sequence[float]) -> tuple[list[str], list[float]]:
    """Join word pieces (`##ing`, or `Ġ` at a word's start) into words; scores add up."""
    words: list[str] = []
    sums: list[float] = []
    marked = any(token.startswith(("Ġ", "▁")) for token in tokens)
    for token, score in zip(tokens, scores, strict=True):
        goes_on = token.startswith("##") or (
            marked and words and not token.startswith(("Ġ", "▁", "<"))
        )
        if goes_on and words:
            words[-1] += token.removeprefix("##")
            sums[-1] += float(score)
        else:
            words.append(token.lstrip("Ġ▁"))
            sums.append(float(score))
    return words, sums


@drawn
def word_attribution(sentences: Sequence[Words], title: str) -> "Figure":
    """Sentences with each word shaded by what it adds to the answer given.

    Red speaks for the answer, blue for another; the two also differ by the sign printed over the
    strongest words.
    """
    from matplotlib import colormaps

    size = 9.0
    lines = [_lay_out(sentence.words, WIDTH - 0.25, size) for sentence in sentences]
    heights = [
        0.32 + 0.36 * (1 + max((line for line, _, _ in spots), default=0)) + 0.1 for spots in lines
    ]
    figure, axes = paper(1, WIDTH, sum(heights), title)
    top = 0.0
    for sentence, spots, height in zip(sentences, lines, heights, strict=True):
        scores = np.asarray(sentence.scores)
        limit = float(np.abs(scores).max()) or 1.0
        digits = 1 if limit >= 1 else 2
        named = _apart(np.argsort(-np.abs(scores), kind="stable")[:4].tolist(), spots)
        axes.axhline(top, color=FAINT, lw=0.8)
        axes.text(0, top + 0.2, sentence.about, va="center", fontsize=8, color=MUTED)
        for number, (word, score, (line, left, extent)) in enumerate(
            zip(sentence.words, scores, spots, strict=True)
        ):
            middle = top + 0.32 + 0.36 * line + 0.22
            share = score / limit
            axes.text(
                left + extent / 2, middle, word, ha="center", va="center", fontsize=size, color=INK,
                bbox={
                    "boxstyle": "square,pad=0.12",
                    "facecolor": colormaps["RdBu_r"](0.5 + 0.32 * share),
                    "linewidth": 0,
                },
            )  # fmt: skip
            if number in named and abs(share) > 0.15:
                axes.text(
                    left + extent / 2, middle - 0.175, f"{score:+.{digits}f}",
                    ha="center", va="center", fontsize=7, color=INK,
                )  # fmt: skip
        top += height
    return figure


class Clip(NamedTuple):
    """One sound: log-mel [mels, frames], evidence [frames, classes], seconds, a line about it."""

    spectrogram: NDArray[np.float32]
    evidence: NDArray[np.float32]
    seconds: float
    about: str


@drawn
def evidence(clips: Sequence[Clip], classes: Sequence[str], title: str) -> "Figure":
    """Spectrograms, and under each the evidence gathered so far for the likeliest classes.

    Those after the first `NAMED` are faint; beyond `MOST_CLASSES` they are left out.
    """
    figure = canvas(3.1 * len(clips), 4.0, title)
    grid: Any = figure.subplots(2, len(clips), squeeze=False, height_ratios=[1, 1.15])
    for column, clip in enumerate(clips):
        top, bottom = grid[0][column], grid[1][column]
        extent = (0, clip.seconds, 0, len(clip.spectrogram))
        top.imshow(
            clip.spectrogram, origin="lower", aspect="auto", cmap="magma", extent=extent,
            interpolation="antialiased",
        )  # fmt: skip
        top.set_title(clip.about, fontsize=8.5)
        top.set_xticks([])
        top.set_yticks([])
        gathered = clip.evidence.cumsum(axis=0)
        time = (np.arange(len(gathered)) + 1) / len(gathered) * clip.seconds
        ranked = np.argsort(-gathered[-1], kind="stable")
        for index in np.sort(ranked[NAMED:MOST_CLASSES]):
            bottom.plot(time, gathered[:, index], color=FAINT, lw=1)
        for rank, index in enumerate(ranked[:NAMED]):
            bottom.plot(
                time, gathered[:, index], color=CYCLE[rank], ls=LINES[rank], label=classes[index]
            )
        bottom.set_xlim(0, clip.seconds)
        bottom.set_xlabel("seconds")
        bottom.margins(y=0.18)
        bottom.legend(loc="upper left", fontsize=7.5)
        bottom.grid(axis="y")
    grid[0][0].set_ylabel("mel bands", fontsize=8)
    grid[1][0].set_ylabel("evidence so far (logit)", fontsize=8)
    return figure


def _apart(ranked: Sequence[int], spots: Sequence[tuple[int, float, float]]) -> set[int]:
    """Of the words `ranked`, those whose numbers don't run into that of a higher rank."""
    kept: list[int] = []
    for number in ranked:
        line, left, extent = spots[number]
        if all(
            spots[other][0] != line
            or abs(left + extent / 2 - spots[other][1] - spots[other][2] / 2) > NUMBER
            for other in kept
        ):
            kept.append(number)
    return set(kept)


def _lay_out(words: Sequence[str], width: float, size: float) -> list[tuple[int, float, float]]:
    """Line, left edge and width in inches of each word, measured in the figure's font."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family="DejaVu Sans", size=size)
    spots = []
    line, left = 0, 0.06
    for word in words:
        extent = float(TextPath((0, 0), word, prop=font).get_extents().width) / 72
        if left + extent > width and left > 0.06:
            line, left = line + 1, 0.06
        spots.append((line, left, extent))
        left += extent + 0.13
    return spots
