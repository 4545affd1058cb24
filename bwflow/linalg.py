"""Matrix functions whose derivatives stay finite at repeated and at zero singular values.

Nothing here is differentiated through an SVD or an eigendecomposition. Derivatives are written
with Sylvester equations, in whose solutions only *sums* of singular values occur, and each
equation is a `lax.custom_linear_solve`, which can be differentiated to any order in any mode.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks, _polar
from bwflow._polar import Method as Method
from bwflow._polar import range_mask as range_mask
from bwflow._polar import range_svd as range_svd

__all__ = ["after", "polar", "symmetric_sylvester", "symmetrize"]

# W W^T must not be rounded to TF32 or bfloat16: its small eigenvalues would be noise.
full_precision = jax.default_matmul_precision("highest")


def symmetrize(X: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`(X + X^T) / 2`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import linalg
    >>> linalg.symmetrize(jnp.array([[1.0, 4.0], [0.0, 1.0]])).tolist()
    [[1.0, 2.0], [2.0, 1.0]]
    """
    return (X + X.T) / 2


def positive_power(x: Array, exponent: ArrayLike) -> Array:
    """`x^exponent` for `x > 0`; below, 0, or 1 for the zeroth power, with a slope of 0."""
    at_zero = jnp.where(jnp.asarray(exponent, x.dtype) == 0, 1, 0).astype(x.dtype)
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** exponent, at_zero)


def after(tree: Any, *earlier: Array) -> Any:
    """The arrays, computed no sooner than others.

    Batched decompositions side by side in one program may wait for each other for good in XLA's CPU
    runtime, each in a thread of the pool that the others need, unless one depends on the other by a
    number; XLA drops an optimisation barrier.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import linalg
    >>> Q = jnp.linalg.qr(jnp.eye(2))[0]
    >>> linalg.after(jnp.ones(2), Q).tolist()
    [1.0, 1.0]
    """
    firsts = [lax.stop_gradient(x)[(slice(1),) * x.ndim] for x in earlier]
    zero = sum((0 * jnp.sum(jnp.where(jnp.isfinite(x), x, 0)) for x in firsts), start=0.0)
    return jax.tree.map(lambda x: x + jnp.asarray(zero, x.dtype), tree)


def where_needed(needed: Array, function: Callable, arguments: Any, otherwise: Any) -> Any:
    """`function(*arguments)` where it is needed, else what there is already.

    It is computed if a member of the batch needs it: a loop that runs once or never, where
    `lax.cond` would compute it for everyone under `vmap`. XLA moves out of a loop what does not
    change in it, so something that does is added to the arguments: the number 0.
    """

    def compute(state):
        _, zero, done = state
        moved = jax.tree.map(lambda x: x + zero.astype(x.dtype), arguments)
        return function(*moved), zero + 1, ~done

    state = (otherwise, jnp.zeros(needed.shape), ~needed)
    return lax.while_loop(lambda state: ~state[2], compute, state)[0]


def settled(tree: Any) -> Any:
    """The arrays; on a CPU not before they are computed.

    Decompositions in a program that is still running may wait for those of the next one for good,
    as they do within a program (see `after`).
    """
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, Array)]
    if all(map(_checks.is_concrete, arrays)):
        on_cpu = any(device.platform == "cpu" for x in arrays for device in x.devices())
        return jax.block_until_ready(tree) if on_cpu else tree
    return tree


@full_precision
def frobenius_norm(operator: lx.AbstractLinearOperator) -> Array:
    """Frobenius norm, by a product with every unit vector unless the operator is a matrix."""
    if isinstance(operator, lx.MatrixLinearOperator):
        squares = jnp.sum(operator.as_matrix() ** 2)
    else:
        size, dtype = operator.in_size(), operator.in_structure().dtype

        def column(j: Array) -> Array:
            return jnp.sum(operator.mv(jax.nn.one_hot(j, size, dtype=dtype)) ** 2)

        squares = jnp.sum(lax.map(column, jnp.arange(size), batch_size=min(size, 64)))
    return positive_power(squares, 0.5)


