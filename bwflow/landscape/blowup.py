"""How curvature grows without bound as the rank of the end-to-end matrix is about to drop."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.covariances import Target
from bwflow.landscape.curvature import Space, spectrum
from bwflow.linalg import full_precision
from bwflow.losses import BuresWasserstein


class Slopes(NamedTuple):
    """Logarithmic slopes of the least and the largest eigenvalue, between successive values."""

    least: Float[Array, " v-1"]
    largest: Float[Array, " v-1"]


class Blowup(NamedTuple):
    """Extreme eigenvalues of the Hessian against what was made small."""

    values: Float[Array, " v"]
    least: Float[Array, " v"]
    largest: Float[Array, " v"]

    @property
    def slopes(self) -> Slopes:
        """Slopes of `log |least|` and `log |largest|` against `log values`."""
        step = jnp.diff(jnp.log(self.values))
        return Slopes(*(jnp.diff(jnp.log(jnp.abs(x))) / step for x in (self.least, self.largest)))


def hessian_blowup(
    target: Target,
    W: ArrayLike,
    values: ArrayLike | Sequence[float],
    *,
    along: Literal["tau", "singular_values"] = "tau",
    count: int = 1,
    tau: ArrayLike = 0.0,
    space: Space = "factors",
) -> Blowup:
    """Extreme eigenvalues of the Bures-Wasserstein Hessian as a rank is about to drop.

    With `U` a basis of the complement of the range of `W`, `A = U^T Sigma0^{-1} U`, and `e` the
    least eigenvalue of `W W^T + tau I`, of eigenvector `u`,

        over covariances    largest ~ (1/2) (u^T Sigma0^{-1} u)^{-1/2} e^{-3/2}
        in W, W singular    least ~ -2 (lambda_max(A^{-1}) / tau)^{1/2}
        in W, tau = 0       least ~ -1/x with the two least singular values at x, for square
                            `B^T W`; with the least one at x, for fewer columns than `m`

    and bounded for square `B^T W` with one small singular value, whose gradient jumps instead.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    W
        End-to-end matrix, `n x p`.
    values
        What the smoothing, or the least singular values, are set to; positive.
    along
        `"tau"`: the smoothing takes each of the values, at `W` as it is. `"singular_values"`: the
        `count` least singular values of `W` do, all at once, under the smoothing `tau`.
    count, tau
        As said; used along singular values only.
    space
        `"factors"`: `W` itself; `"covariance"`: symmetric matrices `S = W W^T`.

    Returns
    -------
    Blowup
        `values`, `least`, `largest`, and `slopes` on logarithmic scales.

    Raises
    ------
    ValueError
        If an argument is none of these.

    Notes
    -----
    Cost: one dense Hessian per value. In `W` no eigenvalue exceeds 2, which is proved: curvature
    blows up downwards only, so flows near matrices of low rank are repelled, not stiff. The
    asymptotic forms are derived for the smoothed ones and measured for those at `tau = 0`.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027, on the blow-up; rates derived and measured here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> W = jnp.array([[2.0], [0.0]])
    >>> taus = jnp.array([1e-3, 1e-4])
    >>> run = bw.landscape.hessian_blowup(target, W, taus, space="covariance")
    >>> run.slopes.largest.round(2).tolist()
    [-1.5]
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    W = _checks.end_to_end("W", W, target.dim)
    values = _checks.numbers("values", values, W.dtype, ndim=1, positive=True)
    tau = _checks.scalar("tau", tau, W.dtype, minimum=0.0)
    _checks.choice("along", along, ("tau", "singular_values"))
    _checks.choice("space", space, get_args(Space))
    count = _checks.positive_int("count", count)
    if count > min(W.shape):
        raise ValueError(f"count must be at most {min(W.shape)} for this W; got {count}.")
    x = jnp.asarray(values, W.dtype)
    if along == "tau":
        points, taus = jnp.broadcast_to(W, (*x.shape, *W.shape)), x
    else:
        points, taus = _lowered(W, x, count), jnp.full_like(x, jnp.asarray(tau, W.dtype))
    return Blowup(x, *_extremes(target, points, taus, space))


@partial(jax.jit, static_argnums=2)
@full_precision
def _lowered(W: Array, values: Array, count: int) -> Float[Array, "v n p"]:
    """`W` with each of the values in place of its least singular values."""
    U, s, Vt = jnp.linalg.svd(W, full_matrices=False)
    small = jnp.arange(s.size) >= s.size - count
    return (U[None] * jnp.where(small[None, :], values[:, None], s[None, :])[:, None, :]) @ Vt


@eqx.filter_jit
@full_precision
def _extremes(target: Target, points: Array, taus: Array, space: Space) -> tuple[Array, Array]:
    def extremes(at: tuple[Array, Array]) -> tuple[Array, Array]:
        W, tau = at
        found = spectrum(BuresWasserstein(target, tau), (W,), space)
        return found[0], found[-1]

    return lax.map(extremes, (points, taus))
