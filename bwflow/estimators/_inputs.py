"""What the estimators take: arrays of matrices, labels and weights, refused by name."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, column_or_1d

from bwflow import _checks
from bwflow._process import in_precision

METRIC = "bures_wasserstein"
_DTYPES = (np.float64, np.float32)


class OnMatrices(BaseEstimator):
    """An estimator of arrays of three dimensions."""

    n_features_in_: int

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        if tags.transformer_tags is not None:
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _given(self, X: ArrayLike) -> Float[np.ndarray, "N n n"]:
        """Covariances to fit; and the parameters are looked at."""
        _checks.choice("metric", getattr(self, "metric", METRIC), (METRIC,))
        X = covariances("X", X)
        self.n_features_in_ = X.shape[1]
        return X

    def _met(self, X: ArrayLike) -> Float[np.ndarray, "N n n"]:
        """Covariances to apply what was fitted to."""
        check_is_fitted(self)
        return covariances("X", X, size=self.n_features_in_)


def floating(name: str, X: Any, **options: Any) -> np.ndarray:
    """A finite array of `float32` or `float64`; others become `float64`."""
    check: Any = check_array
    return check(X, dtype=_DTYPES, input_name=name, **options)


def three_dimensional(name: str, X: ArrayLike, expected: str) -> Float[np.ndarray, "N n m"]:
    """Such an array of three dimensions."""
    array = floating(name, X, ensure_2d=False, allow_nd=True)
    if array.ndim != 3:
        raise ValueError(f"{name} must be {expected}; got shape {array.shape}.")
    return array


def covariances(name: str, X: ArrayLike, *, size: int | None = None) -> Float[np.ndarray, "N n n"]:
    """Symmetric positive semi-definite matrices, of that size."""
    expected = "covariances, of shape (n_matrices, n_channels, n_channels)"
    array = three_dimensional(name, X, expected)
    if array.shape[1] != array.shape[2]:
        raise ValueError(f"{name} must be {expected}; got shape {array.shape}.")
    if size is not None and array.shape[1] != size:
        raise ValueError(
            f"{name} must hold matrices of {size} x {size}, as it did in fit; "
            f"got shape {array.shape}."
        )
    with in_precision(str(array.dtype)):
        _checks.covariance_matrices(name, array)
    return array


def labels(name: str, y: Any, X: np.ndarray) -> np.ndarray:
    """One label for each matrix."""
    found = column_or_1d(y, warn=True)
    if len(found) != len(X):
        raise ValueError(
            f"{name} must have {len(X)} entries, one for each matrix of X; got {len(found)}."
        )
    return found


def places(name: str, y: np.ndarray, known: np.ndarray) -> Int[np.ndarray, " N"]:
    """Where labels stand among the known ones, which are sorted."""
    found = np.minimum(np.searchsorted(known, y), len(known) - 1)
    strange = known[found] != y
    if np.any(strange):
        raise ValueError(
            f"{name} must hold labels among {_checks.shown(known.tolist())}; "
            f"got {_checks.shown(np.unique(y[strange]).tolist())}."
        )
    return found


def weights(name: str, w: ArrayLike | None, X: np.ndarray) -> Float[np.ndarray, " N"]:
    """One weight for each matrix, not negative; ones by default."""
    if w is None:
        return np.ones(len(X))
    with in_precision("float64"):
        found = np.asarray(_checks.numbers(name, w, np.float64, ndim=1, minimum=0.0), np.float64)
    if len(found) != len(X):
        raise ValueError(
            f"{name} must have {len(X)} entries, one for each matrix of X; got {len(found)}."
        )
    return found
