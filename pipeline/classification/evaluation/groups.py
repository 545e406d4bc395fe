"""The groups a split is cut into to see where a model fails."""

from typing import NamedTuple

import numpy as np

from pipeline.classification.data.examples import Examples
from pipeline.classification.evaluation.subject import Sizes
from pipeline.evaluation.intervals import Floats, Integers
from pipeline.evaluation.slices import bands

MOST_NAMES = 40
"""Names of a column, at most: one with more (voices, say) has groups that are too small."""


class Groups(NamedTuple):
    """The group name of each example, and the names in the order to show them."""

    names: list[str]
    order: list[str]


def groups(examples: Examples, classes: list[str], sizes: Sizes) -> dict[str, Groups]:
    """Groups by kind: class, size of the input, and the split's own columns.

    Numbers with more than eight values are cut into four bands of about equal numbers of examples.
    """
    found = {"class": Groups([classes[label] for label in examples.labels], classes)}
    found[sizes.kind] = _banded(sizes.values, sizes.unit)
    for name, values in examples.columns.items():
        different = set(values)
        if len(different) > 8 and all(isinstance(value, int | float) for value in different):
            found[name] = _banded(np.array(values), "")
        elif 1 < len(different) <= MOST_NAMES:
            names = [str(value) for value in values]
            found[name] = Groups(names, sorted(set(names)))
    return found


def _banded(values: Integers | Floats, unit: str) -> Groups:
    names = bands(values, unit)
    ascending = np.argsort(values, kind="stable")
    return Groups(names, list(dict.fromkeys(names[int(i)] for i in ascending)))
