"""Named quantities of a run: what probes record.

`record("loss", "gap", "imbalance")` makes a probe; `standard` is the default of both dynamics. A
probe is any function of `(loss, params)` that returns a dict of arrays, so people write their own
too.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from bwflow import _checks, _minima
from bwflow._types import Loss, Params
from bwflow.factors import Deep, Product, imbalance
from bwflow.linalg import full_precision, polar, range_mask

_LOSS, _PROBE = "the end-to-end matrix", "the loss and the parameters"


class Point:
    """A loss at given parameters; what several quantities need is computed once."""

    def __init__(self, loss: Loss, params: Params, factorization: Any = None):
        self.loss = loss
        self.params = params
        self.factorization = Deep() if factorization is None else factorization

    @cached_property
    def end_to_end(self) -> Any:
        return self.factorization.assemble(self.params)

    @cached_property
    def value_and_gradient(self) -> tuple[Array, Any]:
        """Loss and its gradient in the end-to-end matrix."""
        _checks.takes("loss", self.loss, _LOSS, self.end_to_end)

        def scalar(W: Any) -> Array:
            value = self.loss(W)
            if not (isinstance(value, Array) and value.shape == () and value.dtype.kind == "f"):
                raise ValueError(f"loss must return a real scalar; got {_checks.shown(value)}.")
            return value

        return jax.value_and_grad(scalar)(self.end_to_end)

    def known(self, value: Array, gradients: Params) -> "Point":
        """The same point, its loss and the gradients in the parameters given."""
        self.value, self.gradients = value, gradients
        return self

    @cached_property
    def value(self) -> Array:
        return self.value_and_gradient[0]

    @cached_property
    def gradients(self) -> Params:
        """Gradients in the parameters."""
        return self.factorization.pullback(self.params, self.value_and_gradient[1])

    @property
    def gradient_norm(self) -> Array:
        return optax.tree.norm(self.gradients)

    @cached_property
    def singular_values(self) -> Array:
        return self._svd[1]

    @cached_property
    def _svd(self) -> tuple[Array, Array, Array]:
        W = self.end_to_end
        W = W.matrix() if isinstance(W, Product) else W
        U, s, Vt = jnp.linalg.svd(W, full_matrices=False)
        return U, s, Vt

    @property
    def left_singular_vectors(self) -> Array:
        return self._svd[0]

    @property
    def bottleneck(self) -> int:
        """Largest rank the end-to-end matrix can have."""
        if hasattr(self.factorization, "bottleneck"):
            return self.factorization.bottleneck(self.params)
        return min(self.end_to_end.shape)

    @property
    def minimum(self) -> Array:
        return self._offered("minimum")(self.bottleneck)

    @property
    def target(self):
        return self._offered("target")

    @property
    def tau(self) -> Array:
        return jnp.asarray(self._offered("tau"), self.end_to_end.dtype)

    def _offered(self, attribute: str):
        """An attribute of the loss; a plain function has none, and is refused."""
        try:
            return getattr(self.loss, attribute)
        except AttributeError:
            raise ValueError(
                f"loss must offer `{attribute}` for this quantity; {type(self.loss).__name__} "
                "does not. Use a loss of bwflow.losses, such as "
                "bwflow.losses.BuresWasserstein(target, tau)."
            ) from None


def _numerical_rank(point: Point) -> Array:
    s = point.singular_values
    # A network whose covariance agrees with a lower rank to rounding has that rank.
    cut = jnp.sqrt(jnp.finfo(s.dtype).eps) * jnp.max(s)
    return jnp.sum(s > cut).astype(s.dtype)


def _effective_rank(point: Point) -> Array:
    s = point.singular_values
    weights = s / jnp.maximum(jnp.sum(s), jnp.finfo(s.dtype).tiny)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(weights, weights)))


@full_precision
def _alignment(point: Point) -> Array:
    U, Q = point.left_singular_vectors, point.target.eigenvectors
    k = min(U.shape[1], Q.shape[1])
    kept = range_mask(point.singular_values[:k], max(point.end_to_end.shape))
    return jnp.where(kept, jnp.abs(jnp.sum(U[:, :k] * Q[:, :k], axis=0)), 0.0)


@full_precision
def _cosines(point: Point) -> Array:
    U, s = point.left_singular_vectors, point.singular_values
    kept = range_mask(s, max(point.end_to_end.shape))
    return jnp.where(kept[None, :], point.target.eigenvectors.T @ U, 0.0)


def _eigenvalue_errors(point: Point) -> Array:
    s = point.singular_values
    lam = _minima.minimizing_eigenvalues(point.target, point.bottleneck, tau=point.tau)[: s.size]
    return s**2 - jnp.pad(lam, (0, s.size - lam.size))


@full_precision
def _residual(point: Point) -> Array:
    W = point.end_to_end
    eye = jnp.eye(W.shape[0], dtype=W.dtype)
    return jnp.linalg.norm(W @ W.T + point.tau * eye - point.target.covariance)


def _imbalance(point: Point) -> Array:
    dtype = point.end_to_end.dtype
    return jnp.array([jnp.linalg.norm(D) for D in imbalance(point.params)], dtype=dtype)


@full_precision
def _distance_frobenius(point: Point) -> Array:
    W = point.end_to_end
    return jnp.linalg.norm(W @ W.T - _minimizer(point))


@full_precision
def _distance_bures(point: Point) -> Array:
    """Square root of `BW^2(W W^T + tau I, S* + tau I)`, by factors of the two."""
    W, tau = point.end_to_end, point.tau
    eye = jnp.eye(W.shape[0], dtype=W.dtype)
    s = _minima.minimizing_eigenvalues(point.target, point.bottleneck, tau=tau)
    Q = point.target.eigenvectors
    root = jnp.sqrt(tau) * eye + (Q * (jnp.sqrt(s + tau) - jnp.sqrt(tau))[None, :]) @ Q.T
    A = jnp.concatenate([W, jnp.sqrt(tau) * eye], axis=1)
    P = polar(root @ A)
    return jnp.sqrt(jnp.sum((A - root @ P) ** 2) + jnp.sum((root - (root @ P) @ P.T) ** 2))


def _minimizer(point: Point) -> Array:
    return _minima.minimizer(point.target, point.bottleneck, tau=point.tau)


class Quantity(NamedTuple):
    """How a quantity is computed and labelled; `units` of a covariance are `covariance`."""

    compute: Callable[[Point], Array]
    dims: tuple[str, ...]
    units: str
    long_name: str


QUANTITIES = {
    "loss": Quantity(lambda x: x.value, (), "loss", "loss"),
    "gap": Quantity(
        lambda x: x.value - x.minimum, (), "loss", "loss minus its minimum over the rank"
    ),
    "gradient_norm": Quantity(
        lambda x: x.gradient_norm, (), "loss / parameter", "norm of the gradient in the parameters"
    ),
    "singular_values": Quantity(
        lambda x: x.singular_values, ("rank",), "covariance^(1/2)", "singular values of W"
    ),
    "numerical_rank": Quantity(
        _numerical_rank, (), "1", "number of singular values above sqrt(eps) times the largest"
    ),
    "effective_rank": Quantity(
        _effective_rank, (), "1", "exponential of the entropy of the singular values of W"
    ),
    "imbalance": Quantity(
        _imbalance, ("layer",), "covariance^(2/N)", "norm of W_{j+1}^T W_{j+1} - W_j W_j^T"
    ),
    "alignment": Quantity(
        _alignment, ("rank",), "1", "|cosine| of left singular vectors and target eigenvectors"
    ),
    "cosines": Quantity(
        _cosines,
        ("eigenvector", "rank"),
        "1",
        "cosines of target eigenvectors (rows) and left singular vectors of W (columns)",
    ),
    "eigenvalue_errors": Quantity(
        _eigenvalue_errors, ("rank",), "covariance", "eigenvalues of W W^T minus the optimal ones"
    ),
    "residual": Quantity(_residual, (), "covariance", "Frobenius norm of W W^T + tau I - Sigma0"),
    "distance_frobenius": Quantity(
        _distance_frobenius, (), "covariance", "Frobenius distance of W W^T to the optimum"
    ),
    "distance_bures": Quantity(
        _distance_bures,
        (),
        "covariance^(1/2)",
        "Bures-Wasserstein distance of W W^T + tau I to the smoothed optimum",
    ),
}


class Record(eqx.Module):
    """Probe that records named quantities."""

    names: tuple[str, ...] = eqx.field(static=True)
    factorization: Any = Deep()

    def __call__(self, loss: Loss, params: Params) -> dict[str, Array]:
        point = Point(loss, params, self.factorization)
        return {name: QUANTITIES[name].compute(point) for name in self.names}

    def bind(self, factorization: Any) -> "Record":
        """The same probe of parameters of another factorization."""
        return Record(self.names, factorization)


def record(*names: str) -> Record:
    """Probe of the named quantities.

    Parameters
    ----------
    *names
        Keys of `QUANTITIES`: `loss`, `gap`, `gradient_norm`, `singular_values`,
        `numerical_rank`, `effective_rank`, `imbalance`, `alignment`, `cosines`,
        `eigenvalue_errors`, `residual`, `distance_frobenius`, `distance_bures`.

    Raises
    ------
    ValueError
        If a name is unknown; when it runs, if the loss does not offer what the quantity needs:
        `gap` needs `minimum`, `alignment` and `cosines` need `target`, `eigenvalue_errors`,
        `residual` and the distances `target` and `tau`.

    Notes
    -----
    `gap` subtracts the known minimum over matrices of the network's rank, so it can be as low as
    minus the rounding error of the loss. `effective_rank` is the exponential of the entropy of the
    singular values divided by their sum. `eigenvalue_errors` are `sigma_i^2 - (lambda_i - tau)_+`,
    and `sigma_i^2` for `i` above the bottleneck or the target's rank.

    `cosines` are `Omega^T U`, for eigenvectors of the target and left singular vectors of the
    network; the sign of each column is arbitrary, and columns of zero singular values are zero.
    `alignment` is the diagonal of its absolute values. Both are in the order of the singular
    values, and mean little where these repeat.

    References
    ----------
    Roy and Vetterli (2007), EUSIPCO, The effective rank: a measure of effective dimensionality.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> values = bw.diagnostics.record("loss", "numerical_rank")(loss, (jnp.eye(2),))
    >>> {name: float(value.round(5)) for name, value in values.items()}
    {'loss': 1.0, 'numerical_rank': 2.0}
    """
    for name in names:
        if not isinstance(name, str) or name not in QUANTITIES:
            raise ValueError(
                f"unknown quantity {_checks.shown(name)}; choose from {', '.join(QUANTITIES)}."
            )
    return Record(tuple(names))


def standard(loss: Loss, params: Params) -> dict[str, Array]:
    """Loss and gradient norm, and the gap where the loss knows its minimum."""
    return _standard(loss)(loss, params)


def _standard(loss: Loss) -> Record:
    known = ("gap",) if hasattr(loss, "minimum") else ()
    return record("loss", *known, "gradient_norm")


def bound_probe(probe: Any, loss: Loss, factorization: Any) -> Any:
    """The probe as it reads parameters of the given factorization."""
    probe = _standard(loss) if probe is standard else probe
    return probe.bind(factorization) if hasattr(probe, "bind") else probe


def recorded(probe: Any, loss: Loss, params: Params) -> dict[str, Array]:
    """What a probe records, refused if it is no dict of arrays."""
    _checks.takes("probe", probe, _PROBE, loss, params)
    rows = probe(loss, params)
    if not isinstance(rows, Mapping) or not all(
        isinstance(name, str) and isinstance(row, (Array, np.ndarray, np.generic, float, int))
        for name, row in rows.items()
    ):
        raise ValueError(f"probe must return a dict of arrays by name; got {_checks.shown(rows)}.")
    return {name: jnp.asarray(row) for name, row in rows.items()}


def checked_start(loss: Any, params: Any, factorization: Any, probe: Any) -> Params:
    """The start as arrays; refused if a run cannot go from it, or not with such functions."""
    methods = ("assemble", "pullback")
    # The type is asked first, for a module of equinox makes its bound methods slowly.
    owners = (type(factorization), factorization)
    offered = [any(callable(getattr(owner, m, None)) for owner in owners) for m in methods]
    if isinstance(factorization, type) or not all(offered):
        raise ValueError(
            f"factorization must be an object with the methods {', '.join(methods)}, such as "
            f"bwflow.factors.Deep(); got {_checks.shown(factorization)}."
        )
    params = _checks.parameters("params", params)
    if hasattr(factorization, "bottleneck"):
        factorization.bottleneck(params)  # refuses what does not chain
    _checks.function("loss", loss, _LOSS)
    _checks.function("probe", probe, _PROBE)
    return params
