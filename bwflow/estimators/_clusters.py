"""Clusters of covariances around their barycenters."""

from typing import Any, Literal

import numpy as np
from jaxtyping import ArrayLike, Float, Int
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state

from bwflow import _checks
from bwflow.estimators import _computing, _inputs
from bwflow.estimators._inputs import METRIC, OnMatrices

_INITS = ("k-means++", "random")


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, OnMatrices):
    """Clusters by Lloyd's method: least `sum_i w_i min_k BW^2(X_i, M_k)` over `M_1, ..., M_K`.

    Parameters
    ----------
    n_clusters
        `K`.
    metric
        `"bures_wasserstein"`.
    init
        How centers are chosen among the matrices: `"k-means++"`, with probabilities as the squared
        distances to those chosen before, or `"random"`; or the centers, an array.
    n_init
        Starts, of which the best is kept; one if centers are given.
    max_iter
        Iterations at most, for each start.
    tol
        Share of the inertia by which an iteration has to lower it, lest it be the last.
    rtol, max_steps
        Of the barycenters, as for `MDM`.
    random_state
        Seed, or a generator of numpy.

    Attributes
    ----------
    cluster_centers_
        `(n_clusters, n_channels, n_channels)`.
    labels_
        The nearest center of each matrix.
    inertia_
        The weighted sum of squared distances to these.
    n_iter_
        Iterations of the best start.
    weights_
        Sum of the weights of the matrices behind each center.
    n_features_in_
        Channels.

    Raises
    ------
    ValueError
        In `fit` and after, if a parameter is out of range; if matrices are not symmetric positive
        semi-definite, not of one size, or fewer than clusters; if weights are not as many.

    Notes
    -----
    Cost of an iteration: `N K` distances and `K` barycenters, in one batch padded to the largest
    cluster. What is found is a local minimum. A cluster that loses all its matrices takes the one
    that is farthest from its center.

    After `partial_fit` `labels_` and `inertia_` are those of the last batch, before its step.

    References
    ----------
    Lloyd (1982), Least squares quantization in PCM.
    Arthur, Vassilvitskii (2007), k-means++: the advantages of careful seeding.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> X = np.array([1.0, 4.0, 25.0, 36.0])[:, None, None] * np.eye(2)
    >>> kmeans = bw.estimators.KMeans(2, random_state=0).fit(X)
    >>> print(np.sort(kmeans.cluster_centers_[:, 0, 0]).round(4), round(kmeans.inertia_, 4))
    [ 2.25 30.25] 2.0
    """

    cluster_centers_: np.ndarray
    labels_: np.ndarray
    weights_: np.ndarray
    inertia_: float
    n_iter_: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str = METRIC,
        init: Literal["k-means++", "random"] | ArrayLike = "k-means++",
        n_init: int = 3,
        max_iter: int = 100,
        tol: float = 1e-4,
        rtol: float = 1e-8,
        max_steps: int = 500,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_clusters = n_clusters
        self.metric = metric
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.rtol = rtol
        self.max_steps = max_steps
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> "KMeans":
        """The clusters.

        Parameters
        ----------
        X
            Covariances.
        y
            Ignored.
        sample_weight
            Weights, not negative and positive for as many matrices as there are clusters.
        """
        X = self._given(X)
        w = self._weights(sample_weight, X)
        starts = _checks.positive_int("n_init", self.n_init) if isinstance(self.init, str) else 1
        max_iter = _checks.positive_int("max_iter", self.max_iter)
        with _inputs.in_precision("float64"):
            tol = float(_checks.scalar("tol", self.tol, np.float64, minimum=0.0))
        random = check_random_state(self.random_state)
        found = (self._lloyd(X, w, self._seeds(X, w, random), max_iter, tol) for _ in range(starts))
        self.inertia_, self.n_iter_, self.cluster_centers_, self.labels_ = min(
            found, key=lambda run: run[0]
        )
        self.weights_ = np.bincount(self.labels_, w, minlength=self.n_clusters)
        return self

    def partial_fit(
        self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> "KMeans":
        """Move the nearest centers along geodesics towards one more batch.

        As `MDM.partial_fit`, with the nearest centers for labels. The first batch seeds the
        centers, if nothing was fitted before, and has as many matrices as there are clusters.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        """
        fresh = not hasattr(self, "cluster_centers_")
        X = self._given(X) if fresh else self._met(X)
        if fresh:
            w = self._weights(sample_weight, X)
            self.cluster_centers_ = self._seeds(X, w, check_random_state(self.random_state))
            self.weights_ = np.zeros(self.n_clusters)
            self.n_iter_ = 0
        else:
            w = _inputs.weights("sample_weight", sample_weight, X)
        squares = _computing.distances(X, self.cluster_centers_, squared=True)
        self.labels_, self.inertia_ = _nearest(squares, w)
        self.n_iter_ += 1
        kept = w > 0
        if np.any(kept):
            self.cluster_centers_, self.weights_ = _computing.stepped(
                self.cluster_centers_, self.weights_, X[kept], self.labels_[kept], w[kept]
            )
        return self

    def transform(self, X: ArrayLike) -> Float[np.ndarray, "N k"]:
        """Distances to the centers."""
        return _computing.distances(self._met(X), self.cluster_centers_)

    def predict(self, X: ArrayLike) -> Int[np.ndarray, " N"]:
        """The nearest center."""
        squares = _computing.distances(self._met(X), self.cluster_centers_, squared=True)
        return np.argmin(squares, axis=1)

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Minus the inertia."""
        X = self._met(X)
        w = _inputs.weights("sample_weight", sample_weight, X)
        squares = _computing.distances(X, self.cluster_centers_, squared=True)
        return -_nearest(squares, w)[1]

    def _weights(self, sample_weight: ArrayLike | None, X: np.ndarray) -> np.ndarray:
        K = _checks.positive_int("n_clusters", self.n_clusters)
        w = _inputs.weights("sample_weight", sample_weight, X)
        if np.sum(w > 0) < K:
            raise ValueError(
                f"X must hold as many matrices as n_clusters says, {K}, whose sample_weight is "
                f"not zero; got {np.sum(w > 0)}."
            )
        return w

    def _seeds(self, X: np.ndarray, w: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        K = self.n_clusters
        if not isinstance(self.init, str):
            centers = _inputs.covariances("init", self.init, size=X.shape[1])
            if len(centers) != K:
                raise ValueError(f"init must hold {K} centers; got shape {centers.shape}.")
            return _computing.in_one_precision(X, centers)[1]
        _checks.choice("init", self.init, _INITS)
        if self.init == "random":
            return X[random.choice(len(X), K, replace=False, p=w / np.sum(w))]
        chosen = [random.choice(len(X), p=w / np.sum(w))]
        nearest = np.full(len(X), np.inf)
        while len(chosen) < K:
            squares = _computing.distances(X, X[chosen[-1:]], squared=True)[:, 0]
            nearest = np.minimum(nearest, squares)
            nearest[chosen] = 0
            odds = w * nearest
            if not np.any(odds):  # all coincide with some center
                odds = np.where(np.isin(np.arange(len(X)), chosen), 0, w)
            chosen.append(random.choice(len(X), p=odds / np.sum(odds)))
        return X[chosen]

    def _lloyd(
        self, X: np.ndarray, w: np.ndarray, centers: np.ndarray, max_iter: int, tol: float
    ) -> tuple[float, int, np.ndarray, np.ndarray]:
        """Inertia, iterations, centers and labels of one start."""
        squares = _computing.distances(X, centers, squared=True)
        nearest, inertia = _nearest(squares, w)
        iteration = 0
        while iteration < max_iter:
            iteration += 1
            groups = _filled(nearest, squares, w)
            kept = w > 0
            better = _computing.barycenters(
                X[kept], groups[kept], w[kept], rtol=self.rtol, max_steps=self.max_steps
            )
            squares = _computing.distances(X, better, squared=True)
            labels, lower = _nearest(squares, w)
            if lower >= inertia:
                break
            small = inertia - lower <= tol * inertia
            same = np.array_equal(labels, groups)
            centers, nearest, inertia = better, labels, lower
            if small or same:
                break
        return inertia, iteration, centers, nearest

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)


def _nearest(squares: np.ndarray, w: np.ndarray) -> tuple[Int[np.ndarray, " N"], float]:
    """The nearest center of each, and the inertia."""
    return np.argmin(squares, axis=1), float(np.sum(w * np.min(squares, axis=1)))


def _filled(labels: np.ndarray, squares: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Labels in which every cluster has some weight: empty ones take what is farthest away."""
    labels = labels.copy()
    far = np.where(w > 0, squares[np.arange(len(labels)), labels], -1.0)
    for k in range(squares.shape[1]):
        members = np.bincount(labels[w > 0], minlength=squares.shape[1])
        if members[k] == 0:
            i = np.argmax(np.where(members[labels] > 1, far, -1.0))
            labels[i], far[i] = k, 0.0
    return labels
