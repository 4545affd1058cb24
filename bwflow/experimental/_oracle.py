"""The reweighting oracle: weights of measurements that are best for the iterate at hand."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bwflow.experimental._accelerated import accelerated
from bwflow.linalg import after

_LARGEST_WEIGHT = 1e3  # of a measurement with a residual near zero, in a start
_POWERS = 40  # iterations of the power method


class Measurements(NamedTuple):
    """Measurements of unit norm, `rows` of `m x n^2`, their Gram matrix and a majoriser of it."""

    rows: Float[Array, "m n2"]
    gram: Float[Array, "m m"]
    lengths: Float[Array, " m"]  # diag(lengths) >= rows rows^T


def prepared(matrices: Float[Array, "m n n"]) -> tuple[Measurements, Float[Array, " m"]]:
    """The symmetric parts, of unit norm, and the norms that they had; zero ones stay zero.

    The majoriser is a multiple of `sum_j <A_i, A_j>^2`, a count of near copies of each: added
    copies, however many, then slow nothing down.
    """
    symmetric = (matrices + jnp.swapaxes(matrices, 1, 2)) / 2
    rows = symmetric.reshape(matrices.shape[0], -1)
    norms = jnp.linalg.norm(rows, axis=1)
    rows = rows / jnp.where(norms > 0, norms, 1)[:, None]
    gram = rows @ rows.T
    counts = jnp.sum(gram**2, axis=1)
    roots = lax.rsqrt(jnp.where(counts > 0, counts, 1))

    def powered(_, x: Array) -> Array:
        y = roots * (gram @ (roots * x))
        return y / jnp.maximum(jnp.linalg.norm(y), jnp.finfo(y.dtype).tiny)

    x = lax.fori_loop(0, _POWERS, powered, jnp.full_like(counts, counts.size**-0.5))
    # The power method estimates from below; Gershgorin's discs are a bound.
    estimate = 1.1 * jnp.vdot(x, roots * (gram @ (roots * x)))
    bound = jnp.max(roots * (jnp.abs(gram) @ roots))
    lengths = jnp.minimum(estimate, bound) * jnp.where(counts > 0, counts, 1)
    return Measurements(rows, gram, lengths), norms


def on_ball(X: Float[Array, "n n"], size: Array) -> Float[Array, "n n"]:
    """Projection of a symmetric matrix on those of nuclear norm at most `size`."""
    values, Q = jnp.linalg.eigh(X)
    sizes = jnp.sort(jnp.abs(values))[::-1]
    excess = (jnp.cumsum(sizes) - size) / jnp.arange(1, sizes.size + 1, dtype=X.dtype)
    least = jnp.maximum(jnp.max(excess), 0)
    return (Q * (jnp.sign(values) * jnp.maximum(jnp.abs(values) - least, 0))[None, :]) @ Q.T


def decrease(
    A: Measurements, v: Array, residuals: Array, Y: Float[Array, "n n"], size: Array
) -> tuple[Array, Float[Array, "n n"]]:
    """Certified decrease of `||Y - Y*||^2`, and the step that has it.

    For `D = sum_i v_i A_i` and the step `d` from `Y` to the projection of `Y + D` on the ball,
    `2 <v, residuals> - 2 <D, d> + ||d||^2`; see `bwflow.experimental.semirandom.recover`.
    """
    D = (v @ A.rows).reshape(Y.shape)
    step = on_ball(Y + D, size) - Y
    return 2 * jnp.vdot(v, residuals) - 2 * jnp.vdot(D, step) + jnp.vdot(step, step), step


def oracle(
    A: Measurements,
    weights: Float[Array, " m"],
    residuals: Float[Array, " m"],
    Y: Float[Array, "n n"],
    size: Array,
    num_steps: int,
) -> Float[Array, " m"]:
    """Weights `w >= 0` whose direction `sum_i w_i residuals_i A_i` has a large certified decrease.

    That is a concave function of `v_i = w_i residuals_i`, with gradient
    `2 (residuals_i - <A_i, d>)`, which is maximised by accelerated projected steps with restarts.
    """

    def allowed(v: Array) -> Array:
        return jnp.where(v * residuals > 0, v, 0)

    def ascended(v: Array) -> Array:
        _, step = decrease(A, v, residuals, Y, size)
        return allowed(v + (residuals - A.rows @ step.ravel()) / A.lengths)

    # The weights of another iterate may be worse than none.
    start = weights * residuals
    gained, _ = decrease(A, start, residuals, Y, size)
    start = jnp.where(gained > 0, start, 0)
    v = accelerated(ascended, start, num_steps, A.lengths)
    nonzero = jnp.abs(residuals) > jnp.finfo(residuals.dtype).tiny
    return jnp.clip(jnp.where(nonzero, v / jnp.where(nonzero, residuals, 1), 0), 0, _LARGEST_WEIGHT)


def halved(
    A: Measurements,
    y: Float[Array, " m"],
    centre: Float[Array, "n n"],
    radius: Array,
    weights: Float[Array, " m"],
    size: Array,
    *,
    num_calls: int,
    num_steps: int,
) -> tuple[Float[Array, "n n"], Array, Float[Array, " m"], Array]:
    """HalveError: reweighted steps from a centre, until a quarter of the radius is certified.

    Lengths are in units of the radius, from the centre on. Returns the matrix, the certified square
    of its distance, the last weights and the number of calls of the oracle.
    """
    at_centre = (y - A.rows @ centre.ravel()) / radius

    def unfinished(state: tuple) -> Array:
        _, squared, _, gained, calls = state
        return (calls < num_calls) & (gained > 1e-3) & (squared > 1 / 16)

    def advance(state: tuple) -> tuple:
        Y, squared, weights, _, calls = state
        residuals = at_centre - A.rows @ Y.ravel()
        weights = oracle(A, weights, residuals, Y, size, num_steps)
        gained, step = decrease(A, weights * residuals, residuals, after(Y, weights), size)
        better = gained > 0
        Y = jnp.where(better, Y + step, Y)
        return Y, squared - jnp.where(better, gained, 0), weights, gained, calls + 1

    begun = jnp.zeros_like(centre), jnp.ones_like(radius), weights, jnp.full_like(radius, jnp.inf)
    state = lax.while_loop(unfinished, advance, (*begun, jnp.zeros((), jnp.int32)))
    Y, squared, weights, _, calls = state
    return centre + radius * Y, squared, weights, calls


def truncated(X: Float[Array, "n n"], rank: int) -> Float[Array, "n n"]:
    """The nearest positive semi-definite matrix of a rank."""
    values, Q = jnp.linalg.eigh(X)
    return (Q[:, -rank:] * jnp.maximum(values[-rank:], 0)[None, :]) @ Q[:, -rank:].T


def row_space_norm(A: Measurements, ridge: float) -> Callable[[Array], Array]:
    """The norm of the part that measurements see of a matrix, as a function of what they are."""
    root = jnp.linalg.cholesky(A.gram + ridge * jnp.eye(A.gram.shape[0], dtype=A.gram.dtype))

    def norm(z: Array) -> Array:
        return jnp.linalg.norm(jax.scipy.linalg.solve_triangular(root, z, lower=True))

    return norm
