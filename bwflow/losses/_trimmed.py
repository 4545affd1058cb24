"""The Bures-Wasserstein loss against a covariance some of whose entries are corrupted."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.bures import smoothed_bures
from bwflow.covariances import Target
from bwflow.linalg import full_precision, positive_power, symmetrize
from bwflow.projections import Sparsity


class TrimmedBuresWasserstein(eqx.Module):
    """`BW^2(W W^T + tau I, (Sigma - S)_+)` with `S = T(Sigma - W W^T - tau I)`, taken as constant.

    `Sigma` is a covariance plus a sparse symmetric matrix. The entries in which it differs most
    from `W W^T + tau I`, as many as `projections.double_threshold` lets pass, are put down to the
    latter and taken from the network instead; of the rest the positive semi-definite part is the
    target. `S` is the exact minimiser of `||W W^T + tau I + S - Sigma||` over its support, and to
    first order a Riemannian gradient step of length 1 of the distance in `S`.

    Parameters
    ----------
    covariance
        `Sigma`, `n x n`, symmetric; it need not be positive semi-definite.
    sparsity
        Bounds of the corruption, a `bwflow.projections.Sparsity`. Both of a pair of entries count.
    tau
        Smoothing, in units of the covariance.
    excess
        Factor on the bounds.

    Raises
    ------
    ValueError
        If the covariance is not symmetric or not finite, `sparsity` is none or has a count larger
        than the matrix, `tau` is negative, or `excess` below 1; in a call, if `W` has other rows.

    Notes
    -----
    Not convex, and no smooth function of `W`: the support of `S` jumps. With `optax.sgd(1/2)` a
    step of one layer is `W <- B P`, for a factor `B` of the target of the step: the target itself
    at full width, and with fewer columns a power iteration. Its conditioning does not count, and
    with `precondition.deep_precgd` the number of steps is about that of recovering `S`.

    Local: from zero, or from the eigenvectors of a covariance with large outliers, it may go
    elsewhere. `initial` gives a start. Eigenvalues of the truth below the size of the corruption
    that passes unseen are lost.

    Cost: an eigendecomposition of `n x n` and the loss of a factor of it.

    References
    ----------
    Double thresholding: Zhang, Wang and Gu (2018), arXiv 1702.06525. The combination is bwflow's.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> truth = jnp.ones((12, 12))
    >>> Sigma = truth.at[2, 5].add(9.0).at[5, 2].add(9.0)
    >>> loss = bw.losses.TrimmedBuresWasserstein(Sigma, bw.projections.Sparsity(2, 0.1, 0.1))
    >>> W = loss.initial(rank=1)
    >>> run = bw.gradient_descent(loss, (W,), optax.sgd(0.5), num_steps=40)
    >>> W = run.factors[0]
    >>> bool(abs(W @ W.T - truth).max() < 1e-3)
    True
    """

    covariance: Float[Array, "n n"]
    sparsity: Sparsity
    tau: ArrayLike = 0.0
    excess: ArrayLike = 1.2
    convex: ClassVar[bool] = False

    def __init__(
        self,
        covariance: ArrayLike,
        sparsity: Sparsity,
        tau: ArrayLike = 0.0,
        *,
        excess: ArrayLike = 1.2,
    ):
        Sigma = _checks.real_array("covariance", covariance, ndim=2)
        self.covariance = _checks.symmetric_matrices("covariance", Sigma)
        self.sparsity = sparsity
        _checks.scalar("tau", tau, self.covariance.dtype, minimum=0.0)
        self.tau, self.excess = tau, excess
        self._corruption(jnp.zeros_like(self.covariance))  # refuses bounds that do not fit

    def __call__(self, W: Array) -> Scalar:
        W = _checks.end_to_end("W", W, self.covariance.shape[0])
        return _value(_checks.traced_numbers(self, W.dtype), W)

    def corruption(self, W: Array) -> Float[Array, "n n"]:
        """`S = T(Sigma - W W^T - tau I)`."""
        W = _checks.end_to_end("W", W, self.covariance.shape[0])
        return self._corruption(self._smoothed(W))

    def initial(self, rank: int, *, num_steps: int = 5) -> Float[Array, "n r"]:
        """A start: the positive part of rank `rank` of `Sigma - S - tau I`, and `S`, in turn."""
        r = _checks.positive_int("rank", rank)
        if r > self.covariance.shape[0]:
            raise ValueError(f"rank must be at most {self.covariance.shape[0]}; got {r}.")
        return _initial(self, r, _checks.positive_int("num_steps", num_steps))

    @full_precision
    def _smoothed(self, W: Array) -> Array:
        tau = jnp.asarray(self.tau, W.dtype)
        return W @ W.T + tau * jnp.eye(W.shape[0], dtype=W.dtype)

    def _corruption(self, M: Array) -> Array:
        return self.sparsity.threshold(self.covariance - M, self.excess)


@eqx.filter_jit
def _value(loss: TrimmedBuresWasserstein, W: Array) -> Array:
    kept = lax.stop_gradient(loss.covariance - loss._corruption(loss._smoothed(W)))
    # Of values that are traced a target takes the positive part.
    return smoothed_bures(W, Target(kept, rank=kept.shape[0]), tau=loss.tau)


@eqx.filter_jit
@full_precision
def _initial(loss: TrimmedBuresWasserstein, rank: int, num_steps: int) -> Array:
    Sigma = loss.covariance
    tau = jnp.asarray(loss.tau, Sigma.dtype)

    def advance(_, W: Array) -> Array:
        kept = Sigma - loss._corruption(loss._smoothed(W))
        lam, Q = jnp.linalg.eigh(symmetrize(kept))
        return Q[:, ::-1][:, :rank] * positive_power(lam[::-1][:rank] - tau, 0.5)[None, :]

    zero = jnp.zeros((Sigma.shape[0], rank), Sigma.dtype)
    return lax.fori_loop(0, num_steps, advance, zero)
