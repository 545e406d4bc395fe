"""What can be read off a representation by a linear classifier, with one budget for all depths.

Linear probes: Alain & Bengio 2017, "Understanding intermediate layers using linear classifier
probes". The budget is the number of examples, of dimensions and of iterations, so a depth does not
win by being wider.
"""

import warnings
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import Integers

DIMENSIONS = 128
"""Principal components that a probe sees, at most."""
ITERATIONS = 200
"""Of a probe's training, at most."""


def one_thread() -> AbstractContextManager[Any]:
    """Keep BLAS to one thread, and the result independent of their number.

    On matrices this small two threads that wait for each other beside a busy process took 7 to 45
    times as long as one.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(1, user_api="blas")


def project(train: Any, test: Any, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre on `train` and keep its first principal components, scaled to a mean variance of 1.

    Arrays [n, d] or scipy sparse matrices, which are not centred (that would fill them). Returns
    float64 [n, min(DIMENSIONS, d, n_train - 1)] each.
    """
    from scipy.sparse import issparse, linalg

    if issparse(train):
        kept = min(DIMENSIONS, min(train.shape) - 1)
        start = np.random.default_rng(seed).normal(size=min(train.shape))
        axes = linalg.svds(train.astype(np.float64), k=kept, v0=start)[2]
        first, second = train @ axes.T, test @ axes.T
        middle = first.mean(axis=0)
        first, second = first - middle, second - middle
    else:
        train = np.asarray(train, dtype=np.float64)
        middle = train.mean(axis=0)
        first, second = train - middle, np.asarray(test, dtype=np.float64) - middle
        if train.shape[1] > DIMENSIONS:
            # Eigenvectors of the smaller of the two Gram matrices: cheaper than an SVD of the data.
            if train.shape[1] <= len(train):
                axes = np.linalg.eigh(first.T @ first)[1][:, : -DIMENSIONS - 1 : -1]
            else:
                values, vectors = np.linalg.eigh(first @ first.T)
                kept = min(DIMENSIONS, len(train) - 1)
                top = slice(-1, -kept - 1, -1)
                axes = first.T @ (vectors[:, top] / np.sqrt(np.maximum(values[top], 1e-12)))
            first, second = first @ axes, second @ axes
    scale = np.sqrt(first.var(axis=0).mean())
    return first / max(scale, 1e-12), second / max(scale, 1e-12)


def fit_and_predict(train: Any, labels: Integers, test: Any) -> Integers:
    """Labels int64 [n] that an L2-regularised logistic regression gives to `test`.

    The iterations are the budget: ending on it before convergence is no error.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) == 1:
        return np.full(test.shape[0], labels[0])
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=ITERATIONS).fit(train, labels)
    return np.asarray(model.predict(test), dtype=np.int64)


def probe(
    train: Any, train_labels: Integers, test: Any, test_labels: Integers, seed: int = 0
) -> NDArray[np.bool_]:
    """Which test examples a linear probe on these features gets right, bool [n_test]."""
    with one_thread():
        first, second = project(train, test, seed)
    return fit_and_predict(first, train_labels, second) == test_labels
