"""Losses that compare `W W^T + tau I` with a target covariance."""

from typing import Any, ClassVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike

from bwflow import _checks, _minima
from bwflow._names import Method
from bwflow._types import Scalar
from bwflow.bures import smoothed_bures
from bwflow.covariances import Spiked, Target
from bwflow.linalg import full_precision, positive_power, range_mask


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

    target: Any
    tau: ArrayLike = 0.0
    convex: ClassVar[bool] = True  # in W W^T
    _targets: ClassVar[tuple[type, ...]] = (Target,)

    def __check_init__(self):
        _checks.instance("target", self.target, self._targets, "a bwflow.Target")
        _checks.scalar("tau", self.tau, jax.tree.leaves(self.target)[0].dtype, minimum=0.0)


class BuresWasserstein(_Smoothed):
    """`smoothed_bures` bound to a target, a smoothing and a method.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> print(loss(jnp.eye(2)).round(5), loss.minimum(rank=1).round(5))
    1.0 1.0
    """

    target: Target | Spiked
    method: Method = eqx.field(default="auto", static=True)
    _targets: ClassVar[tuple[type, ...]] = (Target, Spiked)

    def __check_init__(self):
        _checks.choice("method", self.method, get_args(Method))

    def __call__(self, W: Array) -> Scalar:
        return smoothed_bures(W, self.target, tau=self.tau, method=self.method)

    def covariance_gradient(self, W: Array) -> lx.AbstractLinearOperator:
        """Gradient in `W W^T`: `G = I - B (B^T S_tau B)^{-1/2} B^T`, `S_tau = W W^T + tau I`.

        With the thin SVD `Y = U diag(s) V^T` of `Y = [B^T W, sqrt(tau) R^T]` it is `I - C C^T`,
        `C = B U diag(s)^{-1/2}`, so small eigenvalues of the power are not lost to rounding. The
        gradient in `W` is `2 G W`.

        Raises
        ------
        ValueError
            If the target is no `Target`; if `tau` is 0 and `W` has fewer columns than the target
            has rank: the loss has no gradient in `W W^T` there. Where the rank is lacking in the
            values alone, or `tau` is traced, the entries are NaN.

        Notes
        -----
        Cost: one SVD of `m x (p + m)`. A target of lower rank than `n` is never `n x n`.

        There is no `error_scale`, by which PrecGD damps a preconditioner of `W^T W`: this loss is
        as well conditioned in `W` as it can be (its curvature is at most 2), and that would spoil
        it. There is no `smoothness`: the gradient in `W W^T` is not Lipschitz at `tau = 0`.
        """
        target = self._plain_target()
        W = _checks.end_to_end("W", W, target.dim)
        m, p = target.rank, W.shape[1]
        if p < m and _checks.is_concrete(self.tau) and not np.any(self.tau):
            raise ValueError(
                f"tau must be positive, or W have at least {m} columns, as the target has rank "
                f"{m}: the loss has no gradient in W W^T at tau = 0 below that rank; "
                f"got tau = 0 and {p} columns."
            )
        C = _transport_factor(W, target, jnp.asarray(self.tau, W.dtype))
        if m == W.shape[0]:
            with full_precision:
                return _symmetric(jnp.eye(m, dtype=W.dtype) - C @ C.T)

        @full_precision
        def product(v: Array) -> Array:
            return v - C @ (C.T @ v)

        structure = jax.ShapeDtypeStruct((W.shape[0],), W.dtype)
        return lx.FunctionLinearOperator(product, structure, lx.symmetric_tag)

    def gradient_scale(self, W: Array) -> Scalar:
        """Size of the terms whose difference `covariance_gradient` is: `1 + ||T||`."""
        C = _transport_factor(W, self._plain_target(), jnp.asarray(self.tau, W.dtype))
        return 1 + jnp.sum(C**2)

    def minimum(self, rank: int) -> Scalar:
        """Least loss over matrices of rank at most `rank`."""
        return _minima.minimum(self.target, rank, tau=self.tau)

    def _plain_target(self) -> Target:
        """The target, refused if it is `Spiked`: there is no factor of it that is not `n x n`."""
        target: Any = self.target
        _checks.instance("target", target, Target, "a bwflow.Target")
        return target


@full_precision
def _transport_factor(W: Array, target: Target, tau: Array) -> Array:
    """`C` with `C C^T = B (B^T S_tau B)^{-1/2} B^T`; NaN where that power is infinite."""
    # In the target's own basis: B^T Q is diagonal for the orthonormal Q of its range.
    smoothing = jnp.sqrt(tau) * jnp.diag(jnp.sqrt(target.eigenvalues))
    Y = jnp.concatenate([target.factor.T @ W, smoothing], axis=1)
    U, s, _ = jnp.linalg.svd(Y, full_matrices=False)
    s = jnp.where(jnp.all(range_mask(s, max(Y.shape))), s, jnp.nan)
    return (target.factor @ U) / jnp.sqrt(s)[None, :]


def _symmetric(G: Array) -> lx.AbstractLinearOperator:
    return lx.MatrixLinearOperator(G, lx.symmetric_tag)


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

    target: Target
    smoothness: ClassVar[float] = 2.0  # Lipschitz constant of the gradient in W W^T

    def __call__(self, W: Array) -> Scalar:
        return frobenius(W, self.target, tau=self.tau)

    @full_precision
    def covariance_gradient(self, W: Array) -> lx.AbstractLinearOperator:
        """Gradient in `W W^T`: `G = 2 (W W^T + tau I - Sigma0)`; the one in `W` is `2 G W`."""
        W = _checks.end_to_end("W", W, self.target.dim)
        eye = jnp.eye(W.shape[0], dtype=W.dtype)
        tau = jnp.asarray(self.tau, W.dtype)
        return _symmetric(2 * (W @ W.T - self.target.covariance + tau * eye))

    def gradient_scale(self, W: Array) -> Scalar:
        """Size of the terms whose difference `covariance_gradient` is."""
        tau = jnp.asarray(self.tau, W.dtype)
        return 2 * (jnp.sum(W**2) + jnp.sum(self.target.eigenvalues) + tau)

    def error_scale(self, W: Array) -> Scalar:
        """`||W W^T + tau I - Sigma0||`, the error itself where `tau` is below the spectrum."""
        return positive_power(self(W), 0.5)

    def minimum(self, rank: int) -> Scalar:
        """Least loss over matrices of rank at most `rank`."""
        return _minima.minimum(self.target, rank, tau=self.tau, loss="frobenius")
