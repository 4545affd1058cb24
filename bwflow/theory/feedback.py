"""What is known of feedback alignment: where it ends, and how it gets there from zero."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._feedback import on_rows_of
from bwflow.linalg import full_precision
from bwflow.theory.exact import crossing


def sketch_limit(Y: ArrayLike, feedback: ArrayLike) -> Float[Array, "n p"]:
    """Where feedback alignment of `1/2 ||Y - W||^2` ends: `Y P`, `P` projecting on rows of `B^T Y`.

    At rest `B^T Y = B^T W` and `(Y - W) W_{<N}^T = 0`. The rows of `B^T W` are among those of
    `W_{<N}`; if the ranks agree both span the rows of `B^T Y`, and `W`, the projection of `Y` on
    the rows of `W_{<N}`, is `Y P`. If instead `B^T Y` has the rows of `Y`, then so has `W_{<N}`,
    and `W = Y`.

    Parameters
    ----------
    Y, feedback
        `n x p`; `B = B_N ... B_2`, `n x r`.

    Raises
    ------
    ValueError
        If they are not finite matrices with as many rows.

    Notes
    -----
    Cost: products, `n p r`, and a polar factor of `r x p`. Singular values below a rounding of the
    largest count as zero.

    References
    ----------
    Derived for the rule of Garg and Vempala (2022), arXiv 2111.08706.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import theory
    >>> print(theory.sketch_limit(jnp.diag(jnp.array([2.0, 1.0])), jnp.ones((2, 1))))
    [[1.6 0.8]
     [0.4 0.2]]
    """
    Y = _checks.real_array("Y", Y, ndim=2)
    B = _checks.real_array("feedback", feedback, ndim=2)
    if B.shape[0] != Y.shape[0]:
        raise ValueError(f"feedback must have {Y.shape[0]} rows, as Y has; got shape {B.shape}.")
    return _sketch(Y, B.astype(Y.dtype))


@jax.jit
@full_precision
def _sketch(Y: Array, B: Array) -> Array:
    return on_rows_of(B.T @ Y, Y)


def feedback_modes(strengths: ArrayLike, time: ArrayLike) -> Float[Array, "..."]:
    """Modes of the flow of feedback alignment from zero layers: `w' = k - w^3 / 2`, `w(0) = 0`.

    With `B^T Y = sum_i k_i p_i q_i^T` the first layer is `W_1(t) = sum_i w_i(t) p_i q_i^T`, and
    `B^T W_2 = W_1 W_1^T / 2`. Limits are `(2 k)^{1/3}`, reached at the rate `3/2 (2 k)^{2/3}`:
    zero is no saddle.

    Parameters
    ----------
    strengths
        Singular values `k_i` of `B^T Y`, not negative, in an array of any shape.
    time
        A scalar.

    Raises
    ------
    ValueError
        If a strength or the time is negative or not finite.

    Notes
    -----
    Cost: 64 evaluations of the inverse function,
    `w_max t / k = log((1 + u + u^2) / (1 - u)^2) / 6 + atan(sqrt(3) u / (2 + u)) / sqrt(3)` for
    `w = u w_max`. Not to be differentiated.

    References
    ----------
    Derived for the rule of Garg and Vempala (2022), arXiv 2111.08706.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import theory
    >>> print(theory.feedback_modes(jnp.array([0.0, 4.0]), 9.0).round(4))
    [0. 2.]
    """
    k = _checks.real_array("strengths", strengths)
    k = jnp.asarray(_checks.numbers("strengths", k, k.dtype, minimum=0.0))
    return _modes(k, _checks.scalar("time", time, k.dtype, minimum=0.0))


@jax.jit
def _modes(k: Array, time: Array) -> Array:
    top = jnp.cbrt(2 * k)
    # u' = (k / top) (1 - u^3), and k / top = top^2 / 2.
    elapsed = top**2 / 2 * time

    def excess(y: Array) -> Array:
        """Time at which `u = 1 - e^{-y}`, minus the one elapsed."""
        u = -jnp.expm1(-y)
        logarithms = (jnp.log1p(u + u**2) + 2 * y) / 6
        return logarithms + jnp.arctan(3**0.5 * u / (2 + u)) / 3**0.5 - elapsed

    return -top * jnp.expm1(-crossing(excess, jnp.zeros_like(elapsed), 3 * elapsed))
