"""Covariances as vectors, in the tangent space at their barycenter."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from bwflow.estimators import _computing, _inputs
from bwflow.estimators._inputs import METRIC, OnMatrices


class TangentSpace(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OnMatrices):
    """Logarithms at the barycenter, in an orthonormal basis: lengths are distances to it.

    The tangent vector `V = S M + M S` at the reference `M = Q diag(a) Q^T` has the squared length
    `tr (S M S)`; its coordinates are `(a_i + a_j)^{1/2} (Q^T S Q)_ij` for `i < j` and
    `a_i^{1/2} (Q^T S Q)_ii`.

    Parameters
    ----------
    metric
        `"bures_wasserstein"`.
    rtol, max_steps
        Of the barycenter, as for `MDM`.

    Attributes
    ----------
    reference_
        The barycenter, `(n_channels, n_channels)`.
    eigenvalues_, eigenvectors_
        Those of the reference, ascending; what is rounding is 0.
    n_features_in_
        Channels.

    Raises
    ------
    ValueError
        In `fit` and after, if a parameter is out of range, or if matrices are not symmetric
        positive semi-definite, or not of one size.

    Notes
    -----
    `n_channels (n_channels + 1) / 2` features, in the order of the upper triangle, row by row.
    Where eigenvalues of the reference are repeated its basis is one of many; another one only
    rotates the features.

    Of matrices with ranges inside that of the reference nothing is lost, even if it is singular;
    features of two directions outside of its range are 0 always.

    References
    ----------
    Barachant, Bonnet, Congedo, Jutten (2012), Multiclass brain-computer interface classification by
    Riemannian geometry.
    Malago, Montrucchio, Pistone (2018), Wasserstein Riemannian geometry of Gaussian densities.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> X = np.array([1.0, 9.0, 1.0, 9.0])[:, None, None] * np.eye(2)
    >>> print(bw.estimators.TangentSpace().fit_transform(X).round(4)[:2])
    [[-1.  0. -1.]
     [ 1.  0.  1.]]
    """

    reference_: np.ndarray
    eigenvalues_: np.ndarray
    eigenvectors_: np.ndarray

    def __init__(self, metric: str = METRIC, rtol: float = 1e-8, max_steps: int = 500):
        self.metric = metric
        self.rtol = rtol
        self.max_steps = max_steps

    def fit(
        self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> "TangentSpace":
        """The barycenter.

        Parameters
        ----------
        X
            Covariances.
        y
            Ignored.
        sample_weight
            Weights, not negative and not all 0.
        """
        X = self._given(X)
        w = _inputs.weights("sample_weight", sample_weight, X)
        if not np.any(w):
            raise ValueError("sample_weight must not be zero for all matrices; it is.")
        group = np.zeros(len(X), int)
        [self.reference_] = _computing.barycenters(
            X, group, w, rtol=self.rtol, max_steps=self.max_steps
        )
        self.eigenvalues_, self.eigenvectors_ = _computing.eigenpairs(self.reference_)
        return self

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "N p"]:
        """Coordinates of the logarithms."""
        X = self._met(X)
        X, a, Q = _computing.in_one_precision(X, self.eigenvalues_, self.eigenvectors_)
        F = Q * np.sqrt(a)[None, :]
        Z = _computing.lifts(np.broadcast_to(F, X.shape), X)
        # Lifts are `S F`: off the diagonal two entries for one coordinate.
        Y = Q.T @ Z
        i, j = np.triu_indices(len(a))
        onto = _shares(a)
        return np.where(i == j, Y[:, i, i], onto[i, j] * Y[:, i, j] + onto[j, i] * Y[:, j, i])

    def inverse_transform(self, X: ArrayLike) -> Float[np.ndarray, "N n n"]:
        """Covariances from coordinates: the exponentials.

        Parameters
        ----------
        X
            `(n_matrices, n_channels (n_channels + 1) / 2)`.

        Notes
        -----
        It undoes `transform` for matrices with ranges inside that of the reference. All other
        vectors give covariances, too, but those beyond `I + S >= 0` have another logarithm.
        """
        check_is_fitted(self)
        vectors = _inputs.floating("X", X)
        if vectors.shape[1] != self._n_features_out:
            raise ValueError(
                f"X must have {self._n_features_out} columns, as transform gives them; "
                f"got shape {vectors.shape}."
            )
        vectors, a, Q = _computing.in_one_precision(vectors, self.eigenvalues_, self.eigenvectors_)
        i, j = np.triu_indices(len(a))
        onto = _shares(a)
        Y = np.zeros((len(vectors), len(a), len(a)), vectors.dtype)
        Y[:, j, i] = onto[j, i] * vectors
        Y[:, i, j] = np.where(i == j, vectors, onto[i, j] * vectors)
        moved = Q * np.sqrt(a)[None, :] + Q @ Y
        return _computing.symmetric(moved @ moved.swapaxes(1, 2))

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ * (self.n_features_in_ + 1) // 2


def _shares(a: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """`(a_j / (a_i + a_j))^{1/2}`, of the entry `i, j` of a lift in the coordinate `i, j`."""
    sums = a[:, None] + a[None, :]
    return np.sqrt(np.where(sums > 0, a[None, :] / np.where(sums > 0, sums, 1), 0))
