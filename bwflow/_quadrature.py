"""The smoothed loss of a matrix of few columns, without a decomposition of the target's size.

`BW^2(W W^T + tau I, B B^T) = ||W||^2 + n tau + ||B||^2 - 2 tr M^{1/2}` with
`M = B^T (W W^T + tau I) B`: where `B^T B` is diagonal, `M = diag(d) + X X^T` with `X = B^T W` of
size `m x p`. With `K(s) = X^T (diag(d) + s^2)^{-1} X`,

    tr M^{1/2} = sum sqrt(d) + 1/pi int_0^inf log det(I + K(s)) ds,
    M^{-1/2} X = 2/pi int_0^inf (diag(d) + s^2)^{-1} X (I + K(s))^{-1} ds,

in which matrices are `p x p`. In `u = log s` the integrands are analytic for `|Im u| < pi/2` and
decay like `e^{-|u|}`, so that the trapezoidal rule of step `h` has an error of `e^{-pi^2 / h}`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, DTypeLike, Float

from bwflow.covariances import Target
from bwflow.linalg import full_precision

_BLOCK = 32  # nodes at once


@jax.jit
@full_precision
def distance(W: Array, target: Target, tau: Array) -> Array:
    """`BW^2(W W^T + tau I, B B^T)` for `tau > 0`."""
    B, squares = _fixed(target.factor, target.eigenvalues)
    sums = jnp.sum(W**2) + W.shape[0] * tau + jnp.sum(squares)
    value = sums - 2 * trace_root(tau * squares, B.T @ W)
    # Rounding alone makes it negative; the derivative is the one without this.
    return value + lax.stop_gradient(jnp.maximum(-value, 0.0))


@jax.custom_jvp
def _fixed(factor: Array, squares: Array) -> tuple[Array, Array]:
    """Both as they are; a target that moves does not keep `B^T B` diagonal."""
    return factor, squares


@partial(_fixed.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    if not all(isinstance(tangent, SymbolicZero) for tangent in tangents):
        raise ValueError(
            "method must not be 'quadrature' where derivatives in the target are asked for; "
            "the other methods have them."
        )
    return _fixed(*primals), tangents


def nodes(dtype: DTypeLike) -> int:
    """Their number: the sum is exact to rounding `eps` for `M` of condition up to `eps^{-2}`.

    Between `eps sqrt(min d)` and `sqrt(||M||) / eps`, outside of which the integrals are below
    rounding, lie then at most `3 log(1 / eps)`, in steps of `pi^2 / log(1 / eps)`.
    """
    digits = -math.log(jnp.finfo(dtype).eps)
    return _BLOCK * math.ceil(3 * digits**2 / math.pi**2 / _BLOCK)


@jax.custom_jvp
@full_precision
def trace_root(d: Float[Array, " m"], X: Float[Array, "m p"]) -> Array:
    """`tr (diag(d) + X X^T)^{1/2}` for positive `d`."""

    def term(s: Array) -> Array:
        scaled = X / jnp.sqrt(d + s**2)[:, None]
        # The logarithm of a determinant near 1 would lose what is small.
        values = jnp.linalg.eigvalsh(scaled.T @ scaled)
        return jnp.sum(jnp.log1p(jnp.maximum(values, 0.0)))

    return jnp.sum(jnp.sqrt(d)) + _integral(term, d, X) / math.pi


@trace_root.defjvp
@full_precision
def _(primals, tangents):
    (d, X), (dd, dX) = primals, tangents
    root, diagonal = _inverse_root(d, X)
    return trace_root(d, X), jnp.vdot(root, dX) + jnp.vdot(diagonal, dd) / 2


@full_precision
def _inverse_root(d: Float[Array, " m"], X: Float[Array, "m p"]) -> tuple[Array, Array]:
    """`M^{-1/2} X` and the diagonal of `M^{-1/2}`."""
    eye = jnp.eye(X.shape[1], dtype=X.dtype)

    def term(s: Array) -> tuple[Array, Array]:
        Z = X / (d + s**2)[:, None]
        solved = jax.scipy.linalg.solve(eye + X.T @ Z, Z.T, assume_a="pos").T
        return solved, jnp.sum(solved * Z, axis=1)

    root, less = _integral(term, d, X)
    return 2 / math.pi * root, 1 / jnp.sqrt(d) - 2 / math.pi * less


def _integral(term: Callable[[Array], Any], d: Array, X: Array) -> Any:
    """`int_0^inf term(s) ds`, in blocks of nodes."""
    count, digits = nodes(X.dtype), -math.log(jnp.finfo(X.dtype).eps)
    low = jnp.log(jnp.min(d)) / 2 - digits
    high = jnp.log(jnp.max(d) + jnp.sum(X**2)) / 2 + digits
    # Where they are is of no consequence for what the sum is, so it is for no derivative.
    low, step = lax.stop_gradient((low, (high - low) / (count - 1)))

    @jax.checkpoint
    def block(first: Array) -> Any:
        s = jnp.exp(low + step * (first + jnp.arange(_BLOCK, dtype=X.dtype)))
        terms = jax.vmap(term)(s)
        return jax.tree.map(lambda f: jnp.tensordot(step * s, f, 1), terms)

    def add(total: Any, first: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, block(first)), None

    firsts = jnp.arange(0, count, _BLOCK).astype(X.dtype)
    shapes = jax.eval_shape(block, firsts[0])
    zero = jax.tree.map(lambda f: jnp.zeros(f.shape, f.dtype), shapes)
    return lax.scan(add, zero, firsts)[0]
