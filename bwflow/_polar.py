"""How a polar factor is computed: by an SVD, by the Gram matrix, or by products alone.

The iteration by products is `X <- X (a + b X^T X + c (X^T X)^2)` with coefficients that change from
step to step. Each polynomial maps singular values of `[l, 1]` into a shorter interval at 1.
"""

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Product: TypeAlias = Callable[[Array, Array], Array]
Method: TypeAlias = Literal["auto", "svd", "gram", "newton_schulz"]

# Coefficients a, b, c of a x + b x^3 + c x^5. The first expands: it has the largest slope at 0 that
# leaves no larger singular value below 0.2, lest it be drowned in rounding, and none above 0.99,
# from where rounding would grow. The next three maximise the least value over [0.09, 1],
# [0.3434, 1] and [0.8526, 1], with 1 as the largest, the last of them centred at 1, from which it
# is 3.3e-4 away. The fifth is the Newton-Schulz polynomial.
POLYNOMIALS = np.array(
    [
        [4.01724238, -10.92524639, 7.89800400],
        [3.89538418, -9.83336125, 6.93797707],
        [3.00622793, -4.76258462, 2.75635670],
        [2.03127312, -1.58174394, 0.55078537],
        [15 / 8, -10 / 8, 3 / 8],
    ]
)
# Singular values above which one, two, three of the three are needed; and what an expansion gains.
_STARTS, _GAIN = (0.8526, 0.3434, 0.09), 3.99
# The least singular value, relative to the largest, of which products alone make 1, in as many
# expansions: there is room for the scaling, by up to (2 n)^{1/8} more than the norm.
RESOLVED, _EXPANSIONS = 1e-8, 13
_MOST_STEPS = 40
# Sizes at which XLA's product of two matrices on a CPU takes many times as long as a sum of columns
# times rows: 670 against 40 ns at 5. Smaller ones it multiplies that way itself; from 8 on an
# iteration gains nothing by it and takes longer to compile.
_SMALL = range(4, 8)


def range_mask(s: Float[Array, " k"], size: int) -> Array:
    """Which of the magnitudes `s` are above `size * eps * max(s)`, the rounding of a rank cut."""
    return s > size * jnp.finfo(s.dtype).eps * jnp.max(s, initial=0.0)


def range_svd(Y: Array) -> tuple[Array, Array, Array]:
    """Thin SVD in which what belongs to numerically zero singular values is zero."""
    U, s, Vt = jnp.linalg.svd(lax.stop_gradient(Y), full_matrices=False)
    kept = range_mask(s, max(Y.shape))
    U, Vt = jnp.where(kept[None, :], U, 0.0), jnp.where(kept[:, None], Vt, 0.0)
    return U, jnp.where(kept, s, 0.0), Vt


def by_svd(Y: Array) -> Array:
    U, _, Vt = range_svd(Y)
    P = U @ Vt
    # LAPACK's vectors are orthonormal to some ten roundings, which a Newton-Schulz step makes one.
    return 1.5 * P - 0.5 * (P @ P.T) @ P


def by_gram(Y: Array) -> Array:
    """`(Y Y^T)^{-1/2} Y`, or by an SVD where the Gram matrix has lost the small singular values."""
    A = Y @ Y.T
    values, Q = jnp.linalg.eigh(A)
    # Its eigenvalues are off by eps times the largest: the square root of that stays.
    sound = values[0] > math.sqrt(jnp.finfo(Y.dtype).eps) * values[-1]
    P = (Q / jnp.sqrt(jnp.where(sound, values, 1.0))[None, :]) @ (Q.T @ Y)
    return _svd_where(~sound, Y, P)


def by_products(Y: Array) -> Array:
    """Products alone, as many as singular values of at least `RESOLVED` need."""
    X, A, S, _ = _scaled(Y, jnp.matmul)
    polynomials = jnp.asarray(POLYNOMIALS, Y.dtype)
    for stage in (*[0] * _EXPANSIONS, 1, 2, 3):
        X, A, S = _step(polynomials[stage], X, A, S, jnp.matmul)
    return _last(X, A, S, jnp.matmul)


