"""Classification by the nearest mean."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float
from scipy.special import softmax
from sklearn.base import ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets

from bwflow import _checks
from bwflow.estimators import _computing, _inputs
from bwflow.estimators._inputs import METRIC, OnMatrices


class MDM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, OnMatrices):
    """Minimum distance to mean: the class whose barycenter `M_k` is nearest, `argmin_k BW(X, M_k)`.

    Probabilities are `softmax_k(-BW^2(X, M_k))`.

    Parameters
    ----------
    metric
        `"bures_wasserstein"`.
    rank
        Rank of the means; by default what the matrices need.
    rtol
        Tolerance of the means, see `bwflow.geometry.barycenter`; in single precision 1.2e-5 at
        least.
    max_steps
        Steps after which a mean is taken as it is, with a `ConvergenceWarning`.

    Attributes
    ----------
    classes_
        The labels, sorted.
    means_
        `(n_classes, n_channels, n_channels)`; NaN for classes of which nothing came yet.
    weights_
        Sum of the weights of the matrices behind each mean.
    n_features_in_
        Channels.

    Raises
    ------
    ValueError
        In `fit` and after, if a parameter is out of range; if matrices are not symmetric positive
        semi-definite, or not of one size; if labels or weights are not as many as matrices; if a
        class has no weight.

    Notes
    -----
    Cost of a fit: that of the barycenters, in one batch, padded to the largest class and that to a
    power of two. Matrices may be of any rank. The distances have the units of standard deviations:
    probabilities depend on the scale of the data, so that they are near to equal where all
    distances are far below 1.

    References
    ----------
    Barachant, Bonnet, Congedo, Jutten (2012), Multiclass brain-computer interface classification by
    Riemannian geometry.
    Bhatia, Jain, Lim (2019), On the Bures-Wasserstein distance between positive definite matrices.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> X = np.array([1.0, 4.0, 25.0, 36.0])[:, None, None] * np.eye(2)
    >>> mdm = bw.estimators.MDM().fit(X, ["low", "low", "high", "high"])
    >>> print(mdm.predict(3 * np.eye(2)[None]), mdm.means_[1].round(4).tolist())
    ['low'] [[2.25, 0.0], [0.0, 2.25]]
    """

    classes_: np.ndarray
    means_: np.ndarray
    weights_: np.ndarray

    def __init__(
        self,
        metric: str = METRIC,
        rank: int | None = None,
        rtol: float = 1e-8,
        max_steps: int = 500,
    ):
        self.metric = metric
        self.rank = rank
        self.rtol = rtol
        self.max_steps = max_steps

    def fit(self, X: ArrayLike, y: Any, sample_weight: ArrayLike | None = None) -> "MDM":
        """The mean of each class.

        Parameters
        ----------
        X
            Covariances.
        y
            Labels.
        sample_weight
            Weights, not negative.
        """
        X = self._given(X)
        y = _labels(y, X)
        w = _inputs.weights("sample_weight", sample_weight, X)
        classes, groups = np.unique(y, return_inverse=True)
        totals = np.bincount(groups, w)
        if not np.all(totals > 0):
            raise ValueError(
                "sample_weight must not be zero for all of a class; it is for "
                f"{_checks.shown(classes[totals == 0].tolist())}."
            )
        self.classes_, self.weights_ = classes, totals
        self.means_ = self._barycenters(X, groups, w)
        return self

    def partial_fit(
        self,
        X: ArrayLike,
        y: Any,
        classes: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> "MDM":
        """Move the means along geodesics towards one more batch.

        A step of the stochastic gradient method with shares `1 / t`, as of a running mean: exact
        for matrices that commute, and in the limit of many batches for all. The first batch of a
        class gives its barycenter.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes
            All labels that will come; needed in the first call.

        Notes
        -----
        Cost: one polar factor for each matrix. It goes on from a `fit`, too.

        References
        ----------
        Chewi, Maunu, Rigollet, Stromme (2020), arXiv 2001.01700.
        """
        fresh = not hasattr(self, "classes_")
        if fresh and classes is None:
            raise ValueError("classes must be given in the first call of partial_fit; got None.")
        X = self._given(X) if fresh else self._met(X)
        y = _labels(y, X)
        w = _inputs.weights("sample_weight", sample_weight, X)
        known = self.classes_ if classes is None else np.unique(classes)
        if not fresh and not np.array_equal(known, self.classes_):
            raise ValueError(
                f"classes must be the {self.classes_.tolist()} of before; got {known.tolist()}."
            )
        groups = _inputs.places("y", y, known)
        if fresh:
            self.classes_, self.weights_ = known, np.zeros(len(known))
            self.means_ = np.full((len(known), *X.shape[1:]), np.nan, X.dtype)
        self._update(X[w > 0], groups[w > 0], w[w > 0])
        return self

    def _update(self, X: np.ndarray, groups: np.ndarray, w: np.ndarray) -> None:
        means, X = _computing.in_one_precision(self.means_, X)
        totals, begun = self.weights_, self.weights_ > 0
        old = begun[groups]
        first = np.unique(groups[~old])
        if np.any(old):
            places = np.cumsum(begun) - 1
            means = means.copy()
            means[begun], _ = _computing.stepped(
                *(means[begun], totals[begun], X[old], places[groups[old]], w[old]),
                growing=self.rank is None,
            )
        if len(first):
            means = means.copy()
            places = np.searchsorted(first, groups[~old])
            means[first] = self._barycenters(X[~old], places, w[~old])
        self.means_ = means
        self.weights_ = totals + np.bincount(groups, w, minlength=len(totals))

    def _barycenters(self, X: np.ndarray, groups: np.ndarray, w: np.ndarray) -> np.ndarray:
        return _computing.barycenters(
            X, groups, w, rank=self.rank, rtol=self.rtol, max_steps=self.max_steps
        )

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "N k"]:
        """Distances to the means, in the order of `classes_`."""
        return self._distances(X, squared=False)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The class of the nearest mean."""
        nearest = np.argmin(self._distances(X, squared=True), axis=1)
        return self.classes_[nearest]

    def predict_proba(self, X: ArrayLike) -> Float[np.ndarray, "N k"]:
        """`softmax(-BW^2)` over the classes."""
        return softmax(-self._distances(X, squared=True), axis=1)

    def _distances(self, X: ArrayLike, *, squared: bool) -> np.ndarray:
        X, means = _computing.in_one_precision(self._met(X), self.means_)
        begun = self.weights_ > 0
        if not np.any(begun):
            raise ValueError("No matrix of positive weight was seen yet, so that there is no mean.")
        found = np.full((len(X), len(begun)), np.inf, X.dtype)
        found[:, begun] = _computing.distances(X, means[begun], squared=squared)
        return found

    @property
    def _n_features_out(self) -> int:
        return len(self.classes_)


def _labels(y: Any, X: np.ndarray) -> np.ndarray:
    if y is None:
        raise ValueError("MDM requires y to be passed, but the target y is None.")
    y = _inputs.labels("y", y, X)
    check_classification_targets(y)
    return y
