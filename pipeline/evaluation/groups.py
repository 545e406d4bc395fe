"""The groups a split is cut into to see where a model fails."""

from typing import NamedTuple

import numpy as np

from pipeline.evaluation.examples import Examples, Task
from pipeline.evaluation.metrics import Floats, Integers
from pipeline.evaluation.slices import bands

MOST_NAMES = 40
"""Names of a column, at most: one with more (voices, say) has groups that are too small."""


class Groups(NamedTuple):
    """The group name of each example, and the names in the order to show them."""

    names: list[str]
    order: list[str]


def groups(
    task: Task, examples: Examples, classes: list[str], sample_rate: int | None = None
) -> dict[str, Groups]:
    """Groups by kind: class, size or length of the input, and the split's own columns.

    Numbers with more than eight values are cut into four bands of about equal numbers of examples.
    """
    found = {"class": Groups([classes[label] for label in examples.labels], classes)}
    if task == "image":
        brightness = examples.raw.reshape(len(examples), -1).mean(axis=1) / 2.55
        found["ink"] = _banded(brightness.round().astype(np.int64), "% of full ink")
    elif task == "text":
        words = np.array([len(text.split()) for text in examples.raw])
        found["length"] = _banded(words, "words")
    elif sample_rate is not None:
        seconds = np.array([len(wave) for wave in examples.raw]) / sample_rate
        found["duration"] = _banded(seconds, "s")
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
