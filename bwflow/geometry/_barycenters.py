"""Means of covariances: barycenters and geometric medians, of any rank, differentiable.

In a factor `F` of the mean the Bures-Wasserstein gradient step of unit length is the average of
the factors `L_i` of the data, each turned as near to `F` as it gets,
`G(F) = sum_i w_i L_i P_i` with `P_i` the polar factor of `L_i^T F`. Every such step lowers the
objective, whatever the ranks. At a fixed point `F - G(F)` is half the gradient, so that its
derivative is symmetric: the implicit function theorem asks for conjugate gradients only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from bwflow import _checks
from bwflow.geometry import _operands
from bwflow.geometry._deviation import aligned
from bwflow.geometry._operands import Covariance, Factor, Kind, Operand, as_root
from bwflow.geometry._roots import root
from bwflow.linalg import full_precision, symmetrize

# The share of the plain step's decrease, at least `||F - G(F)||^2`, that an accelerated one owes.
_DECREASE = 0.1
_SKETCH = 20230303


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


@dataclass(frozen=True)
class _Problem:
    """What is minimised, and how; static."""

    kind: Literal["mean", "entropic", "median"]
    rank: int
    memory: int


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
        sketch of it sees.
    rtol
        Residual to stop at, relative to `||F||`; by default 1e-10, in float32 1.2e-5.
    max_steps
        Evaluations to stop at.
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
    given = _given(covariances, mask)
    # Looked at with numpy: under a trace an array of jax would not say that it is zero.
    scale = _checks.scalar("entropy", entropy, given.array.dtype, minimum=0.0)
    penalised = not _checks.is_concrete(scale) or bool(np.any(np.asarray(scale)))
    kind = "entropic" if penalised else "mean"
    control = (weights, mask, means, rank, start, rtol, max_steps, memory)
    return _found(kind, given, jnp.asarray(scale), control, throw)


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
    given = _given(covariances, mask)
    dtype = given.array.dtype
    scale = _operands.number("smoothing", smoothing, [], dtype=dtype, ndim=0, positive=True)
    control = (weights, mask, None, rank, start, rtol, max_steps, memory)
    return _found("median", given, scale, control, throw)


def _given(covariances: Covariance, mask: ArrayLike | None) -> Operand:
    """The sets; what does not count is replaced by identities before it is looked at."""
    x = covariances
    if mask is not None and not isinstance(x, _operands.KINDS):
        x = _checks.real_array("covariances", x, finite=False)
        if x.ndim > 2:
            x = jnp.where(_mask(mask, x.shape[:-2])[..., None, None], x, _identity(x))
    given = _operands.operand("covariances", x)
    if given.array.ndim < 3 or given.array.shape[-3] == 0:
        raise ValueError(
            "covariances must be a list of covariances, of 3 dimensions or more; "
            f"got shape {given.array.shape}."
        )
    return given


def _mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    if mask is None:
        return jnp.ones(shape, bool)
    found = _checks.seen("mask", mask)
    if found.dtype != bool or not _fits(found.shape, shape):
        raise ValueError(
            f"mask must be booleans of shape {shape}, as covariances has; "
            f"got shape {found.shape} of dtype {found.dtype}."
        )
    return jnp.broadcast_to(found, shape)


def _fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(own, shape) == shape and own[-1:] == shape[-1:]
    except ValueError:
        return False


def _identity(x: Array) -> Array:
    return jnp.eye(*x.shape[-2:], dtype=x.dtype)


def _weights(weights: ArrayLike | None, kept: Array, dtype: Any) -> Array:
    """Weights that sum to one, 0 where the mask is false."""
    if weights is None:
        found = np.ones((), dtype)
    else:
        found = _checks.numbers("weights", weights, dtype, minimum=0.0)
        if not _fits(found.shape, kept.shape):
            raise ValueError(
                f"weights must be of shape {kept.shape}, as covariances has; got {found.shape}."
            )
    if _checks.is_concrete(kept) and _checks.is_concrete(found):
        total = np.sum(np.where(np.asarray(kept), np.asarray(found), 0), axis=-1)
        if not np.all(total > 0):
            raise ValueError("weights and mask must leave a positive weight in every set.")
    return jnp.where(kept, jnp.broadcast_to(jnp.asarray(found, dtype), kept.shape), 0)


def _found(
    kind: Literal["mean", "entropic", "median"],
    given: Operand,
    scale: Array,
    control: tuple,
    throw: bool,
) -> Barycenter:
    weights, mask, means, rank, start, rtol, max_steps, memory = control
    shape, dtype, n = given.array.shape[:-2], given.array.dtype, given.dim
    w = _weights(weights, _mask(mask, shape), dtype)
    first = None if start is None else _operands.operand("start", start)
    problem = _Problem(
        kind, _rank(rank, given, first), _checks.integer("memory", memory, minimum=0)
    )
    if kind == "entropic" and problem.rank < n:
        raise ValueError(f"entropy must be 0 for a rank below {n}; got rank={problem.rank}.")
    if rtol is None:
        rtol = max(1e-10, 100 * float(jnp.finfo(dtype).eps))
    tolerance = jnp.asarray(_checks.scalar("rtol", rtol, dtype, minimum=0.0))
    steps = jnp.asarray(_checks.positive_int("max_steps", max_steps))
    centre = None
    if means is not None:
        points = _operands.vector("means", means, given)
        if not _fits(points.shape[:-1], shape):
            raise ValueError(
                f"means must be of shape {(*shape, n)}, as covariances has; got {points.shape}."
            )
        centre = _centre(w, points)
    first_array = None if first is None else first.array
    kinds = (given.kind, "matrix" if first is None else first.kind)
    F, objective, residual, gap, count, code = _solved(
        problem, kinds, given.array, w, scale, tolerance, steps, first_array
    )
    result = _result(code)
    count = count.astype(jnp.result_type(int))
    return _concluded(Barycenter(F, centre, objective, residual, gap, count, result), throw)


def _result(code: Array) -> RESULTS:
    if code.ndim:
        return jax.vmap(_result)(code)
    result = RESULTS.where(code == 0, RESULTS.successful, RESULTS.max_steps_reached)
    return RESULTS.where(code == 2, RESULTS.nonfinite, result)


def _concluded(mean: Barycenter, throw: bool) -> Barycenter:
    if not throw:
        return mean
    failed = mean.result != RESULTS.successful
    if not _checks.is_concrete(failed):
        return mean.result.error_if(mean, failed)
    if np.any(failed):
        worst = int(np.argmax(np.ravel(failed)))
        code = jax.tree.map(lambda x: np.asarray(np.ravel(x)[worst]), mean.result)
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


@partial(jax.jit, static_argnums=(0, 1))
@full_precision
def _solved(
    problem: _Problem,
    kinds: tuple[Kind, Kind],
    arrays: Array,
    w: Array,
    scale: Array,
    rtol: Array,
    max_steps: Array,
    start: Array | None,
) -> tuple[Array, ...]:
    def one(C: Array, w: Array, *start: Array) -> tuple[Array, ...]:
        return _one_set(problem, kinds, C, w, scale, rtol, max_steps, *start)

    signature = "(i,n,m),(i)" + ("" if start is None else ",(n,k)")
    starts = [] if start is None else [start]
    batch = jnp.broadcast_shapes(arrays.shape[:-3], *(x.shape[:-2] for x in starts))
    arrays, w, *starts = (
        jnp.broadcast_to(x, batch + x.shape[x.ndim - core :])
        for x, core in ((arrays, 3), (w, 1), *((x, 2) for x in starts))
    )
    return jnp.vectorize(one, signature=signature + "->(n,k),(),(),(),(),()")(arrays, w, *starts)


def _one_set(
    problem: _Problem,
    kinds: tuple[Kind, Kind],
    C: Array,
    w: Array,
    scale: Array,
    rtol: Array,
    max_steps: Array,
    start: Array | None = None,
) -> tuple[Array, ...]:
    w = w / jnp.sum(w)
    C = jnp.where(w[:, None, None] > 0, C, jnp.eye(*C.shape[1:], dtype=C.dtype))
    L = jax.vmap(partial(as_root, kind=kinds[0]))(C)
    if start is None:
        first = _first(problem.rank, lax.stop_gradient(L), lax.stop_gradient(w))
    else:
        first = as_root(lax.stop_gradient(start), kinds[1])

    def improved(F: Array) -> tuple[Array, Array]:
        return _step(problem, scale, w, L, F)

    def equation(F: Array) -> Array:
        return _half_gradient(problem, scale, w, L, F) + _gauge(F)

    def solve(_, F: Array) -> tuple[Array, tuple[Array, ...]]:
        return _iterated(improved, F, problem.memory, rtol, max_steps)

    F, (r, count, code) = lax.custom_root(
        equation, first, solve, _conjugate_gradients, has_aux=True
    )
    objective = _objective(problem, scale, w, L, F)
    gap = lax.stop_gradient(_gap(problem, scale, w, L, F, r))
    return F, objective, jnp.linalg.norm(r), gap, count, code


def _first(rank: int, L: Array, w: Array) -> Array:
    """A factor of the arithmetic mean, or of what is left of it on the range of a sketch."""
    n = L.shape[1]
    scaled = L * jnp.sqrt(w)[:, None, None]
    columns = jnp.moveaxis(scaled, 0, 1).reshape(n, -1)
    if rank >= n:
        F = root(columns @ columns.T)
        return jnp.concatenate([F, jnp.zeros((n, rank - n), F.dtype)], axis=1)
    sketch = jax.random.normal(jax.random.key(_SKETCH), (n, rank), dtype=L.dtype)
    Q, _ = jnp.linalg.qr(columns @ (columns.T @ sketch))
    inside = Q.T @ columns
    return Q @ root(inside @ inside.T)


def _step(problem: _Problem, scale: Array, w: Array, L: Array, F: Array) -> tuple[Array, Array]:
    """The next factor, and the objective at this one, up to a constant."""
    G, total = _average(problem, scale, w, L, F)
    if problem.kind == "mean":
        return G, jnp.vdot(F - 2 * G, F)
    if problem.kind == "median":
        return G, total
    value = jnp.vdot((1 + scale) * F - 2 * G, F) - 2 * scale * jnp.linalg.slogdet(F)[1]
    return _shrunk(G, scale), value


def _average(problem: _Problem, scale: Array, w: Array, L: Array, F: Array) -> tuple[Array, Array]:
    """`G`, the average of the data turned towards `F`; and of a median the objective.

    Products with all the factors at once, as with one tall matrix.
    """
    N, n, m = L.shape
    tall = jnp.swapaxes(L, 1, 2).reshape(N * m, n)
    Y = (tall @ F).reshape(N, m, F.shape[1])
    P = jax.vmap(lambda Y: aligned(Y, jnp.eye(m, dtype=Y.dtype)))(Y)
    total = jnp.zeros((), F.dtype)
    if problem.kind == "median":
        lengths = jnp.sqrt(scale**2 + _distances(L, P, F))
        total = w @ lengths
        w = w / lengths
        w = w / jnp.sum(w)
    return (tall * jnp.repeat(w, m)[:, None]).T @ P.reshape(N * m, -1), total


def _distances(L: Array, P: Array, F: Array) -> Array:
    moved = L @ P
    left = L - moved @ jnp.swapaxes(P, 1, 2)
    return jnp.sum((F[None] - moved) ** 2, axis=(1, 2)) + jnp.sum(left**2, axis=(1, 2))


def _shrunk(G: Array, gamma: Array) -> Array:
    """`F` with `(1 + gamma) F - gamma F^{-T} = G`, singular value by singular value."""
    U, s, Vt = jnp.linalg.svd(lax.stop_gradient(G))
    s = (s + jnp.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))
    return (U * s[None, :]) @ Vt


def _half_gradient(problem: _Problem, scale: Array, w: Array, L: Array, F: Array) -> Array:
    """Of the objective in `F`; of a median that of it divided by the sum of its weights."""
    G, _ = _average(problem, scale, w, L, F)
    if problem.kind == "entropic":
        return (1 + scale) * F - scale * jnp.linalg.inv(F).T - G
    return F - G


def _gauge(F: Array) -> Array:
    """Zero, with a derivative that is positive along rotations of `F`, where all else has none."""
    fixed = lax.stop_gradient(F)
    inside = fixed.T @ F
    return fixed @ (inside - inside.T) / jnp.sum(fixed**2)


def _conjugate_gradients(operator: Callable[[Array], Array], y: Array) -> Array:
    tolerance = 10 * float(jnp.finfo(y.dtype).eps)
    matrix = lx.FunctionLinearOperator(
        operator, jax.eval_shape(lambda: y), lx.positive_semidefinite_tag
    )
    solver = lx.CG(rtol=tolerance, atol=0.0, max_steps=4 * y.size)
    return lx.linear_solve(matrix, y, solver, throw=False).value


def _iterated(
    improved: Callable[[Array], tuple[Array, Array]],
    F: Array,
    memory: int,
    rtol: Array,
    max_steps: Array,
) -> tuple[Array, tuple[Array, ...]]:
    """A fixed point by Anderson's method; with its residual, evaluations, and how it ended."""
    shape, dtype, m = F.shape, F.dtype, max(memory, 1)
    nothing = jnp.zeros((m, F.size), dtype)
    eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny

    def unfinished(state):
        x, _, norm, _, _, _, _, count = state
        above = (norm > rtol * jnp.linalg.norm(x)) & jnp.isfinite(norm)
        return (count == 0) | (above & (count < max_steps))

    def advance(state):
        x, r, norm, value, dX, dR, used, count = state
        gram = dR @ dR.T
        damping = eps * jnp.trace(gram) + tiny
        mixed = jnp.linalg.solve(gram + damping * jnp.eye(m, dtype=dtype), dR @ r)
        proposed = x + r - mixed @ (dX + dR)
        moved, lower = improved(proposed.reshape(shape))
        new = moved.ravel() - proposed
        # Up to rounding of the value. A step that is taken back leaves the plain one.
        owed = _DECREASE * norm**2 - 10 * eps * jnp.sum(x**2)
        accepted = (lower <= value - owed) | (used == 0)
        if memory:
            slot = (jnp.arange(m)[:, None] == used % m) & (used > 0)
            grown = (jnp.where(slot, proposed - x, dX), jnp.where(slot, new - r, dR))
            dX, dR = (jnp.where(accepted, now, nothing) for now in grown)
        reached = (proposed, new, jnp.linalg.norm(new), lower)
        kept = [jnp.where(accepted, *pair) for pair in zip(reached, state[:4], strict=True)]
        return *kept, dX, dR, jnp.where(accepted, used + 1, 0), count + 1

    x, zero = F.ravel(), jnp.zeros((), jnp.result_type(int))
    infinite = jnp.full((), jnp.inf, dtype)
    # The first evaluation is one of the loop, which is compiled once.
    state = (x, jnp.zeros_like(x), infinite, infinite, nothing, nothing, zero, zero)
    x, r, norm, *_, count = lax.while_loop(unfinished, advance, state)
    reached = norm <= rtol * jnp.linalg.norm(x)
    code = jnp.where(reached, 0.0, jnp.where(jnp.isfinite(norm), 1.0, 2.0))
    # As floats: jax.lax.custom_root has no derivatives for integers beside the root.
    return x.reshape(shape), (r.reshape(shape), count.astype(dtype), code.astype(dtype))


