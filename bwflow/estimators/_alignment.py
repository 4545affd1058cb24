"""Domains moved to a common barycenter."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float
from sklearn.base import TransformerMixin

from bwflow import _checks
from bwflow.estimators import _computing, _inputs
from bwflow.estimators._inputs import METRIC, OnMatrices


class BarycenterAlignment(TransformerMixin, OnMatrices):
    """Every domain moved by the optimal map `T` from its barycenter to a common one, `A -> T A T`.

    Parameters
    ----------
    target
        Where to, a covariance; by default the barycenter of the domains' barycenters, each of the
        same weight.
    rounds
        How often: each round moves what the last has left by the map from its barycenter. One is
        enough for matrices that commute with each other; in general the barycenter of what one
        map has moved is only near to the target, and nearer after every round.
    metric
        `"bures_wasserstein"`.
    rtol, max_steps
        Of the barycenters, as for `MDM`.

    Attributes
    ----------
    domains_
        Labels of the domains, sorted; `[0]` if none were given.
    means_
        The domains' barycenters, `(n_domains, n_channels, n_channels)`.
    target_
        The common barycenter.
    maps_
        `(n_domains, n_channels, n_channels)`, the products of the maps of all rounds: `A` becomes
        `T A T^T`, and signals `x` would become `T x`.
    n_features_in_
        Channels.

    Raises
    ------
    ValueError
        In `fit` and after, if a parameter is out of range; if matrices are not symmetric positive
        semi-definite, or not of one size; if domains are not as many as matrices.

    Notes
    -----
    Domains are known at both times or at one: `transform` moves a domain of `fit` by its map, and
    takes the matrices of any other for all that is known of it: their own barycenter is moved to
    the target. Without `domains` they are all of one domain, which is that of `fit` if there it
    was without `domains`, too, and a new one otherwise.

    Within a pipeline domains come by scikit-learn's metadata routing, after
    `set_fit_request(domains=True).set_transform_request(domains=True)`.

    A singular barycenter reaches the target only if its range has enough of that of the target,
    see `bwflow.geometry.transport_map`; with a common reference of channels it has.

    References
    ----------
    Flamary, Lounici, Ferrari (2019), Concentration bounds for linear Monge mapping estimation and
    optimal transport domain adaptation, arXiv 1905.10155.
    Yair, Ben-Chen, Talmon (2019), Parallel transport on the cone manifold of SPD matrices for
    domain adaptation.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> X = np.array([1.0, 4.0, 25.0, 100.0])[:, None, None] * np.eye(2)
    >>> alignment = bw.estimators.BarycenterAlignment(target=np.eye(2))
    >>> print(alignment.fit_transform(X, domains=[0, 0, 1, 1])[:, 0, 0].round(4))
    [0.4444 1.7778 0.4444 1.7778]
    """

    domains_: np.ndarray
    means_: np.ndarray
    target_: np.ndarray
    maps_: np.ndarray

    def __init__(
        self,
        target: ArrayLike | None = None,
        rounds: int = 1,
        metric: str = METRIC,
        rtol: float = 1e-8,
        max_steps: int = 500,
    ):
        self.target = target
        self.rounds = rounds
        self.metric = metric
        self.rtol = rtol
        self.max_steps = max_steps

    def fit(self, X: ArrayLike, y: Any = None, domains: Any = None) -> "BarycenterAlignment":
        """The barycenters and maps of the domains.

        Parameters
        ----------
        X
            Covariances.
        y
            Ignored.
        domains
            A label for each matrix: a session, a subject, a site.
        """
        X = self._given(X)
        _checks.positive_int("rounds", self.rounds)
        self.domains_, groups = _domains(domains, X)
        self._named = domains is not None
        self.means_ = self._barycenters(X, groups)
        if self.target is None:
            [self.target_] = self._barycenters(self.means_, np.zeros(len(self.means_), int))
        else:
            [target] = _inputs.covariances("target", np.asarray(self.target)[None], size=X.shape[1])
            self.target_ = _computing.in_one_precision(X, target)[1]
        self.maps_ = self._maps(X, groups, self.means_)
        return self

    def transform(self, X: ArrayLike, domains: Any = None) -> Float[np.ndarray, "N n n"]:
        """Each matrix moved with its domain; see the notes above on new ones."""
        X, maps = _computing.in_one_precision(self._met(X), self.maps_)
        if domains is None and not self._named:
            T = maps[np.zeros(len(X), int)]
            return _moved(T, X)
        names, groups = _domains(domains, X)
        known = np.isin(names, self.domains_) & (domains is not None)
        own = np.empty((len(names), *X.shape[1:]), X.dtype)
        own[known] = maps[np.searchsorted(self.domains_, names[known])]
        if not np.all(known):
            new = ~known[groups]
            places = (np.cumsum(~known) - 1)[groups[new]]
            own[~known] = self._maps(X[new], places, self._barycenters(X[new], places))
        return _moved(own[groups], X)

    def fit_transform(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, X: ArrayLike, y: Any = None, domains: Any = None
    ) -> Float[np.ndarray, "N n n"]:
        """`fit` and `transform` with the same domains."""
        return self.fit(X, y, domains).transform(X, domains)

    def _maps(self, X: np.ndarray, groups: np.ndarray, means: np.ndarray) -> np.ndarray:
        """Products of the maps that take the means to the target, round by round."""
        means, target = _computing.in_one_precision(means, self.target_)
        T = _computing.maps(means, target)
        for _ in range(self.rounds - 1):
            means = self._barycenters(_moved(T[groups], X), groups)
            T = _computing.maps(means, target) @ T
        return T

    def _barycenters(self, X: np.ndarray, groups: np.ndarray) -> np.ndarray:
        return _computing.barycenters(
            X, groups, np.ones(len(X)), rtol=self.rtol, max_steps=self.max_steps
        )


def _domains(domains: Any, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Names, and where each matrix belongs."""
    if domains is None:
        return np.zeros(1, int), np.zeros(len(X), int)
    names, groups = np.unique(_inputs.labels("domains", domains, X), return_inverse=True)
    return names, groups


def _moved(T: Float[np.ndarray, "N n n"], X: Float[np.ndarray, "N n n"]) -> np.ndarray:
    return _computing.symmetric(T @ X @ T.swapaxes(1, 2))
