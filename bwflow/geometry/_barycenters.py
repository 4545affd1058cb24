"""Means of covariances: barycenters and geometric medians, of any rank, differentiable."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from bwflow import _checks
from bwflow.geometry import _operands
from bwflow.geometry._fixed_points import Problem, solved, usual_rtol
from bwflow.geometry._operands import Covariance, Factor, Operand
from bwflow.linalg import settled


class RESULTS(eqx.Enumeration):
    """How an iteration ended; the sentences say what to do."""

    successful = "The residual came below its tolerance."
    max_steps_reached = (
        "The maximum number of steps was reached before the tolerance. Raise `max_steps` or "
        "`rtol`; rounding ends progress at some `eps` times the condition of the data."
    )
    nonfinite = "The iteration became NaN or infinite. Rescale the data: squares must be in range."


class Barycenter(eqx.Module):
    """A mean of covariances, and how well it is known.

    Attributes
    ----------
    factor
        `F`, `n x k`; the mean is `F F^T`.
    mean
        Mean of the means, if these were given.
    objective
        What was minimised, in units of the covariances; for a median a length.
    residual
        `||F - G(F)||`, the length of the next step of the plain iteration.
    gap
        Bound from above on how far the objective is from its minimum over all covariances, proved
        by convexity; infinite where that proves nothing: of medians, and below full rank.
    num_steps
        Evaluations of the iteration.
    result
        One of `bwflow.geometry.RESULTS`.
    """

    factor: Float[Array, "*batch n k"]
    mean: Float[Array, "*batch n"] | None
    objective: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    result: RESULTS

    @property
    def covariance(self) -> Float[Array, "*batch n n"]:
        """`F F^T`."""
        return Factor(self.factor).covariance


def barycenter(
    covariances: Covariance,
    *,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    means: ArrayLike | None = None,
    rank: int | None = None,
    entropy: ArrayLike = 0.0,
    start: Covariance | None = None,
    rtol: ArrayLike | None = None,
    max_steps: int = 1000,
    memory: int = 5,
    throw: bool = True,
) -> Barycenter:
    """The Bures-Wasserstein barycenter, which minimises `sum_i w_i BW^2(S, A_i)`.

    By `F <- sum_i w_i L_i P_i` on a factor of `S`, a gradient step of unit length, accelerated by
    Anderson's method.

    Parameters
    ----------
    covariances
        The `A_i`: `... x N x n x n`, or a `Factor` of `... x N x n x m`; leading dimensions are a
        batch of such sets.
    weights
        `... x N`, not negative; divided by their sum. Equal by default.
    mask
        `... x N`, booleans: those that count. What else is there may be NaN.
    means
        `... x N x n`, means of Gaussians with these covariances, whose barycenter is wanted.
    rank
        Columns `k` of the factor: the least objective among covariances of rank `k`. By default `n`
        for matrices and `m`, at most `n`, for factors, unless `start` is a `Factor`.
    entropy
        `gamma` in the penalty `gamma (tr S - log det S - n)`, twice `gamma` times the relative
        entropy to the standard Gaussian; it wants the units of variance for which that makes
        sense. Only for `k = n`.
    start
        Where to start, by default at the arithmetic mean, or a factor that spans what a random
        sketch of it sees. A singular start is never left: the iteration keeps its rank, and ends
        at the best covariance of that.
    rtol
        Residual to stop at, relative to `||F||`; by default 1e-10, in float32 1.2e-5.
    max_steps
        Evaluations to stop at; the first is at the start itself.
    memory
        How many earlier steps Anderson's method combines; 0 is the plain iteration.
    throw
        Whether failure raises an error. Otherwise see `result`.

    Returns
    -------
    Barycenter
        The mean with its residual and certificate.

    Raises
    ------
    ValueError
        If the sets are no lists of covariances; if weights, mask or means are not of their shape,
        weights are negative or sum to 0; if `rank` is not between 1 and `n` or does not fit
        `start`; if `entropy` is negative, or positive at a rank below `n`; if `rtol`,
        `max_steps` or `memory` is out of range.
    RuntimeError
        If the tolerance was not reached, unless `throw` is false.

    Notes
    -----
    Cost of a step: a polar factor of `m x k` for each covariance and two products of size
    `N m n k`. The barycenter is unique if one of the `A_i` with positive weight is regular. For
    `k < n` the problem is not convex; what is found is a stationary point.

    The certificate is `<E, S> + max(0, -lambda_min(E)) t` with `E = I - sum_i w_i T_i` for the maps
    `T_i` from `S` to `A_i`, and `t = sum_i w_i tr A_i`, which no barycenter's trace exceeds.

    Derivatives of every order in covariances, factors and weights, by the implicit function
    theorem and conjugate gradients, are those of the exact fixed point.

    References
    ----------
    Agueh, Carlier (2011), Barycenters in the Wasserstein space.
    Alvarez-Esteban, del Barrio, Cuesta-Albertos, Matran (2016), arXiv 1511.05355.
    Altschuler, Chewi, Gerber, Stromme (2021), arXiv 2106.08502.
    Walker, Ni (2011), Anderson acceleration for fixed-point iterations.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> covariances = jnp.array([1.0, 9.0])[:, None, None] * jnp.eye(2)
    >>> print(bw.geometry.barycenter(covariances).covariance.round(4))
    [[4. 0.]
     [0. 4.]]
    """
    given = listed(covariances, mask)
    scale = _checks.scalar("entropy", entropy, given.array.dtype, minimum=0.0)
    penalised = not _checks.is_concrete(scale) or bool(np.any(np.asarray(scale)))
    kind = "entropic" if penalised else "mean"
    control = (weights, mask, means, rank, start, rtol, max_steps, memory)
    return _found(kind, given, scale, control, throw)


def geometric_median(
    covariances: Covariance,
    *,
    smoothing: ArrayLike,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    rank: int | None = None,
    start: Covariance | None = None,
    rtol: ArrayLike | None = None,
    max_steps: int = 1000,
    memory: int = 5,
    throw: bool = True,
) -> Barycenter:
    """The smoothed geometric median: least `sum_i w_i (eps^2 + BW^2(S, A_i))^{1/2}`.

    Less than half of the weight, wherever it is, cannot move it far. By the iteration of
    `barycenter`, with weights divided by these distances in every step, as Weiszfeld did.

    Parameters
    ----------
    smoothing
        `eps`, a distance, positive: well below the typical one.
    covariances, weights, mask, rank, start, rtol, max_steps, memory, throw
        As for `barycenter`.

    Returns
    -------
    Barycenter
        The median; its `objective` is the sum above, and its `gap` is infinite: the problem is not
        convex.

    Raises
    ------
    ValueError
        As `barycenter` does, and if `smoothing` is not positive.
    RuntimeError
        If the tolerance was not reached, unless `throw` is false.

    References
    ----------
    Weiszfeld (1937), Sur le point pour lequel la somme des distances de n points donnes est
    minimum.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> covariances = jnp.array([1.0, 1.0, 900.0])[:, None, None] * jnp.eye(1)
    >>> median = bw.geometry.geometric_median(covariances, smoothing=1e-2)
    >>> print(f"{median.covariance.item():.3f}")
    1.012
    """
    given = listed(covariances, mask)
    dtype = given.array.dtype
    scale = _checks.scalar("smoothing", smoothing, dtype, positive=True)
    control = (weights, mask, None, rank, start, rtol, max_steps, memory)
    return _found("median", given, scale, control, throw)


def listed(covariances: Covariance, mask: ArrayLike | None) -> Operand:
    """The sets; what does not count is replaced by identities before it is looked at."""
    x = covariances
    if mask is not None and not isinstance(x, _operands.KINDS):
        x = _checks.real_array("covariances", x, finite=False)
        if x.ndim > 2:
            kept = _mask(mask, x.shape[:-2])[..., None, None]
            seen = _checks.is_concrete(x) and _checks.is_concrete(kept)
            x = (np if seen else jnp).where(kept, x, np.eye(*x.shape[-2:], dtype=x.dtype))
    given = _operands.operand("covariances", x)
    if given.array.ndim < 3 or given.array.shape[-3] == 0:
        raise ValueError(
            "covariances must be a list of covariances, of 3 dimensions or more; "
            f"got shape {given.array.shape}."
        )
    return given


def _mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array | np.ndarray:
    if mask is None:
        return np.ones(shape, bool)
    found = _checks.seen("mask", mask)
    if found.dtype != bool or not _fits(found.shape, shape):
        raise ValueError(
            f"mask must be booleans of shape {shape}, as covariances has; "
            f"got shape {found.shape} of dtype {found.dtype}."
        )
    return (np if _checks.is_concrete(found) else jnp).broadcast_to(found, shape)


def _fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(own, shape) == shape and own[-1:] == shape[-1:]
    except ValueError:
        return False


def counted(
    weights: ArrayLike | None, mask: ArrayLike | None, given: Operand
) -> Array | np.ndarray:
    """Weights, 0 where the mask is false."""
    kept, dtype = _mask(mask, given.array.shape[:-2]), given.array.dtype
    if weights is None:
        found = np.ones((), dtype)
    else:
        found = _checks.numbers("weights", weights, dtype, minimum=0.0)
        if not _fits(found.shape, kept.shape):
            raise ValueError(
                f"weights must be of shape {kept.shape}, as covariances has; got {found.shape}."
            )
    if not (_checks.is_concrete(kept) and _checks.is_concrete(found)):
        return jnp.where(kept, jnp.asarray(found, dtype), jnp.zeros((), dtype))
    w = np.where(np.asarray(kept), np.asarray(found), np.zeros((), dtype))
    if not np.all(np.sum(w, axis=-1) > 0):
        raise ValueError("weights and mask must leave a positive weight in every set.")
    return w


def _found(
    kind: Literal["mean", "entropic", "median"],
    given: Operand,
    scale: Array | np.ndarray,
    control: tuple,
    throw: bool,
) -> Barycenter:
    weights, mask, means, rank, start, rtol, max_steps, memory = control
    shape, dtype, n = given.array.shape[:-2], given.array.dtype, given.dim
    first = None if start is None else _operands.operand("start", start)
    problem = Problem(kind, _rank(rank, given, first), _checks.integer("memory", memory, minimum=0))
    w = counted(weights, mask, given)
    if kind == "entropic" and problem.rank < n:
        raise ValueError(f"entropy must be 0 for a rank below {n}; got rank={problem.rank}.")
    rtol = usual_rtol(dtype) if rtol is None else rtol
    tolerance = _checks.scalar("rtol", rtol, dtype, minimum=0.0)
    steps = _checks.positive_int("max_steps", max_steps)
    points = None if means is None else _operands.vector("means", means, given)
    if points is not None and not _fits(points.shape[:-1], shape):
        raise ValueError(
            f"means must be of shape {(*shape, n)}, as covariances has; got {points.shape}."
        )
    centre = None if points is None else _centre(w, points)
    first_array = None if first is None else first.array
    kinds = (given.kind, "matrix" if first is None else first.kind)
    numbers = (jnp.asarray(x) for x in (scale, tolerance, steps))
    F, objective, residual, gap, count, code = settled(
        solved(problem, kinds, given.array, w, *numbers, first_array)
    )
    found = ended(F, objective, residual, gap, count.astype(jnp.result_type(int)), code)
    return concluded(eqx.tree_at(lambda x: x.mean, found, centre, is_leaf=_nothing), throw)


def _nothing(x: object) -> bool:
    return x is None


def ended(
    F: Array, objective: Array, residual: Array, gap: Array, count: Array, code: Array
) -> Barycenter:
    """The barycenter that was found, with a result for a code."""
    return Barycenter(F, None, objective, residual, gap, count, result_of(code))


def result_of(code: Array) -> RESULTS:
    if code.ndim:
        return jax.vmap(result_of)(code)
    result = RESULTS.where(code == 0, RESULTS.successful, RESULTS.max_steps_reached)
    return RESULTS.where(code == 2, RESULTS.nonfinite, result)


def concluded(mean: Barycenter, throw: bool) -> Barycenter:
    if not throw:
        return mean
    failed = mean.result != RESULTS.successful
    if not _checks.is_concrete(failed):
        return mean.result.error_if(mean, failed)
    if np.any(failed):
        worst = int(np.argmax(np.ravel(failed)))
        code = jax.tree.map(lambda x: jnp.ravel(x)[worst], mean.result)
        raise RuntimeError(RESULTS[code])
    return mean


def _rank(rank: int | None, given: Operand, start: Operand | None) -> int:
    """Columns of the factor."""
    n = given.dim
    if start is not None and start.dim != n:
        raise ValueError(f"start must be of size {n}, as covariances are; got {start.dim}.")
    columns = None if start is None or start.kind == "matrix" else start.array.shape[-1]
    if rank is None:
        return columns if columns is not None else min(n, given.array.shape[-1])
    if _checks.positive_int("rank", rank) > n:
        raise ValueError(f"rank must be at most {n}; got {rank}.")
    if columns is not None and columns != rank:
        raise ValueError(f"rank must be the columns of start, {columns}; got {rank}.")
    if start is not None and start.kind == "matrix" and rank < n:
        raise ValueError(f"start must be a Factor of {rank} columns for a rank below {n}.")
    return rank


@jax.jit
def _centre(w: Array, points: Array) -> Array:
    return jnp.sum(w[..., None] * points, axis=-2) / jnp.sum(w, axis=-1)[..., None]
