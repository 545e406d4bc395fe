"""What can be had without deep learning, on the same rows of the same splits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.comparison import compare
from pipeline.evaluation.intervals import bootstrap


class Baseline(NamedTuple):
    """A simple rule's accuracy, and what the model gains over it on the same examples."""

    name: str
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    p_value: float


def baseline(
    name: str, right: NDArray[np.bool_], model: NDArray[np.bool_], seed: int = 0
) -> Baseline:
    """Set a baseline's hits against the model's, both bool [n] over the same test examples."""
    own, gain = bootstrap(right.astype(np.float64), seed), compare(right, model, seed)
    return Baseline(name, float(right.mean()), *own, gain.gain, *gain.interval, gain.p_value)


def tfidf(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Sparse TF-IDF of words and word pairs that occur at least twice in training."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectoriser = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        return vectoriser.fit_transform(train), vectoriser.transform(test)
    except ValueError:  # Nothing occurs twice, as in a tiny split: take what there is.
        vectoriser = TfidfVectorizer(tokenizer=str.split, token_pattern=None)
        return vectoriser.fit_transform(train), vectoriser.transform(test)


def standardise(
    train: NDArray[Any], test: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features [n, d] with the training split's mean 0 and deviation 1 per column."""
    middle, spread = train.mean(axis=0), train.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    return (train - middle) / spread, (test - middle) / spread
