"""How sure a number is: intervals over the examples it was measured on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
DRAWS = 2000
"""Resamplings of a bootstrap."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def rounded(numbers: dict[str, Any]) -> dict[str, float]:
    """Sorted by name, floats to six digits, so that the last bits of a sum do not show."""
    return {
        name: int(value) if isinstance(value, int | np.integer) else round(float(value), 6)
        for name, value in sorted(numbers.items())
    }


def bootstrap(
    values: Floats, seed: int, statistic: Callable[[Floats], Floats] | None = None
) -> Interval:
    """95 % percentile bootstrap over examples (Efron 1979) of a statistic of `values` [n, …].

    `statistic` maps resampled values [draws, n, …] to [draws]; the mean when not given. The same
    seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    # Blocks bound the memory at a few million values, however large the split is.
    block = max(1, min(DRAWS, 4_000_000 // max(values.size, 1)))
    results = []
    for start in range(0, DRAWS, block):
        index = generator.integers(count, size=(min(block, DRAWS - start), count))
        sample = values[index]
        results.append(sample.mean(axis=1) if statistic is None else statistic(sample))
    low, high = np.quantile(np.concatenate(results), [0.025, 0.975])
    return Interval(float(low), float(high))


def share(right: NDArray[np.bool_]) -> tuple[float, Interval]:
    """Share of hits, with Wilson's score interval (Wilson 1927).

    For small or spotless groups, where the bootstrap of nothing but hits would claim certainty.
    """
    count, value, z = len(right), float(right.mean()), 1.959964
    middle = (value + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = np.sqrt(value * (1 - value) / count + z**2 / (4 * count**2)) * z / (1 + z**2 / count)
    return value, Interval(float(middle - spread), float(middle + spread))