def by_adapted_products(Y: Array) -> Array:
    """Products, as many as the condition of `Y` needs; an SVD where it is too large for them."""
    X, A, S, scale = _scaled(Y, _product)
    least = 0.8 * _least_singular_value(A)
    # Below, the Cholesky factor of a Gram matrix says nothing.
    able = least > 8 * math.sqrt(Y.shape[0] * jnp.finfo(Y.dtype).eps)
    able &= (scale > 0) & jnp.isfinite(scale)
    least = jnp.where(able, least, 1.0)
    expansions = jnp.ceil(jnp.log(_STARTS[-1] / least) / math.log(_GAIN))
    skipped = sum((least > start).astype(least.dtype) for start in _STARTS)
    stage = jnp.where(expansions > 0, 1 - expansions, skipped).astype(jnp.int32)
    end = stage + _MOST_STEPS
    # The last step has an error of a quarter of the fifth power of what is left.
    enough = (4 * float(jnp.finfo(Y.dtype).eps)) ** 0.4
    polynomials = jnp.asarray(POLYNOMIALS, Y.dtype)

    def unfinished(state):
        _, _, S, stage = state
        return able & (jnp.sum(S**2) > enough**2) & (stage < end)

    def advance(state):
        X, A, S, stage = state
        return *_step(polynomials[jnp.clip(stage, 0, 4)], X, A, S, _product), stage + 1

    X, A, S, stage = lax.while_loop(unfinished, advance, (X, A, S, stage))
    return _svd_where(~able | (stage >= end), Y, _last(X, A, S, _product))


def _product(A: Array, B: Array) -> Array:
    """`A B`, of small matrices as a sum of columns times rows."""
    if not all(size in _SMALL for size in (*A.shape, *B.shape)):
        return A @ B
    return reduce(operator.add, (A[:, k, None] * B[None, k] for k in range(len(B))))


def _scaled(Y: Array, times: Product) -> tuple[Array, Array, Array, Array]:
    """`X = Y / alpha` of norm at most 1, `A = X X^T`, `(I - A)^2`, and the largest entry of `Y`."""
    scale = jnp.max(jnp.abs(Y))
    X = Y / jnp.where(scale > 0, scale, 1.0)
    A = times(X, X.T)
    B = times(A, A)
    # ||A|| <= ||A^2||_F^{1/2}, little more than the norm itself.
    square = jnp.sqrt(jnp.sum(B**2))
    square = jnp.where(square > 0, square, 1.0)
    A, B = A * lax.rsqrt(square), B / square
    eye = jnp.eye(len(A), dtype=A.dtype)
    return X * lax.rsqrt(jnp.sqrt(square)), A, eye - 2 * A + B, scale


def _step(
    polynomial: Array, X: Array, A: Array, S: Array, times: Product
) -> tuple[Array, Array, Array]:
    """One step, from `A = X X^T` and `S = (I - A)^2` to those of the new `X`."""
    a, b, c = polynomial[0], polynomial[1], polynomial[2]
    eye = jnp.eye(len(A), dtype=A.dtype)
    X = times((a - c) * eye + (b + 2 * c) * A + c * S, X)
    A = times(X, X.T)
    return X, A, times(eye - A, eye - A)


def _last(X: Array, A: Array, S: Array, times: Product) -> Array:
    """`(X X^T)^{-1/2} X` by the series to the fourth power of `R = I - X X^T`."""
    eye = jnp.eye(len(A), dtype=A.dtype)
    R = eye - A
    return times(eye + R / 2 + 3 / 8 * S + times(S, 5 / 16 * R + 35 / 128 * S), X)


def _least_singular_value(A: Array) -> Array:
    """About the least singular value of a factor of `A`, by two steps of inverse iteration."""
    L = lax.linalg.cholesky(A, symmetrize_input=False)

    def solved(v: Array, transposed: bool) -> Array:
        return lax.linalg.triangular_solve(L, v, left_side=True, lower=True, transpose_a=transposed)

    v = solved(solved(jnp.ones((len(A), 1), A.dtype), False), True)
    w = solved(solved(v, False), True)
    return jnp.sqrt(jnp.sqrt(jnp.sum(v**2) / jnp.sum(w**2)))


def _svd_where(needed: Array, Y: Array, P: Array) -> Array:
    """`P`, or the factor by an SVD, which is computed only if a matrix of the batch needs it."""

    # The matrix is handed on by the loop: XLA moves what does not change out of it.
    def by_decomposition(state):
        return by_svd(state[0]), jnp.zeros_like(state[1])

    start = (jnp.where(needed, Y, P), needed)
    return lax.while_loop(lambda state: state[1], by_decomposition, start)[0]


WAYS = {
    "auto": by_adapted_products,
    "svd": by_svd,
    "gram": by_gram,
    "newton_schulz": by_products,
}
