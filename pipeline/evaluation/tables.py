"""CSV tables that `dvc plots` draws and the report reads."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.metrics import Floats, Integers, reliability
from pipeline.files import new_file


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """Write rows as CSV with a header; floats with six digits."""
    with (
        new_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_confusion(path: Path, predicted: Integers, labels: Integers, classes: list[str]) -> None:
    """One row per example, columns actual,predicted: what DVC's confusion template counts."""
    pairs = zip(labels, predicted, strict=True)
    rows = ({"actual": classes[a], "predicted": classes[p]} for a, p in pairs)
    write_csv(path, rows, ["actual", "predicted"])


def write_reliability(path: Path, chances: Floats, labels: Integers) -> None:
    """One row per confidence bin that holds an example."""
    table = reliability(chances, labels)
    rows = (dict(zip(table._fields, values, strict=True)) for values in zip(*table, strict=True))
    write_csv(path, rows, list(table._fields))


def _cell(value: Any) -> Any:
    return f"{float(value):.6g}" if isinstance(value, float | np.floating) else value
