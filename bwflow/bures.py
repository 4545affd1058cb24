"""Squared Bures-Wasserstein distance of a network and a target, smoothed.

Everything is the orthogonal Procrustes form

    BW^2(A A^T, B B^T) = min over partial isometries P of ||A - B P||^2 + ||B - B P P^T||^2,

attained at the polar factor `P` of `B^T A`. It is a sum of squares, so it is never negative and
has no cancellation near an optimum; and since `P` is a minimiser, the gradient is
`2 (A - B P)` without the derivative of `P`.
"""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike

from bwflow import _checks, _quadrature, _spiked
from bwflow._names import Method as LossMethod
from bwflow._types import Scalar
from bwflow.covariances import Spiked, Target
from bwflow.linalg import Method, full_precision, polar, symmetric_sylvester, symmetrize


def smoothed_bures(
    W: ArrayLike, target: Target | Spiked, *, tau: ArrayLike, method: LossMethod = "auto"
) -> Scalar:
    """Smoothed loss of a network, `L_tau(W) = BW^2(W W^T + tau I, Sigma0)`.

    Its gradient is `2 (W - B P_1)`, where `[P_1, P_2]` is the polar factor of
    `Y = [B^T W, sqrt(tau) R^T]` and `B = Q R` the target's factor. Its derivative in `tau` is
    `tr(I - T)`, `T` being the optimal map from `W W^T + tau I` to `Sigma0`; at `tau = 0` and
    `rank(B^T W) < m` there is none, and `-inf` is returned.

    Parameters
    ----------
    W
        End-to-end matrix, `n x p`.
    target
        Covariance `Sigma0`, `n x n`, of rank `m`, or of low rank `r` and an isotropic part.
    tau
        Smoothing, in units of the covariance; not negative.
    method
        How the polar factor is computed, see `bwflow.linalg.polar`; or `"quadrature"`, which takes
        none: integrals over matrices of size `p x p`, for `tau > 0` and a network through a
        bottleneck or of few columns, `p` far below `m`.

    Returns
    -------
    Array
        The loss, in units of the covariance; never negative.

    Raises
    ------
    ValueError
        If `W` is not a real floating matrix with as many rows as the target, if `tau` is not a
        finite number of at least 0, or if there is no such method; with `"quadrature"` if `tau` is
        0, the target is no `Target`, or derivatives in it are asked for.

    Notes
    -----
    Cost: one polar factor of an `m x (p + m)` matrix and products of size `n m p`; nothing is
    `n x n` unless `m = n`. Where `tau` is seen to be 0, not traced, the matrix is `m x p`: about a
    third less. At `tau = 0` the loss has kinks where `rank(B^T W) < min(m, p)`; the
    subgradient returned there is the one whose polar factor has the rank of `B^T W`. For
    `tau > 0` everything is analytic in `W`. Derivatives in `W`, of any order and mode, are finite
    at repeated singular values. Those in `tau` are for `tau > 0` beyond the first order, since
    `sqrt(tau)` stands in the rule; those in the target are of first order, mixed ones with `W`
    included, unless it has full rank.

    Against `bwflow.covariances.Spiked` it costs a QR decomposition of `n x p` and a polar factor of
    size `p + r`. The value is a difference of traces, off by their rounding near an optimum, where
    it is 0 rather than negative; derivatives in the target, as in `W`, are of any order.

    By quadrature it costs 416 nodes (96 in float32) of `m p^2` and `p^3` operations each, exact to
    rounding for `B^T (W W^T + tau I) B` of condition up to `eps^{-2}`: with 4 columns it is
    ahead of a polar factor from `m` of about 130, with 64 from about 800. The value is a difference
    of traces, as above; derivatives in `W` and `tau` are of any order. It is NaN where `tau` or an
    eigenvalue of the target is traced and 0.

    References
    ----------
    Brechet, Papagiannouli, An, Montufar (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(bw.smoothed_bures(jnp.eye(2), target, tau=0.0).round(5))
    1.0
    """
    _checks.instance("target", target, (Target, Spiked), "a bwflow.Target")
    W = _checks.end_to_end("W", W, target.dim)
    tau = _checks.scalar("tau", tau, W.dtype, minimum=0.0)
    _checks.choice("method", method, get_args(LossMethod))
    smoothed = not _checks.is_concrete(tau) or np.any(np.asarray(tau))
    if method == "quadrature":
        _checks.instance("target", target, Target, "a bwflow.Target with method='quadrature'")
        if not smoothed:
            raise ValueError("tau must be positive with method='quadrature'; got 0.")
        return _quadrature.distance(W, target, tau)
    kernel = _spiked.distance if isinstance(target, Spiked) else _distance
    return kernel(W, target, tau if smoothed else None, method)


