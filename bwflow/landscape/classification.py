"""Which critical point the layers are at, if they are at one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from bwflow import _checks
from bwflow._types import Factors
from bwflow.covariances import Target
from bwflow.factors import end_to_end, widths
from bwflow.landscape._levels import coincidence, level_sizes
from bwflow.landscape.curvature import spectrum
from bwflow.linalg import full_precision
from bwflow.losses import BuresWasserstein, Frobenius


class KINDS(eqx.Enumeration):
    """What a point of the landscape can be."""

    minimum = "No matrix that the bottleneck allows has a lower loss."
    strict_saddle = "A critical point at which the loss bends down along some direction."
    non_strict_saddle = "A critical point above the minimum at which the Hessian has no descent."
    kink = "The unsmoothed loss has no gradient here, but a slope downwards."
    not_critical = "The gradient, or the distance to the nearest critical point, is not small."


# The codes of the kinds, in a fixed order.
KIND_NAMES = ("minimum", "strict_saddle", "non_strict_saddle", "kink", "not_critical")


class Classification(eqx.Module):
    """The nearest critical point, and what the layers are.

    Attributes
    ----------
    learnt
        Which of `target.eigenvalues` the nearest critical covariance `S_J` has.
    distance
        `||W W^T - S_J||`, Frobenius.
    gradient_norm
        Norm of the gradient in the layers.
    least_curvature
        Smallest eigenvalue of the Hessian in the layers.
    kind
        One of `KINDS`.
    """

    learnt: Bool[Array, "*batch m"]
    distance: Float[Array, "*batch"]
    gradient_norm: Float[Array, "*batch"]
    least_curvature: Float[Array, "*batch"]
    kind: KINDS

    @property
    def indices(self) -> tuple:
        """`J`, zero-based; of a batch, a tuple of these. Values are needed."""
        return _indices(np.asarray(self.learnt))

    @property
    def code(self) -> Int[Array, "*batch"]:
        """Index of `kind` in `KIND_NAMES`: what can be counted and stored."""
        codes = [jnp.asarray(self.kind == getattr(KINDS, name)) for name in KIND_NAMES]
        return jnp.argmax(jnp.stack(codes), axis=0).astype(jnp.int32)


def _indices(learnt: np.ndarray) -> tuple:
    if learnt.ndim > 1:
        return tuple(_indices(row) for row in learnt)
    return tuple(int(i) for i in np.flatnonzero(learnt))


def classify(
    loss: BuresWasserstein | Frobenius,
    factors: Factors,
    *,
    gradient_tolerance: ArrayLike | None = None,
    distance_tolerance: ArrayLike | None = None,
    curvature_tolerance: ArrayLike | None = None,
) -> Classification:
    """The critical covariance nearest to `W W^T`, and the kind of point that the layers are.

    In the Frobenius norm the nearest `S_J` is found exactly, since
    `||W W^T - S_J||^2 = ||W W^T||^2 - sum_{j in J} mu_j (2 c_j - mu_j)` for `mu = lambda - tau` and
    `c_j = omega_j^T W W^T omega_j`: an eigenvalue is learnt if `c_j > mu_j / 2`, and of these at
    most the `bottleneck` terms that are largest. Of a repeated eigenvalue `c_j` are the eigenvalues
    of `W W^T` within the eigenspace, so that every point of the Grassmannian is reached.

    Parameters
    ----------
    loss
        `BuresWasserstein(target, tau)` or `Frobenius(target, tau)`.
    factors
        The layers `(W_1, ..., W_N)`.
    gradient_tolerance, distance_tolerance, curvature_tolerance
        Largest gradient norm and distance of a critical point, and how negative the least curvature
        has to be for a saddle to be strict. Relative to the units `l / lambda_1^{1/(2N)}`,
        `lambda_1` and `l / lambda_1^{1/N}`, where `l` is `lambda_1` for the Bures-Wasserstein loss
        and `lambda_1^2` for the Frobenius loss. By default the cube root of the machine epsilon.

    Returns
    -------
    Classification
        `learnt`, `distance`, `gradient_norm`, `least_curvature` and `kind`; from these `indices`
        and `code`.

    Raises
    ------
    ValueError
        If the factors are no chain of matrices, the loss is none of these, or a tolerance is not a
        finite number of at least 0.

    Notes
    -----
    Proved: for `tau > 0`, and for the Frobenius loss, the `S_J` are all critical covariances, so a
    point with a small gradient that is far from all of them is in a flat region, not at another
    kind of critical point. A minimum is recognised by `J`, the largest eigenvalues and as many as
    can be learnt, not by its curvature. Saddles of one layer are strict for `tau > 0`; of balanced
    layers those that learn the largest eigenvalues, but too few, are not. Tiny layers at depth 2 or
    more have tiny gradients and are close to `S = 0`: they count as that saddle.

    Cost: all eigenvalues of the Hessian. Map it over many runs with `jax.vmap` or, to bound the
    memory, `jax.lax.map(..., batch_size=...)`; the factors may be traced. Repeated eigenvalues are
    told by values, so those of a traced target count as simple.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027, for the critical points; curvatures derived here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> found = bw.landscape.classify(loss, (jnp.array([[0.0], [1.0]]),))
    >>> found.indices, found.kind == bw.landscape.KINDS.strict_saddle
    ((1,), Array(True, dtype=bool))
    """
    _checks.instance(
        "loss",
        loss,
        (BuresWasserstein, Frobenius),
        "bwflow.losses.BuresWasserstein(target, tau) or bwflow.losses.Frobenius(target, tau)",
    )
    target: Any = loss.target
    _checks.instance("loss.target", target, Target, "a bwflow.Target")
    widths(factors)
    layers = tuple(
        _checks.real_array(f"factors[{j}]", W, finite=False) for j, W in enumerate(factors)
    )
    dtype = layers[0].dtype
    default = float(jnp.finfo(dtype).eps) ** (1 / 3)
    given = {
        "gradient_tolerance": gradient_tolerance,
        "distance_tolerance": distance_tolerance,
        "curvature_tolerance": curvature_tolerance,
    }
    tolerances = tuple(
        jnp.asarray(_checks.scalar(name, default if x is None else x, dtype, minimum=0.0), dtype)
        for name, x in given.items()
    )
    lam = target.eigenvalues
    sizes = level_sizes(target) if _checks.is_concrete(lam) else (1,) * lam.size
    return _classify(_checks.traced_numbers(loss, dtype), layers, tolerances, sizes)


@eqx.filter_jit
@full_precision
def _classify(
    loss: Any, factors: Factors, tolerances: tuple[Array, ...], sizes: tuple[int, ...]
) -> Classification:
    target, W, bottleneck = loss.target, end_to_end(factors), min(widths(factors))
    tau = jnp.asarray(loss.tau, W.dtype)
    lam, Omega = target.eigenvalues, target.eigenvectors
    above = lam > jnp.where(tau > 0, tau + coincidence(target) * lam[0], 0)
    learnt, K = _nearest(Omega.T @ W, jnp.where(above, lam - tau, 0), sizes, bottleneck)
    distance = jnp.linalg.norm(W @ W.T - Omega @ K @ Omega.T)
    gradient = optax.tree.norm(jax.grad(lambda layers: loss(end_to_end(layers)))(factors))
    curvature = spectrum(loss, factors, "factors")[0]

    unit, N = lam[0], len(factors)
    size = unit if isinstance(loss, BuresWasserstein) else unit**2
    small_gradient, small_distance, small_curvature = tolerances
    critical = (gradient <= small_gradient * size / unit ** (1 / (2 * N))) & (
        distance <= small_distance * unit
    )
    strict = curvature < -small_curvature * size / unit ** (1 / N)
    full = jnp.sum(learnt) == min(bottleneck, lam.size)
    kink = (tau <= 0) & ~full & isinstance(loss, BuresWasserstein)
    kind = KINDS.where(strict, KINDS.strict_saddle, KINDS.non_strict_saddle)
    kind = KINDS.where(_least(learnt, above, sizes, bottleneck), KINDS.minimum, kind)
    kind = KINDS.where(kink, KINDS.kink, kind)
    kind = KINDS.where(critical, kind, KINDS.not_critical)
    return Classification(learnt, distance, gradient, curvature, kind)


def _nearest(X: Array, mu: Array, sizes: tuple[int, ...], bottleneck: int) -> tuple[Array, Array]:
    """Which eigenvalues the nearest `S_J` has, and `S_J` in the target's basis, as `X X^T` is."""
    C = X @ X.T
    seen, basis = jnp.diag(C), jnp.eye(mu.size, dtype=C.dtype)
    for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        if size > 1:
            block = slice(int(start), int(start) + size)
            values, vectors = jnp.linalg.eigh(C[block, block])
            seen = seen.at[block].set(values[::-1])
            basis = basis.at[block, block].set(vectors[:, ::-1])
    gain = mu * (2 * seen - mu)
    place = jnp.argsort(jnp.argsort(-gain))
    learnt = (gain > 0) & (place < bottleneck)
    return learnt, (basis * jnp.where(learnt, mu, 0)[None, :]) @ basis.T


def _least(learnt: Array, above: Array, sizes: tuple[int, ...], bottleneck: int) -> Array:
    """Whether the largest eigenvalues are learnt, and as many as can be."""
    level = jnp.asarray(np.repeat(np.arange(len(sizes)), sizes))
    left = above & ~learnt
    lowest = jnp.max(jnp.where(learnt, level, -1))
    highest = jnp.min(jnp.where(left, level, len(sizes)))
    return (lowest <= highest) & ((jnp.sum(learnt) == bottleneck) | ~jnp.any(left))
