"""Is one model better than another? Paired, on the same examples."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Floats, Interval, bootstrap


class Comparison(NamedTuple):
    """Two models on the same examples; `second` minus `first`.

    Attributes:
        gain: difference of the mean scores.
        interval: its 95 % paired bootstrap interval.
        only_first, only_second: examples on which that one scored higher: was right alone, say.
        p_value: two-sided; of the exact McNemar test where a score is right or wrong, else of the
            Wilcoxon signed-rank test (Wilcoxon 1945).
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
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} are not the same examples")
    gains = second.astype(np.float64) - first.astype(np.float64)
    return Comparison(
        gain=float(gains.mean()),
        interval=bootstrap(gains, seed),
        only_first=int((gains < 0).sum()),
        only_second=int((gains > 0).sum()),
        p_value=_p_value(gains),
    )


def _p_value(gains: Floats) -> float:
    if not gains.any():
        return 1.0
    if np.isin(gains, (-1, 0, 1)).all():
        return mcnemar(int((gains < 0).sum()), int((gains > 0).sum()))
    from scipy.stats import wilcoxon

    return float(wilcoxon(gains).pvalue)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947): a binomial test at one half.

    The counts are of the discordant pairs: right by one model alone. No such pair gives 1.
    """
    from scipy.stats import binomtest

    pairs = only_first + only_second
    return float(binomtest(only_first, pairs, 0.5).pvalue) if pairs else 1.0


def compare_files(first: Path, second: Path) -> Comparison:
    """Compare two tables of predictions by their column `score`, example by example.

    Raises:
        ValueError: they are not of the same examples.
        KeyError: the column is missing.
    """
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(path) for path in (first, second)]
    return compare(*(table["score"].to_numpy() for table in tables))
