"""What can be recorded of a loss at given parameters, by name."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bwflow import _checks, _minima
from bwflow._feedback import on_rows_of
from bwflow._types import Loss, Params
from bwflow.factors import Deep, end_to_end, imbalance
from bwflow.linalg import full_precision, polar, range_mask

LOSS = "the end-to-end matrix"


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
        _checks.takes("loss", self.loss, LOSS, self.end_to_end)

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
        W = W if isinstance(W, Array) else W.matrix()
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

    @property
    def feedback(self) -> tuple[Array, ...]:
        """`(B_2, ..., B_N)` of a factorisation with feedback; others are refused."""
        feedback = getattr(self.factorization, "feedback", None)
        if feedback is None:
            raise ValueError(
                "factorization must be bwflow.factors.FeedbackAlignment(feedback), or the like, "
                f"for this quantity; got {_checks.shown(self.factorization)}."
            )
        return feedback if isinstance(feedback, tuple) else (feedback,)

    def _offered(self, attribute: str):
        """An attribute of the loss; a plain function has none, and is refused."""
        try:
            return getattr(self.loss, attribute)
        except AttributeError:
            kind = type(self.loss).__name__
            raise ValueError(
                f"loss must offer `{attribute}` for this quantity; {kind} does not. "
                + _ADVICE.get(attribute, _ADVICE["target"])
            ) from None


_ADVICE = {
    "minimum": "Where the least loss is known say it: bwflow.until.gap(tolerance, minimum=0.0).",
    "target": "bwflow.losses.BuresWasserstein(target, tau) and Frobenius do.",
}


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
def _covariance(point: Point) -> Array:
    W = point.end_to_end
    return W @ W.T


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


@full_precision
def _feedback_alignment(point: Point) -> Array:
    pairs = zip(point.feedback, point.params[1:], strict=True)
    return jnp.array([_cosine((B,), (W,)) for B, W in pairs], dtype=point.end_to_end.dtype)


@full_precision
def _direction_alignment(point: Point) -> Array:
    gradients = Deep().pullback(point.params, point.value_and_gradient[1])
    return _cosine(point.gradients, gradients)


def _cosine(first: Any, second: Any) -> Array:
    """Cosine of the angle between two pytrees; 0 where one of them is zero."""
    lengths = optax.tree.norm(first) * optax.tree.norm(second)
    return jnp.asarray(optax.tree.vdot(first, second) / jnp.where(lengths > 0, lengths, 1))


@full_precision
def _sketch_distance(point: Point) -> Array:
    Y, B = point._offered("Y"), end_to_end(point.feedback)
    return jnp.linalg.norm(point.end_to_end - on_rows_of(B.T @ Y, Y))


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
    "covariance": Quantity(_covariance, ("row", "column"), "covariance", "W W^T"),
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
# Of factorisations with feedback alone, which a specification does not name.
OF_FEEDBACK = {
    "feedback_alignment": Quantity(
        _feedback_alignment, ("layer",), "1", "cosine of the angle between W_k and B_k, k = 2..N"
    ),
    "direction_alignment": Quantity(
        _direction_alignment, (), "1", "cosine of the angle between direction and gradient"
    ),
    "sketch_distance": Quantity(
        _sketch_distance, (), "matrix", "Frobenius distance of W to the limit Y P of feedback"
    ),
}
ALL = QUANTITIES | OF_FEEDBACK
