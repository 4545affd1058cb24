"""How far the optimal map between two covariances is from the identity.

`X = T - I` solves `A X + X A + X A X = D` for `D = B - A`. From roots, `T = L_B P L_A^{-1}` with
the polar factor `P` of `L_B^T L_A` has the rounding of `T`; close to the identity the equation
itself gives `X` to the rounding of `X`, and with it `BW^2 = tr(X A X)`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from bwflow.geometry._residuals import residual
from bwflow.geometry._roots import inverse, root, root_and_inverse, triangle
from bwflow.linalg import after, full_precision, polar, reciprocal, symmetrize, where_needed

# Sizes up to which polar factors are computed by products on a CPU too; up to which sums of
# singular values are; and up to which squared distances are, without a look at those.
_PRODUCTS, _SMALL, _DIRECT = 64, 12, 32
# Where the squared distance is above this share of the traces, their difference is exact enough.
_CANCELLING = 0.1
# Where the distance is below this share of the traces, its square loses digits to rounding.
_CLOSE = 1e-3
# Largest `||L_A^{-1} D L_A^{-T}||` at which the equation is iterated; each step gains that factor.
_SMALL_CHANGE, _MOST_STEPS = 0.1, 30
# Power of the rounding: the condition of a root from which on the map is refined.
_UNSOUND = -1 / 4


def aligned(F: Array, G: Array) -> Array:
    """`P` for which `G P` is nearest to `F`, of the rank of `G^T F`."""
    Y = G.T @ F
    if min(Y.shape) <= _PRODUCTS:
        return polar(Y)
    return lax.platform_dependent(Y, cpu=partial(polar, method="svd"), default=polar)


@full_precision
def by_traces(F: Array, G: Array, rows: bool = False) -> Array:
    """`BW^2(F F^T, G G^T)` as a difference of traces: off by their rounding."""
    Y = G @ F.T if rows else G.T @ F
    return jnp.sum(F**2) + jnp.sum(G**2) - 2 * _nuclear_norm(Y)


@jax.custom_jvp
def _nuclear_norm(Y: Array) -> Array:
    """The sum of singular values: without vectors on a CPU, by products on accelerators."""
    if min(Y.shape) <= _SMALL:
        return jnp.sum(polar(Y) * Y)

    def singular_values(Y: Array) -> Array:
        return jnp.sum(jnp.linalg.svd(Y, compute_uv=False))

    return lax.platform_dependent(
        lax.stop_gradient(Y), cpu=singular_values, default=lambda Y: jnp.sum(polar(Y) * Y)
    )


@_nuclear_norm.defjvp
@full_precision
def _(primals, tangents):
    (Y,), (dY,) = primals, tangents
    P = polar(Y)
    return _sum_at(P, Y), jnp.vdot(P, dY)


@jax.custom_jvp
def _sum_at(P: Array, Y: Array) -> Array:
    """The sum of singular values by the polar factor `P`, whose own variation does not count."""
    return jnp.vdot(P, Y)


@_sum_at.defjvp
def _(primals, tangents):
    return _sum_at(*primals), jnp.vdot(primals[0], tangents[1])


@partial(jax.custom_jvp, nondiff_argnums=(2,))
@full_precision
def procrustes(F: Array, G: Array, rows: bool = False) -> Array:
    """`BW^2(F F^T, G G^T)` from factors, without cancellation.

    With `rows` from their transposes, whose columns XLA would copy before anything else.
    """
    if min(x.shape[0 if rows else 1] for x in (F, G)) <= _DIRECT:
        return _at_best(F, G, rows)

    # Where little cancels, singular values are enough.
    value = by_traces(F, G, rows)
    cancels = value <= _CANCELLING * (jnp.sum(F**2) + jnp.sum(G**2))
    return where_needed(cancels, partial(_at_best, rows=rows), (F, G), value)


@procrustes.defjvp
@full_precision
def _(rows, primals, tangents):
    if rows:
        primals, tangents = ([x.T for x in given] for given in (primals, tangents))
    return jax.jvp(partial(_residual, aligned(*primals)), primals, tangents)


def _at_best(F: Array, G: Array, rows: bool) -> Array:
    F, G = (F.T, G.T) if rows else (F, G)
    return _residual(aligned(F, G), F, G)


@jax.custom_jvp
@full_precision
def _residual(P: Array, F: Array, G: Array) -> Array:
    """The sum of squares at the polar factor `P`, whose own variation does not count."""
    moved = G @ P
    return jnp.sum((F - moved) ** 2) + jnp.sum((G - moved @ P.T) ** 2)


@_residual.defjvp
@full_precision
def _(primals, tangents):
    P, F, G = primals
    _, dF, dG = tangents
    slope = jnp.vdot(2 * (F - G @ P), dF) + jnp.vdot(2 * (G - F @ P.T), dG)
    return _residual(*primals), slope


@jax.custom_jvp
@full_precision
def between(A: Array, B: Array) -> Array:
    """`BW^2(A, B)` of matrices."""
    L, whole = triangle(A)
    value = procrustes(L, root(after(B, L)))
    X, known = _from_equation(A, B, L, whole, value)
    return jnp.where(known, jnp.sum((X @ L) ** 2), value)


@partial(between.defjvp, symbolic_zeros=True)
@full_precision
def _(primals, tangents):
    value, X, Z, _ = _solution(*primals)
    slope = jnp.zeros_like(value)
    for deviated, d in zip((X, Z), map(_tangent, tangents), strict=True):
        if d is not None:
            slope -= jnp.vdot(deviated, d)
    return value, slope


def deviation(A: Array, B: Array) -> Array:
    """`X = T - R` for the optimal map `T` from `A` to `B` and the projection `R` on `A`'s range.

    Where `A` is singular, `T` is the symmetric matrix with `T A = L_B P L_A^T` that is zero between
    vectors outside of the range.
    """
    return _solution(A, B)[1]


def mapping(A: Array, B: Array) -> Array:
    """The optimal map itself, `X + R`."""
    _, X, _, R = _solution(A, B)
    return X + R


@jax.custom_jvp
@full_precision
def _solution(A: Array, B: Array) -> tuple[Array, Array, Array, Array]:
    """Squared distance, deviations of the maps both ways, and the projection on `A`'s range.

    What is not asked for costs nothing.

    Each decomposition waits for the one before it, see `bwflow.linalg.after`.
    """
    L, L_whole = triangle(A)
    M, M_whole = triangle(after(B, L))
    P = aligned(L, M)
    value = _residual(P, L, M)
    X, known = _from_equation(A, B, L, L_whole, value)
    K = inverse(after(L, X), L_whole)
    N = inverse(after(M, K), M_whole)
    conditions = [jnp.sum(L**2) * jnp.sum(K**2), jnp.sum(M**2) * jnp.sum(N**2)]
    spread = jnp.sqrt(jnp.maximum(*conditions))
    unsound = ~known & (L_whole > 0) & (M_whole > 0)
    unsound &= spread > float(jnp.finfo(L.dtype).eps) ** _UNSOUND
    onto = _improved(A, B, L, K, (M @ P - L) @ K, unsound, ~known & (L_whole == 0))
    M = after(M, onto)
    back = _improved(B, A, M, N, (L @ P.T - M) @ N, unsound, ~known & (M_whole == 0))
    return (
        jnp.where(known, jnp.sum((X @ L) ** 2), value),
        jnp.where(known, X, onto),
        where_needed(known, _inverted, (X,), back),
        jnp.where(L_whole > 0, jnp.eye(len(A), dtype=A.dtype), L @ K),
    )


@partial(_solution.defjvp, symbolic_zeros=True)
@full_precision
def _(primals, tangents):
    """`T A dX + dX A T = dB - T dA T`, written without the difference of what nearly coincides."""
    A, B = primals
    dA, dB = (_tangent(d) for d in tangents)
    value, X, Z, R = solution = _solution(A, B)
    slope = jnp.zeros_like(value)
    if dA is not None:
        slope -= jnp.vdot(X, dA)
    if dB is not None:
        slope -= jnp.vdot(Z, dB)
    L, K = root_and_inverse(after(A, X, Z))
    dX = _deviation_tangent(X, L, K, dA, dB)
    dZ = _deviation_tangent(Z, *root_and_inverse(after(B, dX)), dB, dA)
    dR = jnp.zeros_like(R)
    if dA is not None:
        turned = (dA - R @ dA) @ K.T @ K
        dR = turned + turned.T
    return solution, (slope, dX, dZ, dR)


def _tangent(d) -> Array | None:
    return None if isinstance(d, SymbolicZero) else symmetrize(d)


def _deviation_tangent(X: Array, L: Array, K: Array, dA: Array | None, dB: Array | None) -> Array:
    C = jnp.zeros_like(X)
    if dB is not None:
        C += dB
    if dA is not None:
        C -= dA + X @ dA + dA @ X + X @ dA @ X
    return _solve(X, L, K, C)


def _solve(X: Array, L: Array, K: Array, C: Array) -> Array:
    """The symmetric `Z` with `T L L^T Z + Z L L^T T = C` for `T = I + X`, `K = L^{-1}`."""
    A = L @ L.T
    TA = A + X @ A

    def solved(C: Array) -> Array:
        h, Q = jnp.linalg.eigh(lax.stop_gradient(symmetrize(L.T @ L + L.T @ X @ L)))
        return Q @ ((Q.T @ C @ Q) * reciprocal(h[:, None] + h[None, :])) @ Q.T

    return lax.custom_linear_solve(
        lambda Z: TA @ Z + Z @ TA.T,
        C,
        lambda _, C: K.T @ solved(L.T @ C @ L) @ K,
        lambda _, C: L @ solved(K @ C @ K.T) @ L.T,
    )


def _improved(
    A: Array, B: Array, L: Array, K: Array, X: Array, unsound: Array, singular: Array
) -> Array:
    """The symmetric deviation from `X = T - R`: refined or completed where that is needed."""
    Z = symmetrize(X)
    Z = where_needed(unsound, _refined, (A, B, L, K, Z), Z)
    return where_needed(singular, _completed, (L, K, X), Z)


def _completed(L: Array, K: Array, X: Array) -> Array:
    """With the part between the range of `L` and the rest."""
    return symmetrize(2 * X - L @ (K @ X))


def _refined(A: Array, B: Array, L: Array, K: Array, X: Array) -> Array:
    """A step of Newton's method for the map, with its residual in twice the precision."""
    T = X + jnp.eye(len(X), dtype=X.dtype)
    return X + symmetrize(_solve(X, L, K, symmetrize(residual(A, B, T))))