@partial(jax.jit, static_argnames="method")
@full_precision
def _distance(W: Array, target: Target, tau: Array | None, method: Method) -> Array:
    """`BW^2(W W^T + tau I, B B^T)`; `tau=None` is 0 without the columns that carry it."""
    root, vectors = jnp.sqrt(target.eigenvalues), lax.stop_gradient(target.eigenvectors)
    parts = (W, target.factor, tau, lax.stop_gradient(root), vectors)
    return _residual(polar(_overlap(*parts), method=method), *parts)


def _overlap(W: Array, factor: Array, tau: Array | None, root: Array, vectors: Array) -> Array:
    """`B^T A` for `A = [W, sqrt(tau) Q]`, a factor of what the target sees of `W W^T + tau I`."""
    Y = factor.T @ W
    if tau is None:
        return Y
    return jnp.concatenate([Y, jnp.sqrt(tau) * _triangle(factor, root, vectors)], axis=1)


@jax.custom_jvp
def _triangle(factor: Array, root: Array, vectors: Array) -> Array:
    """`B^T Q` for the eigenbasis `Q` held fixed: diagonal, but its tangents are not."""
    return jnp.diag(root)


@_triangle.defjvp
@full_precision
def _(primals, tangents):
    vectors = primals[2]
    return _triangle(*primals), tangents[0].T @ vectors


@jax.custom_jvp
def _residual(
    P: Array, W: Array, factor: Array, tau: Array | None, root: Array, vectors: Array
) -> Array:
    """The sum of squares at the polar factor `P`, whose own variation does not count."""
    n, p = W.shape
    m = root.size
    P1, P2 = P[:, :p], P[:, p:]
    left_out = root[:, None] * (jnp.eye(m, dtype=P.dtype) - P @ P.T)
    value = jnp.sum((W - factor @ P1) ** 2) + jnp.sum(left_out**2)
    if tau is None:
        return value
    smoothed = jnp.sqrt(tau) * jnp.eye(m, dtype=P.dtype) - root[:, None] * P2
    return value + jnp.sum(smoothed**2) + (n - m) * tau


@partial(_residual.defjvp, symbolic_zeros=True)
@full_precision
def _(primals, tangents):
    P, W, factor, tau, _, vectors = primals
    _, dW, dfactor, dtau, _, _ = tangents
    P1, P2 = P[:, : W.shape[1]], P[:, W.shape[1] :]
    tangent = jnp.zeros((), P.dtype)
    if not isinstance(dW, SymbolicZero):
        tangent += jnp.vdot(2 * (W - factor @ P1), dW)
    if not isinstance(dfactor, SymbolicZero):
        mapped = W @ P1.T
        if tau is not None:
            mapped += jnp.sqrt(tau) * (vectors @ P2.T)
        tangent += jnp.vdot(2 * (factor - mapped), dfactor)
    if tau is not None and not isinstance(dtau, SymbolicZero):
        tangent += _smoothing_slope(*primals) * dtau
    return _residual(*primals), tangent


def _smoothing_slope(
    P: Array, W: Array, factor: Array, tau: Array, root: Array, vectors: Array
) -> Array:
    """`tr(I - T)` with `T = B (B^T S_tau B)^{-1/2} B^T`; `-inf` where that power is infinite."""
    modulus = symmetrize(_overlap(W, factor, tau, root, vectors) @ P.T)
    trace = 2 * jnp.trace(symmetric_sylvester(modulus, factor.T @ factor))
    # The squared norm of P is its rank; columns of zeros, kept under a trace, do not count.
    singular = (tau <= 0) & (jnp.sum(P**2) < jnp.sum((root > 0).astype(root.dtype)) - 0.5)
    return jnp.where(singular, -jnp.inf, W.shape[0] - trace)
