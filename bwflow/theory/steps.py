"""Step sizes of gradient descent: rules for the start, the limit at the end, the loss per step.

Steps are those of `W_j <- W_j - eta grad_j`, with plain gradients and all layers from the same old
values. A step size has the units of a time: `k` steps of `eta` follow the flow for `k eta`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow._minima import Discrepancy
from bwflow._types import Scalar
from bwflow.covariances import Target
from bwflow.landscape import minimizer_spectrum
from bwflow.theory import margins
from bwflow.theory._arguments import (
    check_target,
    depth_number,
    dtype_of,
    floating_dtype_of,
    numbers,
    root,
)


class StepSizes(NamedTuple):
    """The three step sizes whose least one is the published rule."""

    eta_1: Float[Array, "..."]
    eta_2: Float[Array, "..."]
    eta_3: Float[Array, "..."]

    @property
    def least(self) -> Float[Array, "..."]:
        """The least of the three."""
        return jnp.minimum(jnp.minimum(self.eta_1, self.eta_2), self.eta_3)


def published_step_sizes(
    target: Target,
    initial_loss: ArrayLike,
    *,
    depth: ArrayLike,
    margin: ArrayLike | None = None,
) -> StepSizes:
    """The published step sizes, from the margin `c` and `M = C_0^{1/2}`.

    They are `c^2 / (8 M L0^{1/2})`, `N c^{2(N-1)/N} / (2 D)` and `1 / (4 N c^{2(N-1)/N})`, where

        D = 2^{N+1} c^{-2N} N^2 M^{(4N-3)/N} lambda_1^{1/2}
            + 8 N (N-1) M^{(3N-4)/N} (M^{1/N} + tr Sigma0)

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss
        `L0`, in units of the covariance; the Bures-Wasserstein loss.
    depth
        Number of layers `N`, a real number of at least 1.
    margin
        `c`, a lower bound of `sigma_n`; by default `published_margin(target, initial_loss)`. With
        smoothing that is none: pass `margin(target, initial_loss, tau=tau)`.

    Returns
    -------
    StepSizes
        `eta_1`, `eta_2`, `eta_3`, all 0 where the margin is, and `least`.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `depth` below 1.

    Notes
    -----
    Meant for balanced layers of full rank. What was observed, in random such runs of one to four
    layers, with and without smoothing: the loss falls at every step of size `least`, and
    `descent_factor` bounds it. The second one is the least by far, tens to millions of times
    smaller than `stability_limit` there, and the gap grows as `c^{-2N}`. Elementwise cost.

    References
    ----------
    The rule that accompanies Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(f"{theory.published_step_sizes(target, 0.25, depth=2).least:.1e}")
    2.5e-05
    """
    check_target(target)
    dtype = dtype_of(target)
    (L0,) = numbers(dtype, initial_loss=initial_loss)
    known = margin is not None
    c = numbers(dtype, margin=margin)[0] if known else margins.published_margin(target, L0)
    return StepSizes(*_published(target, L0, c, depth_number(depth, dtype)))


@jax.jit
def _published(target: Target, L0: Array, c: Array, N: Array) -> tuple[Array, Array, Array]:
    lam = target.eigenvalues
    trace = jnp.sum(lam)

    def one(L0: Scalar, c: Scalar, N: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        known = c > 0
        c, M = jnp.where(known, c, 1), jnp.sqrt(2 * (L0 + trace))
        pace = N * c ** (2 - 2 / N)
        first = jnp.where(L0 > 0, c**2 / (8 * M * root(jnp.where(L0 > 0, L0, 1))), jnp.inf)
        # c^{2N} D, lest a small margin of many layers overflow.
        large = 2 ** (N + 1) * N**2 * M ** (4 - 3 / N) * jnp.sqrt(lam[0])
        small = 8 * N * (N - 1) * M ** (3 - 4 / N) * (M ** (1 / N) + trace) * c ** (2 * N)
        sizes = first, pace * c ** (2 * N) / (2 * (large + small)), 1 / (4 * pace)
        return tuple(jnp.where(known, x, 0) for x in sizes)  # pyright: ignore[reportReturnType]

    return jnp.vectorize(one, signature="(),(),()->(),(),()")(L0, c, N)


def practical_step_size(
    target: Target, initial_loss: ArrayLike, *, depth: ArrayLike, safety: ArrayLike = 0.5
) -> Float[Array, "..."]:
    """Step size `safety / (N (lambda_1^{1/2} + L0^{1/2})^{2(N-1)/N})`, for balanced layers.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    initial_loss
        `L0`, in units of the covariance; the Bures-Wasserstein loss.
    depth
        Number of layers `N`, a real number of at least 1.
    safety
        1/2 by default, which is the best step of one layer. More than 1 was seen to fail.

    Returns
    -------
    Array
        The step size, in units of time.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `depth` below 1.

    Notes
    -----
    `lambda_1^{1/2} + L0^{1/2}` bounds the largest singular value while the loss does not grow,
    which is proved, and curvature in `W` is at most 2. For one layer it is therefore proved that
    the loss falls at every step for `safety < 1`, whatever the start and `tau`. For deeper networks
    that is observed: it fell in all of many runs from random balanced starts, far ones included.
    It is always below `stability_limit` at `tau = 0`. Elementwise cost.

    References
    ----------
    Derived for the loss of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.practical_step_size(target, 0.25, depth=2))
    0.1
    """
    check_target(target)
    dtype = dtype_of(target)
    L0, safety = numbers(dtype, initial_loss=initial_loss, safety=safety)
    return _practical(target, L0, depth_number(depth, dtype), safety)


@jax.jit
def _practical(target: Target, L0: Array, N: Array, safety: Array) -> Array:
    def one(L0: Scalar, N: Scalar, safety: Scalar) -> Scalar:
        largest = jnp.sqrt(target.eigenvalues[0]) + root(L0)
        return safety / (N * largest ** (2 - 2 / N))

    return jnp.vectorize(one)(L0, N, safety)


def stability_limit(
    target: Target,
    rank: int,
    *,
    depth: int,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
) -> Scalar:
    """Step size beyond which descent leaves the balanced minimiser: 2 by the largest curvature.

    For the Bures-Wasserstein loss it is `lambda_1 / (N (lambda_1 - tau)^{(2N-1)/N})` wherever
    `rank` is `n` and `tau <= lambda_n`, or `N >= 2` and `tau <= lambda_1 / 2`.

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
        The limit, in units of time; infinity if no curvature is positive.

    Raises
    ------
    ValueError
        If `rank` or `depth` is not a positive integer, `tau` negative or not finite, or `loss`
        neither.

    Notes
    -----
    Proved: below the limit the balanced minimiser is a stable fixed point of descent, but for
    directions without curvature, and above it an unstable one. The limit bounds nothing far from
    the minimiser; layers of the same product that are not balanced have others, as a rule lower.
    Cost: `rank * n` curvatures.

    References
    ----------
    Derived for the losses of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(theory.stability_limit(target, 2, depth=2))
    0.25
    """
    return _limit(minimizer_spectrum(target, rank, depth=depth, tau=tau, loss=loss))


@jax.jit
def _limit(spectrum: Array) -> Scalar:
    largest = jnp.max(spectrum)
    return jnp.where(largest > 0, 2 / jnp.where(largest > 0, largest, 1), jnp.inf)


def descent_factor(
    step_size: ArrayLike, margin: ArrayLike, *, depth: ArrayLike, tau: ArrayLike = 0.0
) -> Float[Array, "..."]:
    """Factor of `L_{k+1} <= factor * L_k` under steps of size `eta`.

    With `r = c^2 / (c^2 + tau)` for a margin `c > 0`, it is `1 - 4 eta (1 - eta) r` for one layer,
    `(1 - 2 eta)^2` beyond `eta = 1`, and `1 - 2 eta N c^{2(N-1)/N} r` for more; 1 for `c = 0`.

    Parameters
    ----------
    step_size
        `eta`, in units of time.
    margin
        `c`, a lower bound of `sigma_n(W)`, as of `margin(target, initial_loss, tau=tau)`.
    depth
        Number of layers `N`, a real number of at least 1.
    tau
        Smoothing, in units of the covariance.

    Returns
    -------
    Array
        The factor, at least 0.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `depth` below 1.

    Notes
    -----
    For one layer it is proved, from curvature of at most 2 and `pl_constant`, for `W` of full rank
    at any `tau`; for `eta <= 1` the loss falls and the margin of the start remains true. At
    `tau = 0` it is `(1 - 2 eta)^2`, and exact up to `eta = 1/2`, whose step ends at the optimum;
    larger steps may overshoot, to a smaller loss.

    For deeper networks it is observed, for balanced starts of full rank and `eta` up to the least
    of `published_step_sizes`, in all random runs; the flow is bounded by twice this rate. It says
    nothing at step sizes that are not small. Elementwise cost.

    References
    ----------
    Derived for the loss of arXiv 2303.03027.

    Examples
    --------
    >>> from bwflow import theory
    >>> print(theory.descent_factor(0.5, 0.5, depth=1, tau=0.75))
    0.75
    """
    dtype = floating_dtype_of(step_size)
    eta, c, tau = numbers(dtype, step_size=step_size, margin=margin, tau=tau)
    return _factor(eta, c, depth_number(depth, dtype), tau)


@jax.jit
def _factor(eta: Array, c: Array, N: Array, tau: Array) -> Array:
    def one(eta: Scalar, c: Scalar, N: Scalar, tau: Scalar) -> Scalar:
        known = c > 0
        c = jnp.where(known, c, 1)
        r = 1 / (1 + tau / c / c)
        single = jnp.where(eta > 1, (1 - 2 * eta) ** 2, 1 - 4 * eta * (1 - eta) * r)
        several = 1 - 2 * eta * N * c ** (2 - 2 / N) * r
        return jnp.where(known, jnp.maximum(jnp.where(N == 1, single, several), 0), 1)

    return jnp.vectorize(one)(eta, c, N, tau)