def _inverted(X: Array) -> Array:
    """`(I + X)^{-1} - I` for small `X`."""
    return -symmetrize(jnp.linalg.solve(jnp.eye(len(X), dtype=X.dtype) + X, X))


def _from_equation(
    A: Array, B: Array, L: Array, whole: Array, distance: Array
) -> tuple[Array, Array]:
    """`X` by iteration of its equation, and whether it was close enough for that."""
    wanted = distance <= _CLOSE * (jnp.trace(A) + jnp.trace(B))
    otherwise = (jnp.zeros_like(A), jnp.zeros_like(wanted))
    return where_needed(wanted, _by_equation, (A, B, L, whole), otherwise)


def _by_equation(A: Array, B: Array, L: Array, whole: Array) -> tuple[Array, Array]:
    K, D, eps = inverse(L, whole), B - A, jnp.finfo(A.dtype).eps
    small = (whole > 0) & (jnp.sum((K @ D @ K.T) ** 2) <= _SMALL_CHANGE**2)
    values, Q = jnp.linalg.eigh(after(A, K))
    sums = jnp.where(small, values[:, None] + values[None, :], 1.0)
    scale = jnp.max(jnp.abs(D))

    def unfinished(state):
        _, R, step = state
        return small & (step < _MOST_STEPS) & (jnp.max(jnp.abs(R)) > 0.5 * eps * scale)

    def advance(state):
        X, R, step = state
        X += Q @ ((Q.T @ R @ Q) / sums) @ Q.T
        XA = X @ A
        return X, D - (XA + XA.T + XA @ X), step + 1

    X, R, _ = lax.while_loop(unfinished, advance, (jnp.zeros_like(A), D, 0))
    # Not where rounding is all that the smallest eigenvalues are; false for NaN.
    return symmetrize(X), small & (jnp.max(jnp.abs(R)) <= jnp.sqrt(eps) * scale)
