"""Fixed points that are means of covariances, by turning factors.

In a factor `F` of the mean the Bures-Wasserstein gradient step of unit length is the average of
the factors `L_i` of the data, each turned as near to `F` as it gets,
`G(F) = sum_i w_i L_i P_i` with `P_i` the polar factor of `L_i^T F`. Every such step lowers the
objective, whatever the ranks. At a fixed point `F - G(F)` is half the gradient, so that its
derivative is symmetric: the implicit function theorem asks for conjugate gradients only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike

from bwflow.geometry._deviation import aligned
from bwflow.geometry._operands import Kind, as_root
from bwflow.geometry._roots import pseudo_inverse, root
from bwflow.linalg import after, full_precision, symmetrize

# The share of the plain step's decrease, at least `||F - G(F)||^2`, that an accelerated one owes.
_DECREASE = 0.1
_SKETCH = 20230303


@dataclass(frozen=True)
class Problem:
    """What is minimised, and how; static."""

    kind: Literal["mean", "entropic", "median"]
    rank: int
    memory: int


@partial(jax.jit, static_argnums=(0, 1))
@full_precision
def solved(
    problem: Problem,
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
    problem: Problem,
    kinds: tuple[Kind, Kind],
    C: Array,
    w: Array,
    scale: Array,
    rtol: Array,
    max_steps: Array,
    start: Array | None = None,
) -> tuple[Array, ...]:
    w = w / jnp.sum(w)
    counts = w > 0
    C = filled(C, counts)
    L = jax.vmap(partial(as_root, kind=kinds[0]))(C)
    # Squares of norms have to be in range. Entropy has units.
    plain = problem.kind == "entropic"
    unit = jnp.ones((), C.dtype) if plain else _unit(jnp.where(counts[:, None, None], L, 0.0))
    L = jnp.where(counts[:, None, None], L / unit, L)
    if problem.kind == "median":
        scale = scale / unit
    if start is None:
        first = _first(problem.rank, lax.stop_gradient(L), lax.stop_gradient(w))
    else:
        first = as_root(after(lax.stop_gradient(start), L), kinds[1]) / unit

    def improved(F: Array) -> tuple[Array, Array]:
        return _step(problem, scale, w, L, F)

    def equation(F: Array) -> Array:
        return _half_gradient(problem, scale, w, L, F) + _gauge(F)

    def solve(_, F: Array) -> tuple[Array, tuple[Array, ...]]:
        return _iterated(improved, F, problem.memory, rtol, max_steps)

    F, (r, value, count, code) = lax.custom_root(
        equation, first, solve, _conjugate_gradients, has_aux=True
    )
    objective = _objective(problem, lax.stop_gradient(value), scale, w, L, F)
    gap = lax.stop_gradient(_gap(problem, scale, w, L, F, r))
    value = unit if problem.kind == "median" else unit**2
    return F * unit, objective * value, jnp.linalg.norm(r) * unit, gap * unit**2, count, code


def usual_rtol(dtype: DTypeLike) -> float:
    """1e-10, or what rounding allows."""
    return max(1e-10, 100 * float(jnp.finfo(dtype).eps))


def filled(C: Array, counts: Array) -> Array:
    """Identities in place of what does not count."""
    return jnp.where(counts[:, None, None], C, jnp.eye(*C.shape[1:], dtype=C.dtype))


def sketch(n: int, rank: int, dtype: DTypeLike) -> Array:
    """Gaussian directions, always the same."""
    return jax.random.normal(jax.random.key(_SKETCH), (n, rank), dtype=dtype)


def _unit(L: Array) -> Array:
    """The power of two at the largest entry."""
    largest = jnp.max(jnp.abs(lax.stop_gradient(L)))
    return jnp.exp2(jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1.0))))


def _first(rank: int, L: Array, w: Array) -> Array:
    """A factor of the arithmetic mean, or of what is left of it on the range of a sketch."""
    n = L.shape[1]
    scaled = L * jnp.sqrt(w)[:, None, None]
    columns = jnp.moveaxis(scaled, 0, 1).reshape(n, -1)
    if rank >= n:
        F = root(columns @ columns.T)
        return jnp.concatenate([F, jnp.zeros((n, rank - n), F.dtype)], axis=1)
    Q, _ = jnp.linalg.qr(columns @ (columns.T @ sketch(n, rank, L.dtype)))
    inside = Q.T @ columns
    return Q @ root(inside @ inside.T)


def _step(problem: Problem, scale: Array, w: Array, L: Array, F: Array) -> tuple[Array, Array]:
    """The next factor, and the objective at this one."""
    G, value = average(problem, scale, w, L, F)
    return (_shrunk(after(G, value), scale) if problem.kind == "entropic" else G), value


def average(problem: Problem, scale: Array, w: Array, L: Array, F: Array) -> tuple[Array, Array]:
    """`G`, the average of the data turned towards `F`, and the objective.

    Products with all the factors at once, as with one tall matrix.
    """
    N, n, m = L.shape
    tall = jnp.swapaxes(L, 1, 2).reshape(N * m, n)
    Y = (tall @ F).reshape(N, m, F.shape[1])
    P = jax.vmap(lambda Y: aligned(Y, jnp.eye(m, dtype=Y.dtype)))(Y)
    distances = _distances(L, P, F)
    if problem.kind == "median":
        lengths = jnp.sqrt(scale**2 + distances)
        value = w @ lengths
        w = w / lengths
        w = w / jnp.sum(w)
    else:
        value = w @ distances
    if problem.kind == "entropic":
        value += scale * (jnp.sum(F**2) - 2 * jnp.linalg.slogdet(after(F, P))[1] - n)
    return (tall * jnp.repeat(w, m)[:, None]).T @ P.reshape(N * m, -1), value


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _objective(problem: Problem, known: Array, scale: Array, w: Array, L: Array, F: Array) -> Array:
    """The objective, whose value is known; computed where its derivatives are."""
    return known


@_objective.defjvp
def _(problem, primals, tangents):
    # The objective is stationary in F, whose own variation does not count.
    _, scale, w, L, F = primals

    def value(scale: Array, w: Array, L: Array) -> Array:
        return average(problem, scale, w, L, F)[1]

    return jax.jvp(value, (scale, w, L), tuple(tangents[1:-1]))


def _distances(L: Array, P: Array, F: Array) -> Array:
    moved = L @ P
    left = L - moved @ jnp.swapaxes(P, 1, 2)
    return jnp.sum((F[None] - moved) ** 2, axis=(1, 2)) + jnp.sum(left**2, axis=(1, 2))


def _shrunk(G: Array, gamma: Array) -> Array:
    """`F` with `(1 + gamma) F - gamma F^{-T} = G`, singular value by singular value."""
    U, s, Vt = jnp.linalg.svd(lax.stop_gradient(G))
    s = (s + jnp.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))
    return (U * s[None, :]) @ Vt


def _half_gradient(problem: Problem, scale: Array, w: Array, L: Array, F: Array) -> Array:
    """Of the objective in `F`; of a median that of it divided by the sum of its weights."""
    if problem.kind != "entropic":
        return F - average(problem, scale, w, L, F)[0]
    K = pseudo_inverse(F)
    return (1 + scale) * F - scale * K.T - average(problem, scale, w, L, after(F, K))[0]


def _gauge(F: Array) -> Array:
    """Zero, with a derivative that is positive along rotations of `F`, where all else has none."""
    fixed = lax.stop_gradient(F)
    inside = fixed.T @ F
    return fixed @ (inside - inside.T) / jnp.sum(fixed**2)


def _conjugate_gradients(operator: Callable[[Array], Array], y: Array) -> Array:
    tolerance = 10 * float(jnp.finfo(y.dtype).eps)
    solver = lx.CG(rtol=tolerance, atol=0.0, max_steps=4 * y.size)

    def solve(operator: Callable[[Array], Array], y: Array) -> Array:
        shape = jax.eval_shape(lambda: y)
        matrix = lx.FunctionLinearOperator(operator, shape, lx.positive_semidefinite_tag)
        return lx.linear_solve(matrix, y, solver, throw=False).value

    # lineax's own transpose raises where the last digits of the tolerance are not reached.
    return lax.custom_linear_solve(operator, y, solve, symmetric=True)


def _iterated(
    improved: Callable[[Array], tuple[Array, Array]],
    F: Array,
    memory: int,
    rtol: Array,
    max_steps: Array,
) -> tuple[Array, tuple[Array, ...]]:
    """A fixed point, with residual, value, evaluations, and how it ended."""

    def unfinished(state: Iteration) -> Array:
        return (state.evaluations == 0) | (state.unfinished(rtol) & (state.evaluations < max_steps))

    def advance(state: Iteration) -> Iteration:
        F = state.proposal()
        return state.after(F, *improved(F))

    # The first evaluation is one of the loop, which is compiled once.
    end = lax.while_loop(unfinished, advance, Iteration.at(F, memory))
    # As floats: jax.lax.custom_root has no derivatives for integers beside the root.
    count, code = end.evaluations.astype(F.dtype), end.code(rtol).astype(F.dtype)
    return end.point, (end.residual, end.value, count, code)


class Iteration(NamedTuple):
    """Anderson's method, one evaluation after another."""

    point: Array
    residual: Array
    norm: Array
    value: Array
    steps: Array
    """Differences of points that were evaluated one after the other, the oldest overwritten."""
    changes: Array
    """Those of their residuals."""
    used: Array
    evaluations: Array

    @classmethod
    def at(cls, F: Array, memory: int) -> "Iteration":
        """Before the first evaluation; with `memory=0` the plain iteration."""
        nothing = jnp.zeros((memory, *F.shape), F.dtype)
        infinite, zero = jnp.full((), jnp.inf, F.dtype), jnp.zeros((), jnp.result_type(int))
        return cls(F, jnp.zeros_like(F), infinite, infinite, nothing, nothing, zero, zero)

    @property
    def memory(self) -> int:
        return len(self.steps)

    def unfinished(self, rtol: ArrayLike) -> Array:
        """Whether the residual is above a tolerance relative to the point, and a number."""
        return (self.norm > rtol * jnp.linalg.norm(self.point)) & jnp.isfinite(self.norm)

    def code(self, rtol: ArrayLike) -> Array:
        """0 if the tolerance is reached, 2 if there is no number, else 1."""
        return jnp.where(jnp.isfinite(self.norm), jnp.where(self.unfinished(rtol), 1, 0), 2)

    @full_precision
    def proposal(self) -> Array:
        """Where to evaluate next."""
        plain = self.point + self.residual
        if not self.memory:
            return plain
        flat = self.changes.reshape(self.memory, -1)
        gram = flat @ flat.T
        eps, tiny = jnp.finfo(gram.dtype).eps, jnp.finfo(gram.dtype).tiny
        damped = gram + (eps * jnp.trace(gram) + tiny) * jnp.eye(self.memory, dtype=gram.dtype)
        mixed = jnp.linalg.solve(damped, flat @ self.residual.ravel())
        return plain - jnp.tensordot(mixed, self.steps + self.changes, 1)

    def after(self, F: Array, moved: Array, value: Array) -> "Iteration":
        """After an evaluation at the proposal: what the plain iteration makes of it, and its value.

        A proposal that lowers the value too little is taken back, and the next one is plain.
        """
        residual = moved - F
        rounding = 10 * jnp.finfo(F.dtype).eps * (jnp.sum(F**2) + jnp.abs(value))
        accepted = (value <= self.value - _DECREASE * self.norm**2 + rounding) | (self.used == 0)
        steps, changes = self.steps, self.changes
        if self.memory:
            slot = jnp.arange(self.memory) == self.used % self.memory
            slot = (slot & (self.used > 0))[:, None, None]
            steps = jnp.where(slot, (F - self.point)[None], steps)
            changes = jnp.where(slot, (residual - self.residual)[None], changes)
        new = Iteration(
            F,
            residual,
            jnp.linalg.norm(residual),
            value,
            steps,
            changes,
            self.used + 1,
            self.evaluations + 1,
        )
        nothing = jnp.zeros_like(steps)
        back = self._replace(
            steps=nothing, changes=nothing, used=0 * self.used, evaluations=new.evaluations
        )
        return jax.tree.map(lambda yes, no: jnp.where(accepted, yes, no), new, back)


