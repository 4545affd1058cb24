"""Roots of covariances: factors `L` with `A = L L^T`, in which everything else is written.

A root is fixed up to a rotation only, and what is made of it must not depend on that. Then the
derivative of *any* root that moves with `A` is as good as another's, and the cheapest one needs
only products with the inverse of the root: `dL = dA L^{-T} / 2`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bwflow.linalg import full_precision, range_mask, range_svd, symmetrize


@jax.custom_jvp
@full_precision
def root(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`L` with `A = L L^T`: lower triangular, or orthogonal columns where `A` is singular."""
    return _decomposed(A)[0]


@root.defjvp
@full_precision
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    L, K = root(A), inverse_root(A)
    return L, _root_tangent(L, K, symmetrize(dA))


def _root_tangent(L: Array, K: Array, dA: Array) -> Array:
    """`(I - R / 2) dA L^{+T}` with the projection `R = L L^+` on the range of `A`."""
    C = dA @ K.T
    return C - L @ (K @ C) / 2


@jax.custom_jvp
@full_precision
def inverse_root(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """The pseudo-inverse of `root(A)`."""
    L, whole = _decomposed(A)
    safe = jnp.where(whole, L, jnp.eye(len(A), dtype=A.dtype))
    inverse = lax.linalg.triangular_solve(
        safe, jnp.eye(len(A), dtype=A.dtype), left_side=True, lower=True
    )
    squares = jnp.sum(L**2, axis=0)
    columns = jnp.where(squares > 0, squares, 1.0)
    return jnp.where(whole, inverse, (L / columns[None, :]).T)


@inverse_root.defjvp
@full_precision
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    L, K = root(A), inverse_root(A)
    dL = _root_tangent(L, K, symmetrize(dA))
    outside = dL.T - (dL.T @ L) @ K
    return K, K @ K.T @ outside - K @ dL @ K


def _decomposed(A: Array) -> tuple[Array, Array]:
    """The root, and whether it is triangular: the matrix is one of full rank."""
    n, eps = len(A), jnp.finfo(A.dtype).eps
    A = symmetrize(A)
    L = lax.linalg.cholesky(A, symmetrize_input=False)
    pivots = jnp.diagonal(L) ** 2
    whole = jnp.all(pivots > n * eps * jnp.max(jnp.diagonal(A)))  # false for NaN

    # The loop runs if a matrix of the batch needs it.
    def by_eigenpairs(state):
        A, _, _ = state
        values, vectors = jnp.linalg.eigh(A)
        values = jnp.where(range_mask(values, n), values, 0.0)
        return A, vectors * jnp.sqrt(values)[None, :], jnp.zeros_like(whole)

    needed = ~whole
    state = (A, jnp.where(whole, L, A), needed)
    return lax.while_loop(lambda state: state[2], by_eigenpairs, state)[1], whole


def narrowed(F: Float[Array, "n k"]) -> Float[Array, "n _"]:
    """A factor of `F F^T` of at most `n` columns."""
    return _rotated(F) if F.shape[1] > F.shape[0] else F


@jax.custom_jvp
@full_precision
def _rotated(F: Float[Array, "n k"]) -> Float[Array, "n n"]:
    U, s, _ = range_svd(F)
    return U * s[None, :]


@_rotated.defjvp
@full_precision
def _(primals, tangents):
    """`dF F^T L^{+T}`, which times `L^T` is `dF F^T`."""
    (F,), (dF,) = primals, tangents
    L = _rotated(F)
    squares = jnp.sum(L**2, axis=0)
    inverse = L * jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1.0), 0.0)[None, :]
    return L, dF @ (F.T @ inverse)
