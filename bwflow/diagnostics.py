"""Named quantities of a run: what probes record.

`record("loss", "gap", "imbalance")` makes a probe; `standard` is the default of both dynamics. A
probe is any function of `(loss, params)` that returns a dict of arrays, so people write their own
too.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bwflow import landscape
from bwflow._types import Loss, Params
from bwflow.factors import Deep, imbalance
from bwflow.linalg import full_precision, polar, range_mask


class Point:
    """A loss at given parameters; what several quantities need is computed once."""

    def __init__(self, loss: Loss, params: Params, factorization: Any = None):
        self.loss = loss
        self.params = params
        self.factorization = Deep() if factorization is None else factorization

    @cached_property
    def end_to_end(self) -> Array:
        return self.factorization.assemble(self.params)

    @cached_property
    def value_and_gradient(self) -> tuple[Array, Array]:
        """Loss and its gradient in the end-to-end matrix."""
        return jax.value_and_grad(lambda W: self.loss(W))(self.end_to_end)

    @property
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
        U, s, Vt = jnp.linalg.svd(self.end_to_end, full_matrices=False)
        return U, s, Vt

    @property
    def left_singular_vectors(self) -> Array:
        return self._svd[0]

    @property
    def bottleneck(self) -> int:
        return self.factorization.bottleneck(self.params)

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
    energy = point.singular_values**2
    weights = energy / jnp.maximum(jnp.sum(energy), jnp.finfo(energy.dtype).tiny)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(weights, weights)))


@full_precision
def _alignment(point: Point) -> Array:
    U, Q = point.left_singular_vectors, point.target.eigenvectors
    k = min(U.shape[1], Q.shape[1])
    kept = range_mask(point.singular_values[:k], max(point.end_to_end.shape))
    return jnp.where(kept, jnp.abs(jnp.sum(U[:, :k] * Q[:, :k], axis=0)), 0.0)


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
    s = landscape.minimizing_eigenvalues(point.target, point.bottleneck, tau=tau)
    Q = point.target.eigenvectors
    root = jnp.sqrt(tau) * eye + (Q * (jnp.sqrt(s + tau) - jnp.sqrt(tau))[None, :]) @ Q.T
    A = jnp.concatenate([W, jnp.sqrt(tau) * eye], axis=1)
    P = polar(root @ A)
    return jnp.sqrt(jnp.sum((A - root @ P) ** 2) + jnp.sum((root - (root @ P) @ P.T) ** 2))


def _minimizer(point: Point) -> Array:
    return landscape.minimizer(point.target, point.bottleneck, tau=point.tau)


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
        _effective_rank, (), "1", "exponential of the entropy of the spectrum of W W^T"
    ),
    "imbalance": Quantity(
        _imbalance, ("layer",), "covariance^(2/N)", "norm of W_{j+1}^T W_{j+1} - W_j W_j^T"
    ),
    "alignment": Quantity(
        _alignment, ("rank",), "1", "|cosine| of left singular vectors and target eigenvectors"
    ),
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
        `numerical_rank`, `effective_rank`, `imbalance`, `alignment`, `distance_frobenius`,
        `distance_bures`.

    Raises
    ------
    ValueError
        If a name is unknown; when it runs, if the loss does not offer what the quantity needs:
        `gap` needs `minimum`, the alignment and the distances `target` and `tau`.

    Notes
    -----
    `gap` subtracts the known minimum over matrices of the network's rank, so it can be as low as
    minus the rounding error of the loss. `alignment` is that of singular vectors in the order of
    their singular values, and means little where these repeat.

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
        if name not in QUANTITIES:
            raise ValueError(f"unknown quantity {name!r}; choose from {', '.join(QUANTITIES)}.")
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