def _gap(problem: Problem, scale: Array, w: Array, L: Array, F: Array, r: Array) -> Array:
    """The bound on how far the objective is from its minimum, from the residual `r`."""
    n = F.shape[0]
    nothing = jnp.full((), jnp.inf, F.dtype)
    if problem.kind == "median" or problem.rank < n:
        return nothing
    U, s, Vt = jnp.linalg.svd(F)
    singular = s[-1] <= n * jnp.finfo(F.dtype).eps * s[0]
    inverse = (Vt.T / jnp.where(singular, 1.0, s)[None, :]) @ U.T
    gamma = jnp.zeros_like(scale)
    half = -r
    if problem.kind == "entropic":
        # The step solved (1 + gamma) (F + r) - gamma (F + r)^{-T} = G.
        gamma, next_one = scale, F + r
        G = (1 + gamma) * next_one - gamma * jnp.linalg.inv(after(next_one, s)).T
        half = (1 + gamma) * F - gamma * inverse.T - G
    least = jnp.linalg.eigvalsh(symmetrize(half @ inverse))[0]
    traces = w @ jnp.sum(L**2, axis=(1, 2))
    # The root of the largest trace that a minimiser can have.
    reach = jnp.sqrt(traces) + jnp.sqrt(traces + 4 * (1 + gamma) * gamma * n)
    largest = (reach / (2 * (1 + gamma))) ** 2
    bound = jnp.maximum(jnp.vdot(half, F) + jnp.maximum(-least, 0) * largest, 0)
    return jnp.where(singular, nothing, bound)
