"""Which assumptions of the bounds a start meets, and what it costs if it does not."""

from functools import partial
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from bwflow import _checks
from bwflow._minima import Discrepancy
from bwflow._types import Factors
from bwflow.covariances import Target
from bwflow.factors import end_to_end, imbalance, widths
from bwflow.linalg import full_precision
from bwflow.losses import BuresWasserstein, Frobenius
from bwflow.theory._arguments import dtype_of
from bwflow.theory.bounds import saddle_value
from bwflow.theory.margins import margin, published_margin

# What holds, and what is lost where it does not.
_SENTENCES = {
    "balanced": (
        "The layers are balanced.",
        "The layers are not balanced: with three or more of them the rates are observed, not "
        "proved.",
    ),
    "wide": (
        "Every width is at least the size of the target.",
        "A width is below the size of the target: no rate to 0. The gap ends at `late_rate`.",
    ),
    "positive_definite": (
        "The target is positive definite.",
        "The target is singular: the margin at full rank and all rates are 0.",
    ),
    "smoothed": (
        "The loss is smoothed.",
        "There is no smoothing: the published rate is 0; the sharp one needs none.",
    ),
    "learnable": (
        "Every eigenvalue that the bottleneck allows for is above the smoothing.",
        "The smoothing is not below every eigenvalue that the bottleneck allows for: the margin is "
        "0, and so is the late rate of two or more layers.",
    ),
    "near": (
        "The start is near enough for a positive margin.",
        "The start is too far from the target: the margin is 0, and so are the rates.",
    ),
    "below_saddle": (
        "The loss is below that of every saddle: the flow ends at a minimiser.",
        "The loss is not below that of every saddle: that the flow ends at a minimiser is not "
        "proved.",
    ),
}
_UNFOUNDED = "The published margin is positive nevertheless: its rate is no bound."


class Assumptions(eqx.Module):
    """What a start has of what the bounds assume.

    Attributes
    ----------
    balanced
        Imbalances are at most `eps^{1/4}` times the square of the largest entry.
    wide
        Every width is at least the size `n` of the target.
    positive_definite
        The target has rank `n`.
    smoothed
        `tau > 0`.
    learnable
        `tau < lambda_k`, with `k` the bottleneck.
    near
        `margin(target, L0, tau=tau, rank=k)` is positive.
    published_near
        `published_margin(target, L0, rank=k)` is; for the Frobenius loss there is none: false.
    below_saddle
        `L0 < saddle_value(target, k, tau=tau)`.
    initial_loss, margin
        `L0`, and the margin of `near`.
    """

    balanced: Bool[Array, "*batch"]
    wide: Bool[Array, "*batch"]
    positive_definite: Bool[Array, "*batch"]
    smoothed: Bool[Array, "*batch"]
    learnable: Bool[Array, "*batch"]
    near: Bool[Array, "*batch"]
    published_near: Bool[Array, "*batch"]
    below_saddle: Bool[Array, "*batch"]
    initial_loss: Float[Array, "*batch"]
    margin: Float[Array, "*batch"]

    def describe(self) -> str:
        """Lines on what holds, and on what fails and which bound that costs."""
        if np.ndim(self.near) > 0 or not _checks.is_concrete(self.near):
            raise ValueError("describe() is for one start of known values; index a batch first.")
        lines = []
        for name, sentences in _SENTENCES.items():
            held = bool(getattr(self, name))
            lines.append(f"[{'x' if held else ' '}] {sentences[0 if held else 1]}")
            if name == "near" and not held and bool(self.published_near):
                lines[-1] += f" {_UNFOUNDED}"
        return "\n".join(lines)


def check_assumptions(
    factors: Factors,
    target: Target,
    *,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
) -> Assumptions:
    """Which assumptions of the bounds a start meets.

    Parameters
    ----------
    factors
        The layers `(W_1, ..., W_N)`; they may be traced or batched by `jax.vmap`.
    target
        Covariance `Sigma0`.
    tau
        Smoothing, in units of the covariance.
    loss
        `"bures_wasserstein"` or `"frobenius"`.

    Returns
    -------
    Assumptions
        Booleans; `describe()` says what each costs.

    Raises
    ------
    ValueError
        If the factors are no chain of matrices that fits the target, `tau` is negative or not
        finite, or `loss` neither.

    Notes
    -----
    Rates to 0 are proved for `wide` and `near`, with `balanced` beyond two layers, convergence to a
    minimiser for `smoothed` and `below_saddle`. Cost: one evaluation of the loss.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> found = theory.check_assumptions((jnp.diag(jnp.array([1.9, 0.9])),), target)
    >>> bool(found.near), print(found.describe().splitlines()[3])
    [ ] There is no smoothing: the published rate is 0; the sharp one needs none.
    (True, None)
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    _checks.choice("loss", loss, get_args(Discrepancy))
    k = min(widths(factors))
    layers = tuple(_checks.real_array(f"factors[{j}]", W) for j, W in enumerate(factors))
    check_rows("factors", layers, target)
    tau = _checks.scalar("tau", tau, dtype_of(target), minimum=0.0)
    return _assumptions(layers, target, tau, k, loss)


@partial(jax.jit, static_argnums=(3, 4))
@full_precision
def _assumptions(
    layers: Factors, target: Target, tau: Array, k: int, loss: Discrepancy
) -> Assumptions:
    objective = {"bures_wasserstein": BuresWasserstein, "frobenius": Frobenius}[loss]
    L0 = objective(target, tau)(end_to_end(layers))
    c = margin(target, L0, tau=tau, rank=k, loss=loss)
    published = published_margin(target, L0, rank=k) > 0
    learnable = target.eigenvalues[k - 1] > tau if k <= target.rank else jnp.zeros((), bool)
    return Assumptions(
        balanced=is_balanced(layers),
        wide=jnp.asarray(k >= target.dim),
        positive_definite=jnp.asarray(target.rank == target.dim),
        smoothed=tau > 0,
        learnable=learnable,
        near=c > 0,
        published_near=jnp.zeros((), bool) if loss == "frobenius" else published,
        below_saddle=saddle_value(target, k, tau=tau, loss=loss) > L0,
        initial_loss=L0,
        margin=c,
    )


def is_balanced(layers: Factors) -> Bool[Array, ""]:
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(W)) for W in layers]))
    found = [jnp.max(jnp.abs(D)) for D in imbalance(layers)]
    found = jnp.max(jnp.stack(found)) if found else jnp.zeros_like(largest)
    return found <= jnp.finfo(largest.dtype).eps ** 0.25 * largest**2


def check_rows(name: str, layers: Factors, target: Target) -> None:
    if layers[-1].shape[0] != target.dim:
        raise ValueError(
            f"{name} must end in {target.dim} rows, as the target has; got {layers[-1].shape[0]}."
        )
