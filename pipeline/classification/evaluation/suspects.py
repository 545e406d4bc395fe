"""Labels that may be wrong: a list for a person to go through."""

from typing import NamedTuple

import numpy as np

from pipeline.evaluation.intervals import Floats, Integers


class Suspect(NamedTuple):
    """One example whose label the model does not believe.

    Attributes:
        row: its row in the split.
        label, prediction: class indices.
        margin: probability of the prediction minus that of the label, 0 to 1.
    """

    row: int
    label: int
    prediction: int
    margin: float


def suspects(chances: Floats, labels: Integers, most: int) -> list[Suspect]:
    """Examples where model and label disagree, the most certain disagreement first.

    Ranked by the margin between the likeliest class and the label (the normalised margin of
    Northcutt et al. 2021, "Confident learning"). `chances` must be of examples that the model was
    not trained on: held out, or out of fold.
    """
    likeliest = chances.argmax(axis=1)
    margins = chances.max(axis=1) - chances[np.arange(len(labels)), labels]
    rows = np.flatnonzero(likeliest != labels)
    rows = rows[np.argsort(-margins[rows], kind="stable")][:most]
    return [
        Suspect(int(row), int(labels[row]), int(likeliest[row]), float(margins[row]))
        for row in rows
    ]


def confident_mistakes(chances: Floats, labels: Integers, most: int) -> Integers:
    """Rows of the wrong predictions, the most confident first, at most `most`."""
    rows = np.flatnonzero(chances.argmax(axis=1) != labels)
    order = np.argsort(-chances[rows].max(axis=1), kind="stable")
    return rows[order][:most]
