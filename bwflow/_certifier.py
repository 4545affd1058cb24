"""How a certificate is computed: its options, checked, and its parts."""

from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from bwflow import _checks, _extremal
from bwflow._extremal import Floor, Method
from bwflow.diagnostics import Point
from bwflow.factors import Product, ProductPlusSparse
from bwflow.linalg import after, full_precision

Form: TypeAlias = Literal["dual", "rank_deficiency"]


class Certificate(eqx.Module):
    """An upper bound of the gap to the convex problem's minimum, and its parts.

    Attributes
    ----------
    bound
        `stationarity + curvature + rounding`, in units of the loss; infinity where there is none.
    stationarity
        What is left of the first-order condition: `<G, W W^T>`, `<Z, E>`, or
        `||grad|| ||W|| / 2` in the form of rank deficiency.
    curvature
        What a direction downhill could still bring, `trace_bound` times its slope.
    rounding
        Allowance for floating point; an estimate of its size and not interval arithmetic.
    smallest_eigenvalue
        The lower bound that was used: of `lambda_min(G)`, of `-||Z||`, or of the least eigenvalue
        of the Hessian.
    probability
        That the bound may fail, over the random start of a Lanczos iteration; 0 of a dense one.
    """

    bound: Float[Array, "*batch"]
    stationarity: Float[Array, "*batch"]
    curvature: Float[Array, "*batch"]
    rounding: Float[Array, "*batch"]
    smallest_eigenvalue: Float[Array, "*batch"]
    probability: Float[Array, "*batch"]


