"""How far the optimal map between two covariances is from the identity.

`X = T - I` solves `A X + X A + X A X = D` for `D = B - A`. From roots, `T = L_B P L_A^{-1}` with the
polar factor `P` of `L_B^T L_A` has the rounding of `T`; close to the identity the equation itself
gives `X` to the rounding of `X`, and with it `BW^2 = tr(X A X)`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bwflow.geometry._roots import inverse_root, root
from bwflow.linalg import full_precision, polar, symmetrize

# Where the distance is below this share of the traces, its square loses digits to rounding.
_CLOSE = 1e-3
# Largest `||L_A^{-1} D L_A^{-T}||` at which the equation is iterated; each step gains that factor.
_SMALL, _MOST_STEPS = 0.1, 30


def procrustes(F: Array, G: Array) -> Array:
    """`BW^2(F F^T, G G^T)` from factors."""
    return _residual(polar(G.T @ F), F, G)


@jax.custom_jvp
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
    L = root(A)
    value = procrustes(L, root(B))
    close = value <= _CLOSE * (jnp.trace(A) + jnp.trace(B))
    X, known = _from_equation(A, B, close)
    return jnp.where(known, jnp.sum((X @ L) ** 2), value)


@between.defjvp
@full_precision
def _(primals, tangents):
    (A, B), (dA, dB) = primals, tangents
    slope = jnp.vdot(deviation(A, B), dA) + jnp.vdot(deviation(B, A), dB)
    return between(A, B), -slope


@jax.custom_jvp
@full_precision
def deviation(A: Array, B: Array) -> Array:
    """`X = T - R` for the optimal map `T` from `A` to `B` and the projection `R` on `A`'s range.

    Where `A` is singular, `T` is the symmetric matrix with `T A = L_B P L_A^T` that is zero between
    vectors outside of the range.
    """
    L, K, M = root(A), inverse_root(A), root(B)
    P = polar(M.T @ L)
    close = procrustes(L, M) <= _CLOSE * (jnp.trace(A) + jnp.trace(B))
    X, known = _from_equation(A, B, close)
    onto = (M @ P - L) @ K
    return jnp.where(known, X, symmetrize(2 * onto - L @ (K @ onto)))


@deviation.defjvp
@full_precision
def _(primals, tangents):
    """`T A dX + dX A T = dB - T dA T`, written without the difference of what nearly coincides."""
    (A, B), (dA, dB) = primals, [symmetrize(d) for d in tangents]
    X = deviation(A, B)
    L, K = root(A), inverse_root(A)
    C = (dB - dA) - X @ dA - dA @ X - X @ dA @ X
    return X, _solve(X, L, K, C)


def _solve(X: Array, L: Array, K: Array, C: Array) -> Array:
    """The symmetric `Z` with `T L L^T Z + Z L L^T T = C` for `T = I + X`, `K = L^{-1}`."""
    A = L @ L.T
    TA = A + X @ A

    def solved(C: Array) -> Array:
        h, Q = jnp.linalg.eigh(lax.stop_gradient(symmetrize(L.T @ L + L.T @ X @ L)))
        sums = h[:, None] + h[None, :]
        inverse = jnp.where(sums > 0, 1 / jnp.where(sums > 0, sums, 1.0), 0.0)
        return Q @ ((Q.T @ C @ Q) * inverse) @ Q.T

    return lax.custom_linear_solve(
        lambda Z: TA @ Z + Z @ TA.T,
        C,
        lambda _, C: K.T @ solved(L.T @ C @ L) @ K,
        lambda _, C: L @ solved(K @ C @ K.T) @ L.T,
    )


def _from_equation(A: Array, B: Array, wanted: Array) -> tuple[Array, Array]:
    """`X` by iteration of its equation, and whether it was close enough for that."""

    def attempt(state):
        A, B, _, _, _ = state
        L, K = root(A), inverse_root(A)
        values, Q = jnp.linalg.eigh(A)
        D = B - A
        small = jnp.sum((K @ D @ K.T) ** 2) <= _SMALL**2
        # Full rank, of both: only then is K an inverse.
        small &= values[0] > len(A) * jnp.finfo(A.dtype).eps * values[-1]
        sums = values[:, None] + values[None, :]
        sums = jnp.where(small, sums, 1.0)

        def unfinished(state):
            _, R, step = state
            scale = jnp.max(jnp.abs(D))
            return small & (step < _MOST_STEPS) & (jnp.max(jnp.abs(R)) > 0.5 * eps * scale)

        def advance(state):
            X, R, step = state
            X += Q @ ((Q.T @ R @ Q) / sums) @ Q.T
            XA = X @ A
            return X, D - (XA + XA.T + XA @ X), step + 1

        eps = jnp.finfo(A.dtype).eps
        X, _, _ = lax.while_loop(unfinished, advance, (jnp.zeros_like(A), D, 0))
        return A, B, symmetrize(X), small, jnp.zeros_like(wanted)

    state = (A, B, jnp.zeros_like(A), jnp.zeros_like(wanted), wanted)
    _, _, X, known, _ = lax.while_loop(lambda state: state[4], attempt, state)
    return X, known
