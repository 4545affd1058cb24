"""Rates that bound the loss along the gradient flow, and the rate of its end.

Everything here takes numbers that are known at the start: the eigenvalues of the target, the loss
`L0`, the smoothing `tau` and the depth `N`, which may be any real number of at least 1. They may be
arrays that broadcast, traced or batched. Where the margin is 0, so is the rate.

A bound `L(t) <= L0 e^{-rate t}` needs a full rank: every width at least the size `n` of the target.
Below that `W W^T` is singular, the loss cannot go to 0, and the margins that it needs are 0.
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
from bwflow.landscape import minimizer_spectrum
from bwflow.landscape._levels import coincidence
from bwflow.theory import margins
from bwflow.theory._arguments import (
    check_target,
    depth_number,
    dtype_of,
    floating_dtype_of,
    numbers,
    root,
)


def pl_constant(
    margin: ArrayLike,
    *,
    tau: ArrayLike = 0.0,
    depth: ArrayLike = 1,
    loss: Discrepancy = "bures_wasserstein",
) -> Float[Array, "..."]:
    """Constant `mu` of the Polyak-Lojasiewicz inequality `sum_j ||grad_j||^2 >= mu L`.

    For `sigma_n(W) >= c`, the margin, and `N` layers,

        Bures-Wasserstein    mu = 4 N c^{2(N-1)/N} c^2 / (c^2 + tau)
        Frobenius            mu = 16 N c^{2(2N-1)/N}

    Parameters
    ----------
    margin
        `c`, in units of the square root of the covariance.
    tau
        Smoothing, in units of the covariance.
    depth
        Number of layers `N`, a real number of at least 1.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Returns
    -------
    Array
        `mu`, of the units of `1 / time`: the loss over the square of a layer. 0 at `c = 0`.

    Raises
    ------
    ValueError
        If a number is negative or not finite, `depth` below 1, or `loss` neither.

    Notes
    -----
    Proved at every `W` of rank `n`, and singular targets too, for `N = 1` and `N = 2` whatever the
    layers, for `N >= 3` for balanced layers. For others it is observed: among the factorizations of
    a matrix in three or four layers, minimised over numerically, balanced ones had the least
    gradient. Since `L = tr(E^2 (S + tau I))` and `||G||^2 = 4 tr(E^2 S)`, one layer without
    smoothing has equality, `||G||^2 = 4 L`. Elementwise cost.

    References
    ----------
    Derived for the losses of arXiv 2303.03027.

    Examples
    --------
    >>> from bwflow import theory
    >>> print(theory.pl_constant(0.5, tau=0.75, depth=2))
    1.0
    """
    _checks.choice("loss", loss, get_args(Discrepancy))
    dtype = floating_dtype_of(margin)
    margin, tau = numbers(dtype, margin=margin, tau=tau)
    return _pl(margin, tau, depth_number(depth, dtype), loss)


@partial(jax.jit, static_argnums=3)
def _pl(c: Array, tau: Array, N: Array, loss: Discrepancy) -> Array:
    def one(c: Scalar, tau: Scalar, N: Scalar) -> Scalar:
        known = c > 0
        c = jnp.where(known, c, 1)
        if loss == "frobenius":
            mu = 16 * N * c ** (4 - 2 / N)
        else:
            mu = 4 * N * c ** (2 - 2 / N) / (1 + tau / c / c)
        return jnp.where(known, mu, 0)

    return jnp.vectorize(one)(c, tau, N)


def published_rate(
    target: Target,
    initial_loss: ArrayLike,
    *,
    depth: ArrayLike,
    tau: ArrayLike,
    margin: ArrayLike | None = None,
) -> Float[Array, "..."]:
    """The published rate `8 N c^{2(2N-1)/N} K` of `L(t) <= L0 e^{-rate t}`.

    With the published margin and `tau > 0` this bound is NOT valid. A start that is almost of
    lower rank has a positive `c` and hardly moves: for `lambda = 1`, `tau = 1/4`, one layer and
    `W(0) = 10^{-6}`, `c` is 1/2 and the bound at `t = 5` is `0.67 L0`, but the loss is `0.998 L0`;
    with two layers, `W(0) = 10^{-3}`, `0.02 L0` against `0.999998 L0` at `t = 50`. With
    `margin=theory.margin(target, initial_loss, tau=tau)` it is proved.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss, tau
        `L0` and the smoothing, in units of the covariance.
    depth
        Number of layers `N`, a real number of at least 1.
    margin
        `c`, a lower bound of `sigma_n(W(t))`; by default `published_margin(target, initial_loss)`.

    Returns
    -------
    Array
        The rate, in units of `1 / time`, time being that of the flow: for descent, the sum of its
        step sizes, not the number of its steps. 0 without smoothing and for singular targets.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `depth` below 1.

    Notes
    -----
    Proved for balanced layers of full rank, for `c` a true margin and the `K` of
    `convexity_constant`. For fewer columns than `n` no rate can hold: the loss has a positive
    minimum, and saddles of a positive `c`. It never exceeds a quarter of `sharp_rate` with the same
    margin, for `K` knows only the worst curvature in `W W^T`. Elementwise cost.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027; the counter-examples are found here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.eye(1))
    >>> for margin in (None, theory.margin(target, 0.2498, tau=0.25)):
    ...     print(f"{theory.published_rate(target, 0.2498, depth=1, tau=0.25, margin=margin):.5f}")
    0.08009
    0.00006
    """
    dtype = dtype_of(target)
    L0, tau = numbers(dtype, initial_loss=initial_loss, tau=tau)
    known = margin is not None
    c = numbers(dtype, margin=margin)[0] if known else margins.published_margin(target, L0)
    K = margins.convexity_constant(target, L0, tau=tau)
    return _published_rate(c, K, depth_number(depth, dtype))


@jax.jit
def _published_rate(c: Array, K: Array, N: Array) -> Array:
    def one(c: Scalar, K: Scalar, N: Scalar) -> Scalar:
        return jnp.where(c > 0, 8 * N * jnp.where(c > 0, c, 1) ** (4 - 2 / N) * K, 0)

    return jnp.vectorize(one)(c, K, N)


def sharp_rate(
    target: Target,
    initial_loss: ArrayLike,
    *,
    depth: ArrayLike,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
) -> Float[Array, "..."]:
    """Rate of `L(t) <= L0 e^{-rate t}`: `pl_constant` at `margin`, for `sigma_n(W(t)) >= c`.

    It is `4 N c^{2(N-1)/N} c^2 / (c^2 + tau)`, or `16 N c^{2(2N-1)/N}` for the Frobenius loss.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss
        `L0`, in units of the covariance; squared units for the Frobenius loss.
    depth
        Number of layers `N`, a real number of at least 1.
    tau
        Smoothing, in units of the covariance.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Returns
    -------
    Array
        The rate, in units of `1 / time`; 0 where the margin is.

    Raises
    ------
    ValueError
        If a number is negative or not finite, `depth` below 1, or `loss` neither.

    Notes
    -----
    Proved where every width is at least `n`: for `N <= 2` from any layers, for `N >= 3` from
    balanced ones. With `c` at its end, `(lambda_n - tau)^{1/2}`, it is the exact late rate where
    the least direction is the slowest, and for one layer without smoothing it is exact from the
    start: `L(t) = e^{-4 t} L0`. Cost: a sum over the eigenvalues.

    References
    ----------
    Derived for the losses of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.sharp_rate(target, 0.25, depth=jnp.array([1.0, 2.0])))
    [4. 4.]
    """
    check_target(target)
    c = margins.margin(target, initial_loss, tau=tau, loss=loss)
    return pl_constant(c, tau=tau, depth=depth, loss=loss)


def late_rate(
    target: Target,
    rank: int,
    *,
    depth: int,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
) -> Scalar:
    """Exponential rate of the gap `L - L*` at the end of the flow: twice the least curvature.

    Curvatures at the balanced minimiser of rank `k`, with `s_j = (lambda_j - tau)^{1/2}`, are
    `q(s_a, s_b) 2 (lambda_a + lambda_b - 2 tau) / (lambda_a + lambda_b)` for `a <= b <= k`, where
    `q(x, y) = sum_{j=1}^N x^{2(N-j)/N} y^{2(j-1)/N}`, and
    `s_j^{2(N-1)/N} 2 (lambda_j - lambda_i) / (lambda_j + (lambda_i tau)^{1/2})` for `j <= k < i`;
    `landscape.minimizer_spectrum` has them all, those of the Frobenius loss too.

    Parameters
    ----------
    target
        Covariance `Sigma0`; it may be traced.
    rank
        The bottleneck.
    depth
        Number of layers `N`, static.
    tau
        Smoothing, in units of the covariance; a scalar.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Returns
    -------
    Array
        The rate, in units of `1 / time`. It is 0 where the decay is algebraic: `N >= 2` with fewer
        than `rank` eigenvalues above `tau`, or `tau` equal to one of the `rank` largest (zeros
        included for the Frobenius loss).

    Raises
    ------
    ValueError
        If `rank` or `depth` is not a positive integer, `tau` negative or not finite, or `loss`
        neither.

    Notes
    -----
    It describes the end of runs that converge to the balanced minimiser, from almost every start,
    and bounds nothing at a finite time. Where `lambda_rank = lambda_{rank+1}` minimisers form a
    manifold, along which the curvature 0 does not count. Cost: `rank * n` curvatures.

    References
    ----------
    Derived for the losses of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.late_rate(target, 2, depth=2), theory.late_rate(target, 1, depth=1))
    8.0 3.0
    """
    spectrum = minimizer_spectrum(target, rank, depth=depth, tau=tau, loss=loss)
    return _late_rate(target, spectrum, jnp.asarray(tau, dtype_of(target)), int(rank))


@partial(jax.jit, static_argnums=3)
def _late_rate(target: Target, spectrum: Array, tau: Array, rank: int) -> Scalar:
    lam, tolerance = target.eigenvalues, coincidence(target) * target.eigenvalues[0]
    k, n = min(rank, lam.size), target.dim
    top, rest = lam[:k], jnp.pad(lam[k:], (0, n - lam.size))
    tied = (top[None, :] - rest[:, None] <= tolerance) & (rest[:, None] > tau)
    first = k * (k + 1) // 2  # the block of pairs of an eigenvalue that is left out with one learnt
    along = jnp.zeros(spectrum.size, bool).at[first : first + tied.size].set(tied.ravel())
    resonant = jnp.any(jnp.abs(top - tau) <= tolerance) & (tau > 0)
    least = jnp.min(jnp.where(along, jnp.inf, spectrum))
    return 2 * jnp.where(resonant, 0, jnp.maximum(least, 0))


def saddle_value(
    target: Target, rank: int, *, tau: ArrayLike = 0.0, loss: Discrepancy = "bures_wasserstein"
) -> Float[Array, "..."]:
    """Second lowest critical value over matrices of rank at most `rank`; infinity if there is none.

    The lowest is `L*`. With `a_i = (lambda_i^{1/2} - tau^{1/2})_+`, or `(lambda_i - tau)_+` for the
    Frobenius loss, it is `L* + a_k^2 - a_{k+1}^2`, for `k = rank`, if both are positive and differ:
    the saddle that has learnt `k + 1` instead of `k`, or that has lost `k`.

    Parameters
    ----------
    target
        Covariance `Sigma0`; it may be traced.
    rank
        The bottleneck.
    tau
        Smoothing, in units of the covariance.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Returns
    -------
    Array
        The value, in units of the loss.

    Raises
    ------
    ValueError
        If `rank` is not a positive integer, `tau` negative or not finite, or `loss` neither.

    Notes
    -----
    Proved for any depth: a bounded analytic flow (`tau > 0`, or the Frobenius loss) from a loss
    below this value converges to a minimiser, since it converges to a critical point and passes
    none above. At `tau = 0` points that have lost an eigenvalue are kinks, or lie outside the
    manifold of their rank; convergence from below was observed, and is proved where the margin is
    positive at full rank. Eigenvalues within `10 n eps lambda_1` count as equal. Cost: `rank * m`.

    References
    ----------
    Derived for the losses of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.saddle_value(target, 1, tau=0.25))
    2.25
    """
    check_target(target)
    rank = _checks.positive_int("rank", rank)
    _checks.choice("loss", loss, get_args(Discrepancy))
    (tau,) = numbers(dtype_of(target), tau=tau)
    return _saddle_value(target, tau, rank, loss)


@partial(jax.jit, static_argnums=(2, 3))
def _saddle_value(target: Target, tau: Array, rank: int, loss: Discrepancy) -> Array:
    lam, tolerance = target.eigenvalues, coincidence(target) * target.eigenvalues[0]
    k = min(rank, lam.size)

    def one(tau: Scalar) -> Scalar:
        a = lam - tau if loss == "frobenius" else root(lam) - root(tau)
        gains = jnp.where(lam > tau, a**2, 0)
        lost = jnp.where(lam[:k] > tau, gains[:k], jnp.inf)
        swapped = jnp.where(
            lam[:k, None] - lam[None, k:] > tolerance, lost[:, None] - gains[None, k:], jnp.inf
        )
        least = jnp.minimum(jnp.min(lost), jnp.min(swapped, initial=jnp.inf))
        return _minima.minimum(target, rank, tau=tau, loss=loss) + least

    return jnp.vectorize(one)(tau)
