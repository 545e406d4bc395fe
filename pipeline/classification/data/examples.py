"""The rows of a split as a person would look at them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.classification.data.labels import labels_of
from pipeline.evaluation.intervals import Integers
from pipeline.prepared import SplitName, read_split

Raw = Any
"""Images uint8 [n, channels, height, width], texts list[str], or waveforms list of float32 [t]."""
Read = Callable[[pa.Table, Any, Path], Raw]


@dataclass(frozen=True)
class Examples:
    """Raw rows of one split.

    Attributes:
        raw: see `Raw`.
        labels: int64 [n].
        columns: further columns by name, such as `speaker` or `accent`, each a list of n.
    """

    raw: Raw
    labels: Integers
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | Integers) -> "Examples":
        """The given rows, in that order."""
        return Examples(
            take(self.raw, rows),
            self.labels[np.asarray(rows, dtype=np.int64)],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
        )


def sample_rows(count: int, most: int, seed: int) -> Integers:
    """At most `most` of `count` row numbers, ascending; the same for the same seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def take(raw: Raw, rows: Sequence[int] | Integers) -> Raw:
    """Some rows of raw examples, of the same kind."""
    if isinstance(raw, np.ndarray):
        return raw[np.asarray(rows, dtype=np.int64)]
    return [raw[int(i)] for i in rows]


def read_examples(folder: Path, split: SplitName, task: str, column: str, read: Read) -> Examples:
    """A split of a prepared data set of `task`, for looking at.

    `read` makes the raw examples, which are in `column`, of the table, its facts and its path.

    Raises:
        PipelineError: the split is missing, damaged, or has a corrupt example.
    """
    card, table = read_split(folder, split, task)
    path = folder / f"{split}.parquet"
    labels = labels_of(table, card.facts.classes, path)
    others = [name for name in table.column_names if name not in (column, "label")]
    columns = {name: table[name].to_pylist() for name in others}
    return Examples(read(table, card.facts, path), labels, columns)