def _objective(problem: _Problem, scale: Array, w: Array, L: Array, F: Array) -> Array:
    P = jax.vmap(lambda L: aligned(F, L))(L)
    distances = _distances(L, P, F)
    if problem.kind == "median":
        return w @ jnp.sqrt(scale**2 + distances)
    if problem.kind == "mean":
        return w @ distances
    penalty = jnp.sum(F**2) - 2 * jnp.linalg.slogdet(F)[1] - len(F)
    return w @ distances + scale * penalty


def _gap(problem: _Problem, scale: Array, w: Array, L: Array, F: Array, r: Array) -> Array:
    """The bound on how far the objective is from its minimum, from the residual `r`."""
    n = F.shape[0]
    nothing = jnp.full((), jnp.inf, F.dtype)
    if problem.kind == "median" or problem.rank < n:
        return nothing
    inverse = jnp.linalg.pinv(F)
    gamma = jnp.zeros_like(scale)
    half = -r
    if problem.kind == "entropic":
        # The step solved (1 + gamma) (F + r) - gamma (F + r)^{-T} = G.
        gamma, next_one = scale, F + r
        G = (1 + gamma) * next_one - gamma * jnp.linalg.inv(next_one).T
        half = (1 + gamma) * F - gamma * inverse.T - G
    least = jnp.linalg.eigvalsh(symmetrize(half @ inverse))[0]
    traces = w @ jnp.sum(L**2, axis=(1, 2))
    # The root of the largest trace that a minimiser can have.
    reach = jnp.sqrt(traces) + jnp.sqrt(traces + 4 * (1 + gamma) * gamma * n)
    largest = (reach / (2 * (1 + gamma))) ** 2
    bound = jnp.maximum(jnp.vdot(half, F) + jnp.maximum(-least, 0) * largest, 0)
    return jnp.where(jnp.linalg.matrix_rank(F) < n, nothing, bound)
