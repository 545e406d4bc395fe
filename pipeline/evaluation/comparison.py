"""Is one model better than another? Paired, on the same examples."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Interval, bootstrap


class Comparison(NamedTuple):
    """Two models on the same examples; `second` minus `first`.

    Attributes:
        gain: difference of the accuracies.
        interval: its 95 % paired bootstrap interval.
        only_first, only_second: examples that one got right and the other wrong.
        p_value: two-sided exact McNemar test.
    """

    gain: float
    interval: Interval
    only_first: int
    only_second: int
    p_value: float


def compare(first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int = 0) -> Comparison:
    """Compare two models by which examples each got right, bool [n] in the same order.

    Raises:
        ValueError: the two are not of the same examples.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} are not the same examples")
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    gains = second.astype(np.float64) - first.astype(np.float64)
    return Comparison(
        gain=float(gains.mean()),
        interval=bootstrap(gains, seed),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (McNemar 1947): a binomial test at one half.

    The counts are of the discordant pairs: right by one model alone. No such pair gives 1.
    """
    from scipy.stats import binomtest

    pairs = only_first + only_second
    return float(binomtest(only_first, pairs, 0.5).pvalue) if pairs else 1.0


def compare_files(first: Path, second: Path) -> Comparison:
    """Compare two tables of predictions, columns `label` and `prediction`, example by example.

    Raises:
        ValueError: they are not of the same examples.
        KeyError: a column is missing.
    """
    import pyarrow.parquet

    tables = [pyarrow.parquet.read_table(path) for path in (first, second)]
    labels, others = (table["label"].to_numpy() for table in tables)
    if not np.array_equal(labels, others):
        raise ValueError(f"{first} and {second} are not of the same examples")
    rights = [table["prediction"].to_numpy() == labels for table in tables]
    return compare(*rights)
