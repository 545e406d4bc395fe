"""What the preparation draws of texts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.classification.data.data_report import Look, report
from pipeline.evaluation import audit
from pipeline.figures.sheets import text_sheet


def word_counts(texts: Sequence[str]) -> NDArray[np.int64]:
    """Number of words of each text."""
    return np.array([len(text.split()) for text in texts])


def read(table: pa.Table, _facts: Any, _path: Path) -> list[str]:
    """The texts of a prepared split."""
    return table["text"].to_pylist()


LOOK = Look(
    column="text",
    read=read,
    sizes=lambda texts, _facts: word_counts(texts),
    unit="words",
    features=audit.text_features,
    near=0.8,
    shown=8,
    sheet=lambda texts, _facts, captions, title: text_sheet(texts, captions, title),
)
data_report = partial(report, LOOK)
