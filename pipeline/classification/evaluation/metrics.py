"""Numbers from predictions, each with how sure it is.

Logits are [n, classes], labels int64 [n], probabilities float [n, classes] with rows that sum to 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import calibration
from pipeline.evaluation.intervals import Floats, Integers, bootstrap, rounded, share
from pipeline.figures.curves import Reliability


def scores(
    logits: NDArray[Any], labels: Integers, classes: list[str], seed: int = 0
) -> dict[str, float]:
    """The numbers of `metrics/<model>.json`, flat, sorted by name, rounded to six digits.

    accuracy (accuracy_low and accuracy_high: its bootstrap interval, without a mistake or without a
    hit Wilson's), macro_f1, loss (nats),
    ece, examples, and `precision/<class>`, `recall/<class>`, `f1/<class>`. A class that is never
    predicted has precision 0; one that never occurs has recall 0 and stays out of macro_f1.
    """
    chances = probabilities(logits)
    right = (chances.argmax(axis=1) == labels).astype(np.float64)
    matrix = confusion(chances.argmax(axis=1), labels, len(classes))
    hits, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(actual + predicted, 1)
    # Drawn from nothing but hits, the bootstrap would claim certainty.
    interval = bootstrap(right, seed) if 0 < right.mean() < 1 else share(right > 0)[1]
    numbers = {
        "accuracy": right.mean(),
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "ece": calibration_error(chances, labels),
        "examples": len(labels),
        "loss": log_loss(logits, labels),
        "macro_f1": f1[actual > 0].mean(),
    }
    for index, name in enumerate(classes):
        numbers[f"precision/{name}"] = precision[index]
        numbers[f"recall/{name}"] = recall[index]
        numbers[f"f1/{name}"] = f1[index]
    return rounded(numbers)


def confusion(predicted: Integers, labels: Integers, classes: int) -> Integers:
    """Counts int64 [actual, predicted]."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def log_loss(logits: NDArray[Any], labels: Integers, temperature: float = 1.0) -> float:
    """Mean cross entropy in nats."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    top = scaled.max(axis=1)
    normaliser = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float((normaliser - scaled[np.arange(len(labels)), labels]).mean())


def reliability(chances: Floats, labels: Integers) -> Reliability:
    """Confidence against accuracy in equally wide bins of the predicted class's probability."""
    right = chances.argmax(axis=1) == labels
    return calibration.reliability(chances.max(axis=1).astype(np.float64), right)


def calibration_error(chances: Floats, labels: Integers) -> float:
    """Expected calibration error (Guo et al. 2017): the gap of confidence and accuracy, 0 to 1."""
    return calibration.calibration_error(reliability(chances, labels))


def temperature(logits: NDArray[Any], labels: Integers) -> float:
    """The temperature that minimises the loss on these logits (Guo et al. 2017).

    To be fitted on validation and applied to test. The targets are smoothed by one example's worth
    (Platt 1999): a set without a single error would otherwise ask for boundless confidence. The
    loss is unimodal in log T and searched between T = 0.05 and T = 20.
    """
    from scipy.optimize import minimize_scalar

    smoothing = 1 / (len(labels) + 2)
    pull = float(np.mean(logits) - np.mean(logits[np.arange(len(labels)), labels]))

    def smoothed(log: float) -> float:
        heat = float(np.exp(log))
        return log_loss(logits, labels, heat) - smoothing * pull / heat

    found = minimize_scalar(
        smoothed,
        bounds=(np.log(0.05), np.log(20)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def probabilities(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax over the last axis of logits [n, classes] divided by `temperature`, in float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True))