class Certifier(eqx.Module):
    """How certificates are computed: the options of `optimality_gap`, checked."""

    trace_bound: ArrayLike
    smoothness: ArrayLike | None
    failure: ArrayLike
    key: PRNGKeyArray
    form: Form = eqx.field(static=True)
    method: Method = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def check(self, point: Point) -> None:
        """Refuse what has no certificate, as far as that shows before anything is computed."""
        loss: Any = point.loss
        W = jax.eval_shape(point.factorization.assemble, point.params)
        name = type(loss).__name__
        if getattr(loss, "convex", None) is not True:
            raise ValueError(
                "loss must be convex in W W^T and say so by `convex = True`, or its stationary "
                f"points bound nothing; {name} does not."
            )
        if self.form == "dual" and not callable(getattr(loss, "covariance_gradient", None)):
            raise ValueError(
                "loss must offer `covariance_gradient`, the gradient in W W^T, for the form "
                f"'dual'; {name} does not. The form 'rank_deficiency' needs a Hessian instead."
            )
        if isinstance(W, ProductPlusSparse):
            raise ValueError(
                "factorization must assemble W, or a Product; with a sparse part, whose bounds are "
                "not convex, there is no certificate."
            )
        if self.form == "rank_deficiency":
            if isinstance(W, Product):
                raise ValueError(
                    "form must be 'dual' for a pair of factors; 'rank_deficiency' is about X X^T."
                )
            if self._known_smoothness(loss) is None:
                raise ValueError(
                    "smoothness, the Lipschitz constant of the gradient in W W^T, must be given "
                    f"for the form 'rank_deficiency': {name} does not offer it."
                )
        if callable(getattr(loss, "covariance_gradient", None)):
            jax.eval_shape(partial(_offers_gradient, loss), W)

    @full_precision
    def __call__(self, point: Point) -> Certificate:
        """The certificate at a point."""
        dtype = jax.tree.leaves(point.params)[0].dtype
        dual = self.form == "dual"
        parts = self._dual(point, dtype) if dual else self._rank_deficiency(point, dtype)
        stationarity, curvature, rounding, floor = parts
        bound = stationarity + curvature + rounding
        # What is not finite is no bound: of a gradient that does not exist, after an overflow.
        bound = jnp.where(jnp.isfinite(bound), jnp.maximum(bound, 0.0), jnp.inf)
        return Certificate(bound, stationarity, curvature, rounding, floor.lower, floor.failure)

    def _dual(self, point: Point, dtype) -> tuple[Array, Array, Array, Floor]:
        value, slope = point.value_and_gradient
        W = after(point.end_to_end, value)
        loss: Any = point.loss
        G = loss.covariance_gradient(W)
        if isinstance(W, Product):
            stationarity = jnp.vdot(slope.left, W.left)
            mass = jnp.linalg.norm(W.left) * jnp.linalg.norm(W.right)
            floor = self._spectral_norm(G, W.shape, dtype)
        else:
            stationarity = jnp.vdot(slope, W) / 2
            mass = jnp.sum(W**2)
            floor = self._floor(G.mv, G.as_matrix, W.shape[0], dtype)
        trace = jnp.asarray(self.trace_bound, dtype)
        curvature = trace * jnp.maximum(-floor.lower, 0.0)
        scale = jnp.maximum(floor.size, self._gradient_scale(point, W, mass))
        rounding = self._unit(max(*W.shape), dtype) * scale * (mass + trace)
        return stationarity, curvature, rounding, floor

    def _rank_deficiency(self, point: Point, dtype) -> tuple[Array, Array, Array, Floor]:
        W, slope = point.end_to_end, point.value_and_gradient[1]
        n, p = W.shape
        entries, unravel = ravel_pytree(W)
        gradient = jax.grad(lambda x: point.loss(unravel(x)))

        def product(v: Array) -> Array:
            return jax.jvp(gradient, (entries,), (v,))[1]

        def matrix() -> Array:
            return jax.vmap(product)(jnp.eye(n * p, dtype=dtype))

        floor = self._floor(product, matrix, n * p, dtype)
        L = jnp.asarray(self._known_smoothness(point.loss), dtype)
        s = jnp.linalg.svd(after(W, floor.lower), compute_uv=False)
        deficiency = s[-1] ** 2 if p <= n else jnp.zeros((), dtype)
        trace = jnp.asarray(self.trace_bound, dtype)
        curvature = trace * (jnp.maximum(-floor.lower, 0.0) / 2 + 2 * L * deficiency)
        stationarity = jnp.linalg.norm(slope) * jnp.linalg.norm(W) / 2
        mass = jnp.sum(W**2)
        scale = jnp.maximum(floor.size + 2 * L * s[0] ** 2, self._gradient_scale(point, W, mass))
        rounding = self._unit(n * p, dtype) * scale * (mass + trace)
        return stationarity, curvature, rounding, floor

    def _floor(self, product, matrix, n: int, dtype) -> Floor:
        if _extremal.resolved(self.method, n, self.steps) == "dense":
            return _extremal.dense_floor(matrix())
        failure = jnp.asarray(self.failure, dtype)
        return _extremal.lanczos_floor(product, n, self.steps, failure, self.key)

    def _spectral_norm(self, Z, shape: tuple[int, int], dtype) -> Floor:
        """`-||Z||`, the least eigenvalue of `[[0, Z], [Z^T, 0]]`, by the smaller Gram of `Z`."""
        Zt = Z.transpose()
        inner, outer = (Z, Zt) if shape[1] <= shape[0] else (Zt, Z)
        n = min(shape)
        if _extremal.resolved(self.method, n, self.steps) == "dense":
            norm = jnp.max(jnp.linalg.svd(inner.as_matrix(), compute_uv=False))
            return Floor(-norm, norm, jnp.zeros((), dtype))
        floor = self._floor(lambda v: -outer.mv(inner.mv(v)), None, n, dtype)
        norm = jnp.sqrt(jnp.maximum(-floor.lower, 0.0))
        return Floor(-norm, norm, floor.failure)

    def _known_smoothness(self, loss: Any) -> Any:
        return getattr(loss, "smoothness", None) if self.smoothness is None else self.smoothness

    def _gradient_scale(self, point: Point, W: Any, mass: Array) -> Array:
        """Size of what cancels in the gradient; what its rounding is relative to."""
        loss: Any = point.loss
        scale = getattr(loss, "gradient_scale", None)
        if scale is not None:
            return jnp.asarray(scale(W), mass.dtype)
        L = self._known_smoothness(loss)
        if L is not None:
            return jnp.asarray(L, mass.dtype) * mass
        # Of a quadratic function the gradient at 0 is what the rest cancels with at an optimum.
        start = loss.covariance_gradient(jax.tree.map(jnp.zeros_like, W))
        X = W.right if isinstance(W, Product) else W
        norm = jnp.linalg.norm(X)
        size = jnp.linalg.norm(jax.vmap(start.mv, 1, 1)(X)) / jnp.where(norm > 0, norm, 1.0)
        return jnp.where(jnp.isfinite(size), size, 0.0)

    def _unit(self, n: int, dtype) -> float:
        return (n + self.steps) * float(jnp.finfo(dtype).eps)


def _offers_gradient(loss: Any, W: Any) -> None:
    loss.covariance_gradient(W)


def certifier(
    *,
    trace_bound: ArrayLike,
    form: Form = "dual",
    method: Method = "auto",
    steps: int = 64,
    failure: ArrayLike = 1e-6,
    smoothness: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
) -> Certifier:
    """The options of `optimality_gap`, without a loss and parameters."""
    trace_bound = _checks.scalar("trace_bound", trace_bound, float, positive=True)
    _checks.choice("form", form, get_args(Form))
    _checks.choice("method", method, get_args(Method))
    steps = _checks.positive_int("steps", steps)
    failure = _checks.scalar("failure", failure, float, positive=True, maximum=0.5)
    if smoothness is not None:
        smoothness = _checks.scalar("smoothness", smoothness, float, positive=True)
    key = jax.random.key(0) if key is None else key
    _checks.random_key("key", key)
    return Certifier(trace_bound, smoothness, failure, key, form, method, steps)
