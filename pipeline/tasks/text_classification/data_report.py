"""What the preparation draws of texts."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.data_report import Look, report
from pipeline.evaluation import audit
from pipeline.figures.sheets import text_sheet
from pipeline.tasks.text_classification.csv_rows import read


def words(texts: Sequence[str]) -> NDArray[np.int64]:
    """Number of words of each text."""
    return np.array([len(text.split()) for text in texts])


LOOK = Look(
    column="text",
    read=read,
    sizes=lambda texts, _facts: words(texts),
    unit="words",
    features=audit.text_features,
    near=0.8,
    shown=8,
    sheet=lambda texts, _facts, captions, title: text_sheet(texts, captions, title),
)
data_report = partial(report, LOOK)
