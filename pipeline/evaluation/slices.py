"""Where a model fails: accuracy by parts of a split."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import share

SMALLEST = 20
"""Examples of a slice, at least."""


class Slice(NamedTuple):
    """Accuracy of one part, with its 95 % interval."""

    kind: str
    name: str
    examples: int
    accuracy: float
    low: float
    high: float


def slices(right: NDArray[np.bool_], groups: Mapping[str, Sequence[str]]) -> list[Slice]:
    """Accuracy in each group of each kind; groups of fewer than `SMALLEST` examples are left out.

    `groups` maps a kind (class, length, accent, …) to the group name of each example. The order is
    that in which the names first occur.
    """
    found = []
    for kind, names in groups.items():
        members = np.asarray(names)
        for name in dict.fromkeys(names):
            part = right[members == name]
            if len(part) >= SMALLEST:
                value, interval = share(part)
                found.append(Slice(kind, name, len(part), value, *interval))
    return found


def worst(found: Sequence[Slice]) -> Slice | None:
    """The slice whose accuracy is lowest; of equal ones the larger. None without slices."""
    return min(found, key=lambda part: (part.accuracy, -part.examples), default=None)


def bands(values: NDArray[Any], unit: str) -> list[str]:
    """Name for each value the quarter of them that it lies in, such as `11–18 words`.

    Equal values always share a band, so there may be fewer than four; float values are shown with
    two digits.
    """
    edges = np.unique(np.quantile(values, [0.25, 0.5, 0.75]))
    where = np.searchsorted(edges, values, side="left")
    digits = ".2f" if values.dtype.kind == "f" else ""
    names = {}
    for band in np.unique(where):
        inside = values[where == band]
        low, high = f"{inside.min():{digits}}", f"{inside.max():{digits}}"
        span = f"{low}–{high}" if low != high else low
        names[int(band)] = f"{span} {unit}".strip()
    return [names[int(band)] for band in where]