@full_precision
def polar(Y: Float[Array, "m q"], *, method: Method = "auto") -> Float[Array, "m q"]:
    """Partial isometry of the polar decomposition, `P = U V^T` for the thin SVD `Y = U S V^T`.

    Singular values below `max(m, q) * eps * s_1` are left out, so that `P` has the numerical rank
    of `Y`. The derivative along `Z` is the `X` with
    `(Y Y^T)^{1/2} X + X (Y^T Y)^{1/2} = Z - P Z^T P`, for `Y` of locally constant rank.

    Parameters
    ----------
    Y
        Any matrix, of any rank.
    method
        How it is computed; with `n = min(m, q)`, `c = s_1 / s_n` and `eps` the rounding of the
        precision:

        - `"auto"`: products, as many as `c` asks for, 10 for `c` below 2 and two or three more for
          each factor of 4; an SVD beyond `c` of about `0.1 / sqrt(n eps)`. Error `eps c`.
        - `"svd"`: an SVD. Error `eps c`, at any rank.
        - `"gram"`: eigenpairs of `Y Y^T`; an SVD beyond `c = eps^(-1/4)`. Error `eps c^2`, in
          float64 at most 1e-8.
        - `"newton_schulz"`: 52 products and nothing else, whatever `Y` is: 18 of `n x n`
          matrices and 34 with an `n x max(m, q)` one. Error `eps c` up to `c = 1e8`; smaller
          singular values become something between 0 and 1 instead of 1.

    Returns
    -------
    Array
        `P`, with `P P^T` and `P^T P` the projections on the range of `Y` and of `Y^T`.

    Raises
    ------
    ValueError
        If there is no such method.

    Notes
    -----
    In a batch the number of products is that of the matrix which needs most, and the SVD is
    computed if one needs it; no result depends on the others. On one CPU core products are 2 to 4
    times as fast as an SVD for `n` of 20 to 64 and `c` up to 100, and slower beyond `c` of about
    1e4. On accelerators, where decompositions of small matrices are slow, products win by more.

    A derivative costs an SVD and products beside it. Near a matrix of lower rank it grows like
    `1 / (s_i + s_j)` of the two smallest singular values.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import linalg
    >>> print(linalg.polar(jnp.array([[0.0, -2.0], [3.0, 0.0]])).round(5) + 0.0)
    [[ 0. -1.]
     [ 1.  0.]]
    """
    _checks.choice("method", method, get_args(Method))
    return _polar_factor(Y, method)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _polar_factor(Y: Float[Array, "m q"], method: Method) -> Float[Array, "m q"]:
    if not Y.size:
        return Y
    if Y.shape[0] > Y.shape[1]:
        return _polar_factor(Y.T, method).T
    return _polar.WAYS[method](lax.stop_gradient(Y))


@_polar_factor.defjvp
@full_precision
def _(method, primals, tangents):
    (Y,), (Z,) = primals, tangents
    P = _polar_factor(Y, method)
    return P, _solve_moduli(after(Y, P), P, Z - P @ Z.T @ P)


def reciprocal(x: Array) -> Array:
    """`1 / x`, and 0 at 0."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1.0), 0.0)


def _solve_moduli(Y: Array, P: Array, C: Array) -> Array:
    """`X` with `(Y Y^T)^{1/2} X + X (Y^T Y)^{1/2} = C`; zero between the two null spaces."""
    left, right = symmetrize(Y @ P.T), symmetrize(P.T @ Y)

    def solve(_, C):
        U, s, Vt = range_svd(Y)
        UC, CV = U.T @ C, C @ Vt.T
        core = UC @ Vt.T
        # Three parts: range x range, range x null, null x range; null x null has no equation.
        inside = core * reciprocal(s[:, None] + s[None, :])
        inverse = reciprocal(s)
        rightward = inverse[:, None] * (UC - core @ Vt)
        downward = (CV - U @ core) * inverse[None, :]
        return U @ (inside @ Vt + rightward) + downward @ Vt

    return lax.custom_linear_solve(lambda X: left @ X + X @ right, C, solve, symmetric=True)


@full_precision
def symmetric_sylvester(H: Float[Array, "n n"], C: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Solution `X` of `H X + X H = C` for a symmetric positive semi-definite `H`.

    In the eigenbasis of `H`, `X_ij = C_ij / (h_i + h_j)`, and 0 where both eigenvalues are
    numerically zero (below `n * eps * h_1`).

    Parameters
    ----------
    H
        Symmetric positive semi-definite matrix.
    C
        Right-hand side.

    Returns
    -------
    Array
        `X`; differentiable in both arguments, to any order.

    Notes
    -----
    Cost: one eigendecomposition and four products.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import linalg
    >>> H = jnp.diag(jnp.array([1.0, 3.0]))
    >>> print(linalg.symmetric_sylvester(H, jnp.array([[2.0, 4.0], [4.0, 6.0]])))
    [[1. 1.]
     [1. 1.]]
    """

    def solve(_, C):
        h, Q = jnp.linalg.eigh(lax.stop_gradient(H))
        h = jnp.where(range_mask(h, h.size), h, 0.0)
        return Q @ ((Q.T @ C @ Q) * reciprocal(h[:, None] + h[None, :])) @ Q.T

    return lax.custom_linear_solve(lambda X: H @ X + X @ H, C, solve, symmetric=True)
