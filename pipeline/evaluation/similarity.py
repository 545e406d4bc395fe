"""How alike two representations of the same examples are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def linear_cka(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019) of features [n, d1] and [n, d2].

    1 for the same features up to rotation and one scale, 0 for unrelated ones. Representations
    that don't vary at all have no similarity: 0.
    """
    return float(cka_matrix({"": first}, {"": second})[0, 0])


def cka_matrix(
    rows: Mapping[str, NDArray[Any]], columns: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """Linear CKA of each representation in `rows` with each in `columns`."""
    left = [_gram(features) for features in rows.values()]
    right = left if columns is rows else [_gram(features) for features in columns.values()]
    norms = np.array([[np.linalg.norm(a) * np.linalg.norm(b) for b in right] for a in left])
    products = np.array([[np.vdot(a, b) for b in right] for a in left])
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def _gram(features: NDArray[Any]) -> NDArray[np.float64]:
    """Centred Gram matrix [n, n]: n examples are enough for CKA, whatever the width."""
    centred = np.asarray(features, dtype=np.float64)
    centred = centred.reshape(len(centred), -1)
    centred = centred - centred.mean(axis=0)
    return centred @ centred.T
