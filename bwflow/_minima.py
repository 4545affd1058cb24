"""Critical values and minimisers of the smoothed losses over matrices of bounded rank."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.covariances import Spiked, Target
from bwflow.linalg import full_precision

Discrepancy: TypeAlias = Literal["bures_wasserstein", "frobenius"]


def minimizing_eigenvalues(
    target: Target, rank: int, *, tau: ArrayLike = 0.0
) -> Float[Array, " m"]:
    """Eigenvalues `(lambda_i - tau)_+` for `i <= rank`, else 0, of the minimiser.

    Raises
    ------
    ValueError
        If `target` is no `Target`, `rank` no positive integer, or `tau` negative.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 2.0, 1.0])))
    >>> bw.landscape.minimizing_eigenvalues(target, 2, tau=0.5).tolist()
    [3.5, 1.5, 0.0]
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    rank = _checks.positive_int("rank", rank)
    lam = target.eigenvalues
    tau = _checks.scalar("tau", tau, lam.dtype, minimum=0.0)
    return jnp.where(jnp.arange(lam.size) < rank, jnp.maximum(lam - tau, 0.0), 0.0)


@full_precision
def minimizer(target: Target, rank: int, *, tau: ArrayLike = 0.0) -> Float[Array, "n n"]:
    """Covariance `S* = sum_{i <= rank} (lambda_i - tau)_+ omega_i omega_i^T` of least loss.

    The same for the Bures-Wasserstein and the Frobenius loss. It is unique if
    `lambda_rank > lambda_{rank+1}` or `lambda_rank <= tau`.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    rank
        Bound on the rank of `W W^T`: the bottleneck of a network.
    tau
        Smoothing, in units of the covariance.

    Raises
    ------
    ValueError
        If `rank` is not a positive integer or `tau` not a finite number of at least 0.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027; the analogue of the Eckart-Young-Mirsky theorem.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> S = bw.landscape.minimizer(target, 1, tau=0.5)
    >>> bool(jnp.allclose(S, jnp.diag(jnp.array([3.5, 0.0]))))
    True
    """
    values = minimizing_eigenvalues(target, rank, tau=tau)
    return (target.eigenvectors * values[None, :]) @ target.eigenvectors.T


def minimum(
    target: Target | Spiked,
    rank: int,
    *,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
) -> Scalar:
    """Least loss over matrices of rank at most `rank`.

    With `J` the indices `i <= rank` of eigenvalues above `tau`, it is the sum over `i` not in `J`
    of `(sqrt(lambda_i) - sqrt(tau))^2` for the Bures-Wasserstein loss, and of
    `(lambda_i - tau)^2` for the Frobenius loss; all `n` eigenvalues count, zeros included.

    Parameters
    ----------
    target
        Covariance `Sigma0`, a `bwflow.Target` or `bwflow.covariances.Spiked`.
    rank
        Bound on the rank of `W W^T`: the bottleneck of a network.
    tau
        Smoothing, in units of the covariance.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Raises
    ------
    ValueError
        If `rank` is not a positive integer, `tau` not a finite number of at least 0 or `loss`
        neither of the two.

    Notes
    -----
    The minimum is positive even for a full rank if `tau` exceeds an eigenvalue: no network can
    lower a variance below the smoothing.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> print(bw.landscape.minimum(target, 1, tau=0.25).round(5))
    0.25
    """
    _checks.instance("target", target, (Target, Spiked), "a bwflow.Target")
    rank = _checks.positive_int("rank", rank)
    _checks.choice("loss", loss, get_args(Discrepancy))
    tau = _checks.scalar("tau", tau, jax.tree.leaves(target)[0].dtype, minimum=0.0)
    if isinstance(target, Spiked):
        lam, rest = target.spikes.eigenvalues + target.delta, target.delta
    else:
        lam, rest = target.eigenvalues, jnp.zeros((), target.eigenvalues.dtype)
    learnt = (jnp.arange(lam.size) < rank) & (lam > tau)
    # Of the equal eigenvalues that follow, those within the rank are learnt too.
    among = min(max(rank - lam.size, 0), target.dim - lam.size)
    left = target.dim - lam.size - jnp.where(rest > tau, among, 0).astype(lam.dtype)
    first = jnp.where(learnt, 0.0, _remainder(lam, tau, learnt, loss))
    return jnp.sum(first) + left * _remainder(rest, tau, left == 0, loss)


def _remainder(lam: Array, tau: ArrayLike, learnt: Array, loss: Discrepancy) -> Array:
    """What an eigenvalue that is not learnt adds to the loss."""
    if loss == "frobenius":
        return (lam - tau) ** 2
    # Roots are taken only where they count: their slope is infinite at zero.
    root = jnp.sqrt(jnp.where(lam > 0, lam, 1.0))
    smoothing = jnp.sqrt(jnp.where(learnt | (lam <= 0), 1.0, tau))
    return jnp.where(lam > 0, (root - smoothing) ** 2, tau)
