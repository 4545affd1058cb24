"""Covariances of signals, and their shrinkage."""

from typing import Any, Literal

import numpy as np
from jaxtyping import ArrayLike, Float
from sklearn.base import TransformerMixin
from sklearn.covariance import ledoit_wolf, oas

from bwflow import _checks
from bwflow.estimators import _inputs
from bwflow.estimators._computing import symmetric
from bwflow.estimators._inputs import OnMatrices

_ESTIMATED = {"ledoit_wolf": ledoit_wolf, "oas": oas}


class Covariances(TransformerMixin, OnMatrices):
    """Covariances of signals: `C = (x - mean) (x - mean)^T / n_times`, shrunk if asked for.

    Parameters
    ----------
    shrinkage
        None; the share `s` in `(1 - s) C + s (tr C / n_channels) I`; or how to estimate it for
        each signal, `"ledoit_wolf"` or `"oas"`.

    Attributes
    ----------
    n_features_in_
        Channels.

    Raises
    ------
    ValueError
        If signals are not of the shape `(n_signals, n_channels, n_times)` with two times or more,
        not finite, or in `transform` not of as many channels as in `fit`; if `shrinkage` is none
        of those above.

    Notes
    -----
    Nothing is learnt in `fit`. With fewer times than channels, or a common reference of channels,
    unshrunk covariances are singular, which the other estimators here take as they are.

    References
    ----------
    Ledoit, Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices.
    Chen, Wiesel, Eldar, Hero (2010), Shrinkage algorithms for MMSE covariance estimation.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> signal = np.array([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, -2.0, -2.0]])
    >>> print(bw.estimators.Covariances(shrinkage=0.5).fit_transform(signal[None]))
    [[[1.75 0.  ]
      [0.   3.25]]]
    """

    def __init__(self, shrinkage: Literal["ledoit_wolf", "oas"] | float | None = None):
        self.shrinkage = shrinkage

    def __sklearn_tags__(self):
        return _stateless(super().__sklearn_tags__())

    def fit(self, X: ArrayLike, y: Any = None) -> "Covariances":
        """Count the channels."""
        self._shrinkage()
        self.n_features_in_ = _signals(X).shape[1]
        return self

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "N n n"]:
        """The covariance of each signal."""
        signals, shrinkage = _signals(X), self._shrinkage()
        expected = getattr(self, "n_features_in_", signals.shape[1])
        if signals.shape[1] != expected:
            raise ValueError(
                f"X must hold signals of {expected} channels, as in fit; got shape {signals.shape}."
            )
        if isinstance(shrinkage, str):
            estimate = _ESTIMATED[shrinkage]
            found = np.stack([np.atleast_2d(estimate(signal.T)[0]) for signal in signals])
            return symmetric(found.astype(signals.dtype, copy=False))
        centred = signals - np.mean(signals, axis=2, keepdims=True)
        return _shrunk(centred @ centred.swapaxes(1, 2) / signals.shape[2], shrinkage)

    def _shrinkage(self) -> str | float:
        if self.shrinkage is None:
            return 0.0
        if isinstance(self.shrinkage, str):
            _checks.choice("shrinkage", self.shrinkage, tuple(_ESTIMATED))
            return self.shrinkage
        return _share(self.shrinkage)


class ShrunkCovariances(TransformerMixin, OnMatrices):
    """Covariances moved towards multiples of the identity: `(1 - s) A + s (tr A / n_channels) I`.

    Parameters
    ----------
    shrinkage
        `s`, between 0 and 1.

    Attributes
    ----------
    n_features_in_
        Channels.

    Raises
    ------
    ValueError
        If `shrinkage` is out of range; if matrices are not symmetric positive semi-definite, or in
        `transform` not of the size of those in `fit`.

    Notes
    -----
    Nothing is learnt in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> print(bw.estimators.ShrunkCovariances(0.5).fit_transform(np.diag([1.0, 3.0])[None]))
    [[[1.5 0. ]
      [0.  2.5]]]
    """

    def __init__(self, shrinkage: float = 0.1):
        self.shrinkage = shrinkage

    def __sklearn_tags__(self):
        return _stateless(super().__sklearn_tags__())

    def fit(self, X: ArrayLike, y: Any = None) -> "ShrunkCovariances":
        """Count the channels."""
        _share(self.shrinkage)
        self._given(X)
        return self

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "N n n"]:
        """The shrunk covariances."""
        X = _inputs.covariances("X", X, size=getattr(self, "n_features_in_", None))
        return _shrunk(X, _share(self.shrinkage))


def _signals(X: ArrayLike) -> Float[np.ndarray, "N n t"]:
    expected = "signals, of shape (n_signals, n_channels, n_times)"
    signals = _inputs.three_dimensional("X", X, expected)
    if signals.shape[1] < 1 or signals.shape[2] < 2:
        raise ValueError(
            f"X must be {expected}, of a channel and two times or more; got shape {signals.shape}."
        )
    return signals


def _share(shrinkage: float) -> float:
    with _inputs.in_precision("float64"):
        return float(_checks.scalar("shrinkage", shrinkage, np.float64, minimum=0.0, maximum=1.0))


def _shrunk(A: Float[np.ndarray, "N n n"], share: float) -> Float[np.ndarray, "N n n"]:
    n = A.shape[1]
    scales = np.trace(A, axis1=1, axis2=2)[:, None, None] / n
    return symmetric((1 - share) * A + share * scales * np.eye(n, dtype=A.dtype))


def _stateless(tags: Any) -> Any:
    tags.requires_fit = False
    return tags
