"""Recovery from semi-random measurements: restarts around steps that halve the error."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from bwflow import _checks
from bwflow.experimental import _oracle
from bwflow.linalg import after, full_precision
from bwflow.operators import Dense

_SLACK = 0.4  # on the share of a matrix of low rank that the random measurements see
_GROWTH = 1.3  # of a radius that was refuted


class Recovery(NamedTuple):
    """What `recover` found.

    Attributes
    ----------
    matrix
        The matrix, positive semi-definite and of the given rank.
    radius
        Bound on its Frobenius distance to the truth, under the assumptions of `recover`.
    converged
        Whether the radius has fallen to the tolerance, times the norm of the matrix.
    weights
        The last weights, of measurements of unit norm.
    num_restarts, num_calls
        Restarts, and calls of the oracle.
    num_refuted
        How often a radius turned out too small, and was enlarged.
    """

    matrix: Float[Array, "n n"]
    radius: Float[Array, ""]
    converged: Bool[Array, ""]
    weights: Float[Array, " m"]
    num_restarts: Int[Array, ""]
    num_calls: Int[Array, ""]
    num_refuted: Int[Array, ""]


def recover(
    operator: Dense,
    y: ArrayLike,
    *,
    rank: int,
    num_random: int,
    tolerance: ArrayLike = 1e-8,
    radius: ArrayLike | None = None,
    max_restarts: int = 150,
    num_calls: int = 3,
    num_steps: int = 8,
) -> Recovery:
    """Recover `M* = W W^T` from right measurements, of which `num_random` are random.

    From a matrix `X_0` of the rank, `||X_0 - M*|| <= R`, so that `M*` is in the ball of nuclear
    norm `(2 r)^{1/2} R` around `X_0`, it repeats `X <- P_ball(X + R D)` with
    `D = sum_i w_i d_i A_i`, `d_i = (y_i - <A_i, X>) / R`, and weights `w >= 0` of the oracle; then
    truncates to the rank and starts again with a smaller `R`.

    Parameters
    ----------
    operator, y
        `A`, of which the symmetric parts count, and `<A_i, M*>` without noise.
    rank
        Rank of the truth, at most.
    num_random
        How many of the measurements are random (independent, Gaussian, say), or fewer.
    tolerance
        Relative radius at which to stop: that of the norm of the matrix found.
    radius
        Bound on `||M*||`, the first `R`; by default from the measurements, as the later ones are.
    max_restarts
        Most restarts.
    num_calls, num_steps
        Calls of the oracle between restarts, and its steps, each of two passes over the
        measurements and one eigendecomposition of `n x n`.

    Returns
    -------
    Recovery
        With `converged` false if the restarts did not suffice; nothing is raised.

    Raises
    ------
    ValueError
        If the operator is not `operators.Dense` of square matrices, `y` does not fit, a number is
        out of range, or `num_random` is above the number of measurements or below
        `n r - r (r - 1) / 2`, the freedom of `M*`, when nothing can recover it.

    Notes
    -----
    Proved: for every `w`, with `d` the step taken, in units of `R`,
    `||X - M*||^2` falls by at least `2 sum_i w_i d_i^2 - 2 <D, d> + ||d||^2` (expand the square;
    `<D, M* - X> = sum_i w_i d_i^2` since the measurements are right; the projection's variational
    inequality does the rest). That needs nothing of `M*` but that it is in the ball, and is concave
    in `w d`: the oracle maximises it. Once it sums to `15/16`, a quarter of `R` is certified.

    Assumed: these decreases sum to `||X_0 - M*||^2` at most, so they cannot certify where `R` is
    much too large, and `R` then comes from the part of `X - M*` that the measurements see, divided
    by the share of it that `num_random` Gaussian ones see of matrices of low rank, with a factor
    of 0.4 to spare on its square. A radius refuted by its own certificate is enlarged.

    Measured, not proved: in 288 problems of `sensing_problem`, n up to 50, ranks 1 and 2, with
    6 n r or 10 n r random measurements, it recovered to 1e-8 each time and the bound held
    (`benchmarks/I0_semirandom.py`). With 4 n r, at rank 1, 150 restarts did not always suffice for
    n = 30 and led nowhere for n = 50, and the bound was once too small, by 2 percent. It is the
    ball, that is convexity, which avoids the local minima, and the weights that make the number of
    steps independent of added copies: with equal weights the same loop is right in the end, but
    slower the more of them there are.

    Cost: once `m^2 n^2 + m^3`; then some 20 passes over the `m n^2` numbers and 10
    eigendecompositions for each call with the defaults, a hundred calls or a few. Double precision
    is meant; in single precision ask for `tolerance=1e-4`.

    References
    ----------
    Gao and Cheng (2023), Robust matrix sensing in the semi-random model, for the scheme. The oracle
    and the certificate are derived here, after the vector case of Kelner, Li, Liu, Sidford and Tian
    (2023), Semi-random sparse recovery in nearly-linear time.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> semirandom = bw.experimental.semirandom
    >>> loss, W = semirandom.sensing_problem(jax.random.key(0), 8, rank=1, num_random=60)
    >>> found = semirandom.recover(
    ...     loss.operator, loss.y, rank=1, num_random=60, tolerance=1e-4)
    >>> bool(found.converged), bool(jnp.linalg.norm(found.matrix - W @ W.T) < 1e-3)
    (True, True)
    """
    _checks.instance("operator", operator, Dense, "a bwflow.operators.Dense")
    n, p = operator.shape
    m = operator.num_measurements
    if n != p:
        raise ValueError(f"operator must be one of square matrices; got shape {(n, p)}.")
    y = _checks.real_array("y", y, ndim=1)
    if y.size != m or y.dtype != operator.matrices.dtype:
        raise ValueError(
            f"y must have {m} entries, one for each measurement, of dtype "
            f"{operator.matrices.dtype}; got {y.size} of {y.dtype}."
        )
    r = _checks.positive_int("rank", rank)
    if r > n:
        raise ValueError(f"rank must be at most {n}; got {r}.")
    freedom = n * r - r * (r - 1) // 2
    if not freedom <= _checks.positive_int("num_random", num_random) <= m:
        raise ValueError(
            f"num_random must be at least {freedom}, the freedom of matrices of size {n} and rank "
            f"{r}, and at most {m}, the number of measurements; got {num_random}."
        )
    tolerance = _checks.scalar("tolerance", tolerance, y.dtype, positive=True)
    if radius is not None:
        radius = _checks.scalar("radius", radius, y.dtype, positive=True)
    counts = (("max_restarts", max_restarts), ("num_calls", num_calls), ("num_steps", num_steps))
    bounds = tuple(_checks.positive_int(name, x) for name, x in counts)
    share = _SLACK * min(1.0, 2 * num_random / (n * (n + 1)))
    return _recover(operator.matrices, y, tolerance, radius, jnp.asarray(share, y.dtype), r, bounds)


@partial(jax.jit, static_argnums=(5, 6))
@full_precision
def _recover(matrices, y, tolerance, radius, share, rank: int, bounds: tuple[int, int, int]):
    max_restarts, num_calls, num_steps = bounds
    A, norms = _oracle.prepared(matrices)
    y = y / jnp.where(norms > 0, norms, 1)
    eps = float(jnp.finfo(y.dtype).eps)
    seen = _oracle.row_space_norm(A, 1e-10 if eps < 1e-10 else 1e-5)
    n = matrices.shape[1]
    size = jnp.asarray((2 * rank) ** 0.5, y.dtype)

    def distance(X: Array, share: Array) -> Array:
        """Bound on the distance of a matrix of the rank, from its residuals."""
        return seen(y - A.rows @ X.ravel()) / jnp.sqrt(share)

    def unfinished(state: tuple) -> Array:
        found, _ = state
        return (found.num_restarts < max_restarts) & ~found.converged

    def restart(state: tuple) -> tuple:
        found, share = state
        X, squared, weights, calls = _oracle.halved(
            A, y, found.matrix, found.radius, found.weights, size,
            num_calls=num_calls, num_steps=num_steps,
        )  # fmt: skip
        # More than R^2 cannot be taken from a distance of R at most.
        refuted = squared < 0
        certified = 2 * jnp.sqrt(jnp.maximum(squared, 0))  # what truncation may make of it
        certified = jnp.where(squared <= 1 / 16, jnp.maximum(certified, 0.05), jnp.inf)
        lower = _oracle.truncated(X, rank)
        smaller = jnp.minimum(certified * found.radius, distance(lower, share))
        less = share / _GROWTH
        larger = jnp.maximum(
            _GROWTH**0.5 * found.radius, distance(after(found.matrix, smaller), less)
        )
        radius = jnp.where(refuted, jnp.minimum(larger, first), smaller)
        matrix = jnp.where(refuted, found.matrix, lower)
        found = Recovery(
            matrix=matrix,
            radius=radius,
            converged=radius <= tolerance * jnp.linalg.norm(matrix),
            weights=weights,
            num_restarts=found.num_restarts + 1,
            num_calls=found.num_calls + calls,
            num_refuted=found.num_refuted + refuted.astype(jnp.int32),
        )
        return found, jnp.where(refuted, less, share)

    start, zero = jnp.zeros((n, n), y.dtype), jnp.zeros((), jnp.int32)
    first = distance(start, share) if radius is None else jnp.asarray(radius, y.dtype)
    # Where all measurements are zero, so is what the first radius is computed from.
    nothing = Recovery(start, first, first <= 0, jnp.zeros_like(y), zero, zero, zero)
    return lax.while_loop(unfinished, restart, (nothing, share))[0]
