"""Roots of covariances: factors `L` with `A = L L^T`, in which everything else is written.

A root is fixed up to a rotation only, and what is made of it must not depend on that. Then the
derivative of *any* root that moves with `A` is as good as another's, and the cheapest one needs
only products with the inverse of the root: `dL = dA L^{-T} / 2`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bwflow.linalg import (
    after,
    full_precision,
    range_mask,
    range_svd,
    reciprocal,
    symmetrize,
    where_needed,
)


def root(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`L` with `A = L L^T`: lower triangular, or orthogonal columns where `A` is singular."""
    return triangle(A)[0]


def root_and_inverse(A: Float[Array, "n n"]) -> tuple[Array, Array]:
    """`root(A)` and its pseudo-inverse."""
    L, whole = triangle(A)
    K = inverse(L, whole)
    return after(L, K), K


@jax.custom_jvp
@full_precision
def triangle(A: Array) -> tuple[Array, Array]:
    """A root, and 1 if it is triangular: the matrix is one of full rank; else 0."""
    n, eps = len(A), jnp.finfo(A.dtype).eps
    A = symmetrize(A)
    L = lax.linalg.cholesky(A, symmetrize_input=False)
    pivots = jnp.diagonal(L) ** 2
    whole = jnp.all(pivots > n * eps * jnp.max(jnp.diagonal(A)))  # false for NaN

    return where_needed(~whole, _by_eigenpairs, (A,), L), whole.astype(A.dtype)


def _by_eigenpairs(A: Array) -> Array:
    values, vectors = jnp.linalg.eigh(A)
    values = jnp.where(range_mask(values, len(A)), values, 0.0)
    return vectors * jnp.sqrt(values)[None, :]


@triangle.defjvp
@full_precision
def _(primals, tangents):
    """`(I - R / 2) dA L^{+T}` with the projection `R = L L^+` on the range of `A`."""
    (A,), (dA,) = primals, tangents
    L, whole = triangle(A)
    K = inverse(L, whole)
    C = symmetrize(dA) @ K.T
    # What follows from the root waits for the inverse, see `bwflow.linalg.after`.
    return (after(L, K), whole), (C - L @ (K @ C) / 2, jnp.zeros_like(whole))


@jax.custom_jvp
@full_precision
def inverse(L: Float[Array, "n k"], triangular: Array) -> Float[Array, "k n"]:
    """Pseudo-inverse of a matrix that is triangular and regular, or has orthogonal columns."""
    eye = jnp.eye(len(L), dtype=L.dtype)
    safe = jnp.where(triangular > 0, L, eye)
    solved = lax.linalg.triangular_solve(safe, eye, left_side=True, lower=True)
    across = L * reciprocal(jnp.sum(L**2, axis=0))[None, :]
    return jnp.where(triangular > 0, solved, across.T)


@inverse.defjvp
@full_precision
def _(primals, tangents):
    K = inverse(*primals)
    return K, _inverse_tangent(primals[0], K, tangents[0])


def _inverse_tangent(F: Array, K: Array, dF: Array) -> Array:
    """Of a pseudo-inverse `K`, where the rank of `F` does not change."""
    outside = dF.T - (dF.T @ F) @ K
    across = dF.T - K @ (F @ dF.T)
    return K @ (K.T @ outside) + across @ K.T @ K - K @ dF @ K


@jax.custom_jvp
@full_precision
def pseudo_inverse(F: Float[Array, "n k"]) -> Float[Array, "k n"]:
    """Pseudo-inverse of any factor."""
    U, s, Vt = range_svd(F)
    return (Vt.T * reciprocal(s)[None, :]) @ U.T


@pseudo_inverse.defjvp
@full_precision
def _(primals, tangents):
    K = pseudo_inverse(*primals)
    return K, _inverse_tangent(primals[0], K, tangents[0])


def projection(A: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """On the range of a covariance."""
    L, whole = triangle(A)
    K = inverse(L, whole)
    return jnp.where(whole > 0, jnp.eye(len(A), dtype=A.dtype), L @ K)


def narrowed(F: Float[Array, "n k"]) -> Float[Array, "n _"]:
    """A factor of `F F^T` of at most `n` columns."""
    return _rotated(F) if F.shape[1] > F.shape[0] else F


@jax.custom_jvp
@full_precision
def _rotated(F: Float[Array, "n k"]) -> Float[Array, "n n"]:
    """Orthogonal columns."""
    if F.shape[1] > 2 * F.shape[0]:
        F = jnp.linalg.qr(lax.stop_gradient(F.T), mode="r").T
    U, s, _ = range_svd(F)
    return U * s[None, :]


@_rotated.defjvp
@full_precision
def _(primals, tangents):
    """`dF F^T L^{+T}`, which times `L^T` is `dF F^T`."""
    (F,), (dF,) = primals, tangents
    L = _rotated(F)
    K = inverse(L, jnp.zeros((), L.dtype))
    return L, dF @ (F.T @ K.T)
