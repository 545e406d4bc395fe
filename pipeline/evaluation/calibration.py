"""Whether what is said with a confidence of 80 % is right in 80 % of the cases."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Floats
from pipeline.figures.curves import Reliability

BINS = 15


def reliability(confidence: Floats, right: NDArray[Any], bins: int = BINS) -> Reliability:
    """Confidence [n], 0 to 1, against the share of `right` [n], in equally wide bins of it."""
    edges = np.linspace(0, 1, bins + 1)
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    used = count > 0
    sums = np.bincount(where, weights=confidence, minlength=bins)
    hits = np.bincount(where, weights=right, minlength=bins)
    return Reliability(
        edges[:-1][used],
        edges[1:][used],
        sums[used] / count[used],
        hits[used] / count[used],
        count[used],
    )


def calibration_error(table: Reliability) -> float:
    """Expected calibration error (Guo et al. 2017): the gap of confidence and accuracy, 0 to 1."""
    gaps = np.abs(table.accuracy - table.confidence)
    return float((gaps * table.examples).sum() / table.examples.sum())
