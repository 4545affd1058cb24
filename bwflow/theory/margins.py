"""What the initial loss says of all that follows: bounds of traces and of singular values.

Everything here takes numbers that are known at the start: the eigenvalues of the target, the loss
`L0`, the smoothing `tau` and the depth `N`, which may be any real number of at least 1. They may be
arrays that broadcast, traced or batched. Where nothing is known a margin is 0.
"""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks, _minima
from bwflow._minima import Discrepancy
from bwflow._types import Scalar
from bwflow.covariances import Target
from bwflow.theory._arguments import check_target, dtype_of, eigenvalue, numbers, rank_within, root


def trace_bound(target: Target, initial_loss: ArrayLike) -> Float[Array, "..."]:
    """Bound `C_0 = 2 (L0 + tr Sigma0)` on `tr(W W^T + tau I)` while the loss does not grow.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss
        `L0`, in units of the covariance; the Bures-Wasserstein loss.

    Returns
    -------
    Array
        `C_0`, in units of the covariance.

    Raises
    ------
    ValueError
        If `initial_loss` is negative or not finite.

    Notes
    -----
    Proved for any layers, of any rank, and any `tau`: the loss is a squared distance, so
    `tr(S_tau)^{1/2} <= L^{1/2} + tr(Sigma0)^{1/2}`. Cost: a sum of the eigenvalues.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.trace_bound(target, 0.25).round(5))
    10.5
    """
    check_target(target)
    L0 = _checks.numbers("initial_loss", initial_loss, dtype_of(target), minimum=0.0)
    return _trace_bound(target, L0)


@jax.jit
def _trace_bound(target: Target, L0: Array) -> Array:
    return 2 * (L0 + jnp.sum(target.eigenvalues))


def convexity_constant(
    target: Target, initial_loss: ArrayLike, *, tau: ArrayLike
) -> Float[Array, "..."]:
    """Strong convexity of the loss in `S = W W^T`, `K = (tau lambda_n)^{1/2} / (2 C_0^2)`.

    On the covariances that a flow can reach the Hessian of the loss in `S` is at least `K`, so that
    the gradient `E` in `S` has `||E||^2 >= 2 K L` where the minimum is 0.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss, tau
        `L0` and the smoothing, in units of the covariance; not negative.

    Returns
    -------
    Array
        `K`, in units of the covariance to the power of -1.

    Raises
    ------
    ValueError
        If a number is negative or not finite.

    Notes
    -----
    Proved for the Bures-Wasserstein loss. It is 0, and says nothing, without smoothing and for a
    singular target: curvature in `S` is not what makes the flow fast. Cost: constant.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.convexity_constant(target, 0.0, tau=0.25).round(5))
    0.0025
    """
    check_target(target)
    L0, tau = numbers(dtype_of(target), initial_loss=initial_loss, tau=tau)
    return _convexity(target, L0, tau)


@jax.jit
def _convexity(target: Target, L0: Array, tau: Array) -> Array:
    def one(L0: Scalar, tau: Scalar) -> Scalar:
        return root(tau * eigenvalue(target, target.dim)) / (2 * _trace_bound(target, L0) ** 2)

    return jnp.vectorize(one)(L0, tau)


def published_margin(
    target: Target, initial_loss: ArrayLike, *, rank: int | None = None
) -> Float[Array, "..."]:
    """The published deficiency margin `c = (lambda_k^{1/2} - L0^{1/2})_+`, for `k = rank`.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss
        `L0`, in units of the covariance; the Bures-Wasserstein loss.
    rank
        `k`, the bottleneck; by default the size `n` of the target.

    Returns
    -------
    Array
        `c`, in units of the square root of the covariance.

    Raises
    ------
    ValueError
        If `initial_loss` is negative or not finite, or `rank` not between 1 and `n`.

    Notes
    -----
    At `tau = 0` it is proved that `sigma_k(W(t)) >= c` along the flow. With smoothing it is not a
    lower bound of `sigma_k(W)`, but of `(sigma_k(W)^2 + tau)^{1/2}`: at the minimum `c` is
    `lambda_k^{1/2}` and `sigma_k = (lambda_k - tau)^{1/2}` is smaller. `margin` is what is true.
    Cost: constant.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.published_margin(target, 0.25), theory.published_margin(target, 9.0))
    0.5 0.0
    """
    k = rank_within(target, rank)
    L0 = _checks.numbers("initial_loss", initial_loss, dtype_of(target), minimum=0.0)
    return _published_margin(target, L0, k)


@partial(jax.jit, static_argnums=2)
def _published_margin(target: Target, L0: Array, k: int) -> Array:
    return jnp.maximum(root(eigenvalue(target, k)) - root(L0), 0)


def margin(
    target: Target,
    initial_loss: ArrayLike,
    *,
    tau: ArrayLike = 0.0,
    rank: int | None = None,
    loss: Discrepancy = "bures_wasserstein",
) -> Float[Array, "..."]:
    """Lower bound of the singular value `sigma_k(W)`, `k = rank`, while the loss does not grow.

    With the least loss `L*` over matrices of rank at most `k`, `x = (L0 - L*)^{1/2}`,

        Bures-Wasserstein    (((lambda_k^{1/2} - x)_+)^2 - tau)_+^{1/2}
        Frobenius            (lambda_k - tau - x)_+^{1/2}

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss
        `L0`, in units of the covariance; squared units for the Frobenius loss.
    tau
        Smoothing, in units of the covariance.
    rank
        `k`, the bottleneck: `W` has no more singular values. By default the size `n` of the target.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Returns
    -------
    Array
        The margin, in units of the square root of the covariance; 0 where nothing is known, and for
        a target of a rank below `k`.

    Raises
    ------
    ValueError
        If a number is negative or not finite, `rank` not between 1 and `n`, or `loss` neither.

    Notes
    -----
    Proved for any layers, balanced or not, at any depth and `tau`, for flows and for descents whose
    loss never exceeds `L0`. The loss is at least that of the sorted spectra,
    `sum_i ((sigma_i^2 + tau)^{1/2} - lambda_i^{1/2})^2` (Frobenius:
    `sum_i (sigma_i^2 + tau - lambda_i)^2`), where the terms beyond `k` add up to `L*`. Used at a
    later time it bounds what follows, so margins grow along a run. Cost: a sum over eigenvalues.

    References
    ----------
    Derived for the losses of arXiv 2303.03027, from the inequalities of Mirsky and Weyl.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(f"{theory.margin(target, 0.04, tau=0.28):.4f}")
    0.6000
    """
    k = rank_within(target, rank)
    _checks.choice("loss", loss, get_args(Discrepancy))
    L0, tau = numbers(dtype_of(target), initial_loss=initial_loss, tau=tau)
    return _margin(target, L0, tau, k, loss)


@partial(jax.jit, static_argnums=(3, 4))
def _margin(target: Target, L0: Array, tau: Array, k: int, loss: Discrepancy) -> Array:
    lam = eigenvalue(target, k)

    def one(L0: Scalar, tau: Scalar) -> Scalar:
        # Where tau exceeds lambda_k the minimum has more terms; the margin is 0 there anyway.
        lost = root(L0 - _minima.minimum(target, k, tau=tau, loss=loss))
        if loss == "frobenius":
            return root(lam - tau - lost)
        # The difference has to be positive before it is squared.
        least, smoothing = root(lam) - lost, root(tau)
        return root(jnp.maximum(least - smoothing, 0) * (least + smoothing))

    return jnp.vectorize(one)(L0, tau)
