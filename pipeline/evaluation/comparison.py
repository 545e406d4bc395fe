"""Is one model better than another? Paired, on the same examples."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Interval, bootstrap


class Comparison(NamedTuple):
    """Two models on the same examples; `second` minus `first`.

    Attributes:
        gain: difference of the mean scores.
        interval: its 95 % paired bootstrap interval.
        only_first, only_second: examples on which that one scored higher: was right alone, say.
        p_value: two-sided; of the exact McNemar test (McNemar 1947), a binomial test at one half,
            where a score is right or wrong, else of the Wilcoxon signed-rank test (Wilcoxon 1945);
            1 if all scores are equal.
    """

    gain: float
    interval: Interval
    only_first: int
    only_second: int
    p_value: float


def compare(first: NDArray[Any], second: NDArray[Any], seed: int = 0) -> Comparison:
    """Compare two models by their score on each example, bool or float [n] in the same order.

    Raises:
        ValueError: the two are not of the same examples.
    """
    from scipy.stats import binomtest, wilcoxon

    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} are not the same examples")
    gains = second.astype(np.float64) - first.astype(np.float64)
    only_first, only_second = int((gains < 0).sum()), int((gains > 0).sum())
    if not gains.any():
        p_value = 1.0
    elif np.isin(gains, (-1, 0, 1)).all():
        p_value = float(binomtest(only_first, only_first + only_second, 0.5).pvalue)
    else:
        p_value = float(wilcoxon(gains).pvalue)
    interval = bootstrap(gains, seed)
    return Comparison(float(gains.mean()), interval, only_first, only_second, p_value)


def compare_files(first: Path, second: Path) -> Comparison:
    """Compare two tables of predictions by their column `score`, example by example.

    Raises:
        ValueError: they are not of the same examples.
        KeyError: the column is missing.
    """
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(path) for path in (first, second)]
    return compare(*(table["score"].to_numpy() for table in tables))
