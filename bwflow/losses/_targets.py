"""Losses that compare `W W^T + tau I` with a target covariance."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from bwflow import _checks, _minima
from bwflow._types import Scalar
from bwflow.bures import smoothed_bures
from bwflow.covariances import Target
from bwflow.linalg import full_precision


def frobenius(W: ArrayLike, target: Target, *, tau: ArrayLike = 0.0) -> Scalar:
    """Squared Frobenius distance `||W W^T + tau I - Sigma0||^2`.

    Parameters
    ----------
    W
        End-to-end matrix, `n x p`.
    target
        Covariance `Sigma0`, `n x n`.
    tau
        Smoothing, in units of the covariance; not negative.

    Returns
    -------
    Array
        The loss, in squared units of the covariance. Its gradient is
        `4 (W W^T + tau I - Sigma0) W`.

    Raises
    ------
    ValueError
        If `W` is not a real floating matrix with as many rows as the target, or if `tau` is not a
        finite number of at least 0.

    Notes
    -----
    Cost: products of size `n^2 p` and `n^2 m`; forms `n x n` matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(bw.frobenius(jnp.eye(2), target).round(5))
    9.0
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    W = _checks.end_to_end("W", W, target.dim)
    return _frobenius(W, target, _checks.scalar("tau", tau, W.dtype, minimum=0.0))


@jax.jit
@full_precision
def _frobenius(W: Array, target: Target, tau: Array) -> Array:
    residual = W @ W.T - target.factor @ target.factor.T
    return jnp.sum((residual + tau * jnp.eye(W.shape[0], dtype=W.dtype)) ** 2)


class _Smoothed(eqx.Module):
    """What the losses against a target have in common."""

    target: Target
    tau: ArrayLike = 0.0
    convex: ClassVar[bool] = True  # in W W^T

    def __check_init__(self):
        _checks.instance("target", self.target, Target, "a bwflow.Target")
        _checks.scalar("tau", self.tau, self.target.factor.dtype, minimum=0.0)


class BuresWasserstein(_Smoothed):
    """`smoothed_bures` bound to a target and a smoothing.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> print(loss(jnp.eye(2)).round(5), loss.minimum(rank=1).round(5))
    1.0 1.0
    """

    def __call__(self, W: Array) -> Scalar:
        return smoothed_bures(W, self.target, tau=self.tau)

    def minimum(self, rank: int) -> Scalar:
        """Least loss over matrices of rank at most `rank`."""
        return _minima.minimum(self.target, rank, tau=self.tau)


class Frobenius(_Smoothed):
    """`frobenius` bound to a target and a smoothing.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))))
    >>> print(loss(jnp.eye(2)).round(5), loss.minimum(rank=1).round(5))
    9.0 1.0
    """

    def __call__(self, W: Array) -> Scalar:
        return frobenius(W, self.target, tau=self.tau)

    def minimum(self, rank: int) -> Scalar:
        """Least loss over matrices of rank at most `rank`."""
        return _minima.minimum(self.target, rank, tau=self.tau, loss="frobenius")
