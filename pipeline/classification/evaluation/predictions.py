"""From a model and a split to the table of predictions that everything else is computed from."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.classification.evaluation.metrics import probabilities
from pipeline.errors import PipelineError
from pipeline.files import new_file


class Predictions(NamedTuple):
    """Logits float32 [n, classes] and labels int64 [n], in the split's own order."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


def refuse_non_finite(logits: NDArray[np.float32]) -> None:
    """Stop where a model's answer is no number.

    Raises:
        PipelineError: says how many examples and the first row.
    """
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise PipelineError(
            f"the model's output is not finite for {len(bad)} of {len(logits)} examples "
            f"(first: row {bad[0]}); train it again with a lower optimizer.lr or precision=fp32"
        )


def write_predictions(path: Path, predictions: Predictions, classes: list[str]) -> None:
    """Write one row per example: score, label, prediction, confidence, probabilities, in order.

    `score` is 1 where the model is right, else 0. `label` and `prediction` are int64 indices into
    the class names, which are in the Parquet schema's metadata under `classes`; the other columns
    are float32.
    """
    import pyarrow
    import pyarrow.parquet

    chances = probabilities(predictions.logits).astype(np.float32)
    table = pyarrow.table(
        {
            "score": (chances.argmax(axis=1) == predictions.labels).astype(np.float32),
            "label": predictions.labels,
            "prediction": chances.argmax(axis=1),
            "confidence": chances.max(axis=1),
            "probabilities": pyarrow.FixedSizeListArray.from_arrays(
                pyarrow.array(chances.ravel()), chances.shape[1]
            ),
        },
        metadata={"classes": json.dumps(classes, ensure_ascii=False)},
    )
    with new_file(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


class PredictionTable(NamedTuple):
    """What `write_predictions` wrote: labels int64 [n], probabilities float32 [n, classes]."""

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    classes: list[str]


def read_predictions(path: Path) -> PredictionTable:
    """Read a table of predictions.

    Raises:
        PipelineError: the file is missing or is no such table.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        classes = json.loads(table.schema.metadata[b"classes"])
        chances = table["probabilities"].combine_chunks().flatten().to_numpy()
        labels = table["label"].to_numpy()
        return PredictionTable(labels, chances.reshape(len(labels), len(classes)), classes)
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; run `dvc repro evaluate` to make it") from None
    except (pyarrow.ArrowException, KeyError, TypeError, ValueError) as error:
        raise PipelineError(
            f"{path} is no table of predictions ({error}); delete it and run `dvc repro evaluate`"
        ) from error
