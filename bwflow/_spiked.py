"""The smoothed Bures-Wasserstein loss against a covariance of low rank and an isotropic part.

With `S = W W^T + tau I` and `Sigma0 = G G^T + delta I`, `S^{1/2} Sigma0 S^{1/2}` is `tau delta I`
and the Gram matrix of the rows of `[sqrt(delta) W, S^{1/2} G]`. Its eigenvalues other than
`tau delta` are those of `tau delta I` and the Gram matrix of the columns, of size `p + r`. That is
`Y Y^T` up to a rotation, for

    Y = [[sqrt(delta) R, 0], [G^T W, sqrt(tau) C]],
    R^T R = W^T W + tau I,   C C^T = G^T G + delta I.

Roots are taken of positive definite matrices alone, so that every derivative exists for `tau > 0`,
also where columns of `W` depend on each other, vanish, or lie in the range of `G`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bwflow.covariances import Spiked
from bwflow.linalg import Method, full_precision, polar, range_svd


@partial(jax.jit, static_argnames="method")
@full_precision
def distance(W: Array, target: Spiked, tau: Array | None, method: Method) -> Array:
    """`BW^2(W W^T + tau I, G G^T + delta I)`; `tau=None` is 0 without what carries it."""
    n, p = W.shape
    G, delta, squares = target.spikes.factor, target.delta, target.spikes.eigenvalues
    r = squares.size
    traces = jnp.sum(W**2) + jnp.sum(G**2)
    if tau is None:
        R = W if p > n else _isometry(W)[1]
        Y = jnp.concatenate([jnp.sqrt(delta) * R, G.T @ W])
        value = traces + n * delta - 2 * _nuclear_norm(Y, method)
    else:
        R = _isometry(jnp.concatenate([W, jnp.sqrt(tau) * jnp.eye(p, dtype=W.dtype)]))[1]
        C = _root(G, delta, lax.stop_gradient(squares))
        above = jnp.concatenate([jnp.sqrt(delta) * R, jnp.zeros((p, r), W.dtype)], axis=1)
        below = jnp.concatenate([G.T @ W, jnp.sqrt(tau) * C], axis=1)
        nuclear = _nuclear_norm(jnp.concatenate([above, below]), method)
        outside = (jnp.sqrt(tau) - jnp.sqrt(delta)) ** 2
        value = traces + (p + r) * (tau + delta) - 2 * nuclear + (n - p - r) * outside
    # Rounding alone makes it negative; the derivative is the one without this.
    return value + lax.stop_gradient(jnp.maximum(-value, 0.0))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _nuclear_norm(Y: Array, method: Method) -> Array:
    """Sum of singular values, the product with the polar factor."""
    return jnp.vdot(polar(Y, method=method), Y)


@_nuclear_norm.defjvp
@full_precision
def _(method, primals, tangents):
    (Y,), (Z,) = primals, tangents
    P = polar(Y, method=method)
    return jnp.vdot(P, Y), jnp.vdot(P, Z)


@jax.custom_jvp
def _isometry(A: Float[Array, "N p"]) -> tuple[Array, Array]:
    """`Q` with orthonormal columns and `R` with `A = Q R`.

    Only `R^T R` and `Q R` count, so `Q^T dR = 0` may be had for `dQ`: of all pairs that move with
    `A` the one that does not turn, and which needs an inverse of `R` for `dQ` alone.
    """
    Q, R = jnp.linalg.qr(A)
    return Q, R


@_isometry.defjvp
@full_precision
def _(primals, tangents):
    (A,), (dA,) = primals, tangents
    Q, R = _isometry(A)
    dR = Q.T @ dA
    return (Q, R), (_divided(dA - Q @ dR, R), dR)


def _divided(X: Array, R: Array) -> Array:
    """`X R^{-1}`, with the inverse of numerically zero singular values left out."""

    def pseudo_inverse():
        U, s, Vt = range_svd(R)
        return (Vt.T * jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1.0), 0.0)[None, :]) @ U.T

    return lax.custom_linear_solve(
        lambda Z: Z @ R,
        X,
        lambda _, X: X @ pseudo_inverse(),
        lambda _, X: X @ pseudo_inverse().T,
    )


@jax.custom_jvp
def _root(G: Array, delta: Array, squares: Array) -> Array:
    """`C` with `C C^T = G^T G + delta I`, diagonal as `G^T G`, but its tangents are not."""
    return jnp.diag(jnp.sqrt(squares + delta))


@_root.defjvp
@full_precision
def _(primals, tangents):
    G, delta, squares = primals
    dG, ddelta, _ = tangents
    C, cross = _root(G, delta, squares), G.T @ dG
    change = (cross + cross.T + ddelta * jnp.eye(squares.size, dtype=G.dtype)) / 2
    return C, _divided(change, C.T)
