"""What holds for every kind of damage."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.classification.evaluation.subject import Corruption


def check(kind: Corruption, clean: Sequence[Any], again: Sequence[Any]) -> None:
    """None at the first severity, some at each next, the same for the same seed.

    `again` equals `clean`, which no damage may change.
    """
    _equal(clean, kind.apply(clean, kind.severities[0], 0))
    for severity in kind.severities[1:]:
        first, second = (kind.apply(clean, severity, 7) for _ in range(2))
        _equal(first, second)
        assert any(not np.array_equal(a, b) for a, b in zip(first, clean, strict=True))
        assert getattr(first, "dtype", None) == getattr(clean, "dtype", None)
    _equal(clean, again)


def _equal(first: Sequence[Any], second: Sequence[Any]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
