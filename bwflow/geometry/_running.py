"""Barycenters of covariances that come batch by batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.geometry import _operands
from bwflow.geometry._barycenters import counted, listed
from bwflow.geometry._fixed_points import Problem, average, filled
from bwflow.geometry._operands import Covariance, Factor, Kind, as_root
from bwflow.linalg import after, full_precision, settled


class RunningBarycenter(eqx.Module):
    """A barycenter that takes its data in batches, each seen once: stochastic gradient descent.

    A batch of weight `b` moves the factor by `F <- F + b / (t + b) (G(F) - F)`, along the
    Bures-Wasserstein gradient of the batch by its share in the total `t + b` so far, the steps of
    Robbins and Monro. Of matrices that commute, whatever their batches, the result is their exact
    barycenter; of others the error falls as the root of the number of batches.

    Parameters
    ----------
    start
        Covariance to start at: of full rank, or a `Factor` whose columns are the rank of the mean.
    weight
        Weight that `start` has beside the data; 0 forgets it with the first batch.

    Attributes
    ----------
    factor
        `F`, `n x k`.
    weight
        What has been seen, in numbers of covariances if these have no weights.

    Raises
    ------
    ValueError
        If `start` is no single covariance or `weight` is negative.

    Notes
    -----
    Objects are pytrees and do not change: `update` returns a new one, also under `jit` and as the
    carry of `jax.lax.scan`. Cost: a polar factor for each covariance. Passing over the data again
    makes it more accurate; `barycenter` from `start=Factor(running.factor)` makes it exact.

    References
    ----------
    Chewi, Maunu, Rigollet, Stromme (2020), arXiv 2001.01700.
    Robbins, Monro (1951), A stochastic approximation method.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> running = bw.geometry.RunningBarycenter(jnp.eye(1))
    >>> for variance in (1.0, 9.0):
    ...     running = running.update(jnp.full((2, 1, 1), variance))
    >>> print(running.covariance, running.weight)
    [[4.]] 4.0
    """

    factor: Float[Array, "n k"]
    weight: Array

    def __init__(self, start: Covariance, weight: ArrayLike = 0.0):
        given = _operands.operand("start", start)
        if given.array.ndim != 2:
            raise ValueError(f"start must be one covariance; got shape {given.array.shape}.")
        self.factor = as_root(given.array, given.kind)
        dtype = self.factor.dtype
        self.weight = jnp.asarray(_checks.scalar("weight", weight, dtype, minimum=0.0))

    @property
    def covariance(self) -> Float[Array, "n n"]:
        """`F F^T`."""
        return Factor(self.factor).covariance

    def update(
        self,
        covariances: Covariance,
        *,
        weights: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> "RunningBarycenter":
        """The barycenter of what was seen and of a batch, `N x n x n` or a `Factor` of `N x n x m`.

        `weights` and `mask` are those of `barycenter`; weights are not divided by their sum.
        """
        given = listed(covariances, mask)
        if given.array.ndim != 3 or given.dim != len(self.factor):
            raise ValueError(
                f"covariances must be a list of covariances of size {len(self.factor)}; "
                f"got shape {given.array.shape}."
            )
        w = counted(weights, mask, given)
        factor, weight = settled(
            _moved(given.kind, self.factor, self.weight, given.array, jnp.asarray(w))
        )
        return eqx.tree_at(lambda x: (x.factor, x.weight), self, (factor, weight))


@eqx.filter_jit
@full_precision
def _moved(kind: Kind, F: Array, weight: Array, C: Array, w: Array) -> tuple[Array, Array]:
    C, w = after(C.astype(F.dtype), F), w.astype(F.dtype)
    batch = jnp.sum(w)
    L = jax.vmap(lambda A: as_root(A, kind))(filled(C, w > 0))
    problem = Problem("mean", F.shape[1], 0)
    G, _ = average(problem, jnp.zeros((), F.dtype), w / batch, L, F)
    return F + batch / (weight + batch) * (G - F), weight + batch
