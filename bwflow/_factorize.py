"""Factors and eigenpairs of a covariance, with the derivative of the factor."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bwflow import _checks
from bwflow.linalg import full_precision, range_mask, symmetric_sylvester, symmetrize


def factorize_covariance(Sigma: Array, rank: int | None) -> tuple[Array, Array, Array]:
    factor, values, vectors = eigenpairs(symmetrize(Sigma))
    m = _kept(values, Sigma.shape[0], rank)
    return factor[:, :m], values[:m], vectors[:, :m]


@jax.custom_jvp
@jax.jit
def eigenpairs(Sigma: Float[Array, "n n"]) -> tuple[Array, Array, Array]:
    """`(B, lambda, Omega)` with `Sigma = B B^T`, `B = Omega diag(sqrt(lambda))`, largest first.

    The derivative of `B` is `L B` with `L Sigma + Sigma L = dSigma`: of all the factors that move
    with `Sigma` the one without rotation, so that every quantity of `B B^T` has its derivative
    although eigenvectors need not have one. `Omega` is given none.
    """
    values, vectors = jnp.linalg.eigh(Sigma)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Rounding-size eigenvalues, some of them negative, stand for zeros.
    values = jnp.where(range_mask(values, values.size), values, 0.0)
    return vectors * jnp.sqrt(values)[None, :], values, vectors


@eigenpairs.defjvp
@full_precision
def _(primals, tangents):
    (Sigma,), (dSigma,) = primals, tangents
    factor, values, vectors = eigenpairs(Sigma)
    dfactor = symmetric_sylvester(Sigma, symmetrize(dSigma)) @ factor
    dvalues = jnp.sum(vectors * (dSigma @ vectors), axis=0)
    return (factor, values, vectors), (dfactor, dvalues, jnp.zeros_like(vectors))


@full_precision
def factorize_factor(B: Array, rank: int | None) -> tuple[Array, Array, Array]:
    U, s, Vt = jnp.linalg.svd(lax.stop_gradient(B), full_matrices=False)
    m = _kept(s, max(B.shape), rank)
    # B V = U diag(s), written so that derivatives pass through B alone.
    factor = B @ Vt[:m].T
    return factor, _squared_norms(factor), U[:, :m]


@jax.jit
def _squared_norms(factor: Float[Array, "n m"]) -> Float[Array, " m"]:
    # Compiled, so that the squares are not held.
    return jnp.sum(factor**2, axis=0)


def _kept(magnitudes: Array, size: int, rank: int | None) -> int:
    """How many of the magnitudes (largest first) to keep."""
    if rank is not None:
        return rank
    if not _checks.is_concrete(magnitudes):
        return magnitudes.size
    return int(jnp.sum(range_mask(magnitudes, size)))
