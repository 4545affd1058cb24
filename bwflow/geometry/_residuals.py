"""Residuals of the optimal map's equation in twice the precision, by products that are exact.

Of matrices with few bits the products are sums of integers that the precision holds, whatever the
order in which they are summed. A matrix is cut into three such slices, largest bits first.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def residual(
    A: Float[Array, "n n"], B: Float[Array, "n n"], T: Float[Array, "n n"]
) -> Float[Array, "n n"]:
    """`B - T A T`, of which what cancels is computed exactly."""
    high, low = _product(T, A)
    found = (B, jnp.zeros_like(B))
    for term in _terms(high, T):
        found = _added(found, -term)
    return found[0] + (found[1] - low @ T)


def _product(A: Array, B: Array) -> tuple[Array, Array]:
    found = (jnp.zeros_like(A), jnp.zeros_like(A))
    for term in _terms(A, B):
        found = _added(found, term)
    high = found[0] + found[1]
    return high, found[1] - (high - found[0])


def _terms(A: Array, B: Array) -> list[Array]:
    """Products of slices, those that matter in twice the precision; the largest are exact."""
    rows, columns = _slices(A, 1), _slices(B, 0)
    return [rows[i] @ columns[j] for i in range(3) for j in range(3) if i + j < 3]


def _slices(M: Array, axis: int) -> list[Array]:
    info = jnp.finfo(M.dtype)
    bits = (info.nmant + 1 - math.ceil(math.log2(M.shape[axis]))) // 2
    found = []
    for _ in range(2):
        largest = jnp.max(jnp.abs(M), axis=axis, keepdims=True)
        exponent = jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1.0))) + 1
        # What is added and taken away leaves the bits above one place.
        place = jnp.exp2(exponent + (info.nmant - bits)) * 1.5
        high = (M + place) - place
        found.append(high)
        M = M - high
    return [*found, M]


def _added(total: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
    """The sum, with what its rounding left out."""
    high, low = total
    new = high + term
    taken = new - high
    return new, low + ((high - (new - taken)) + (term - taken))
