"""Runs held against the bounds."""

from functools import partial
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from bwflow import _checks
from bwflow._minima import Discrepancy
from bwflow._trajectory import RESULTS, Trajectory
from bwflow.bures import smoothed_bures
from bwflow.covariances import Target
from bwflow.factors import end_to_end, widths
from bwflow.linalg import full_precision
from bwflow.losses import frobenius
from bwflow.theory._arguments import dtype_of, root
from bwflow.theory.assumptions import check_rows, is_balanced
from bwflow.theory.bounds import pl_constant, published_rate
from bwflow.theory.margins import margin
from bwflow.theory.steps import descent_factor


class Comparison(eqx.Module):
    """A run beside its bounds; `print` says of each what `to_dataset` holds.

    Attributes
    ----------
    times
        Save times, or step counts.
    loss
        The recorded losses.
    bounds
        One row for each of `names`.
    valid
        Whether the bound is proved for this run.
    holds
        Whether the run, which has to have succeeded, respects it at every save: `L^{1/2}`, a
        distance, exceeds the root of the bound by at most `eps^{1/2} (L0^{1/2} + |Sigma0|)`, with
        `|Sigma0|` the distance of the target to 0. Solvers need tolerances of that size.
    tightest
        At each save the index of the least bound that is valid; -1 if none is.
    names
        Names of the bounds.
    clock
        `"time"` or `"step"`.
    """

    times: Array
    loss: Float[Array, "*batch save"]
    bounds: Float[Array, "*batch bound save"]
    valid: Bool[Array, "*batch bound"]
    holds: Bool[Array, "*batch bound"]
    tightest: Int[Array, "*batch save"]
    names: tuple[str, ...] = eqx.field(static=True)
    clock: Literal["time", "step"] = eqx.field(static=True)

    @property
    def informative(self) -> Bool[Array, "*batch bound"]:
        """Whether the bound comes below the first loss; a rate of 0 is proved of every run."""
        return jnp.any(self.bounds < self.loss[..., None, :1], axis=-1)

    def __str__(self) -> str:
        if not _checks.is_concrete(self.bounds):
            return repr(self)
        verdicts = {"proved": self.valid, "informative": self.informative, "holds": self.holds}
        rows = [["bound", *verdicts]]
        for i, name in enumerate(self.names):
            rows.append([name, *(_counted(x[..., i]) for x in verdicts.values())])
        lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, lengths)) for row in rows)
        return "\n".join(map(str.rstrip, lines))

    def to_dataset(self) -> Any:
        """As an `xarray.Dataset` with dimensions `bound` and `save`, after `run` for a batch."""
        import xarray as xr

        batch = tuple(f"run_{i}" for i in range(self.loss.ndim - 1))
        batch = ("run",) if len(batch) == 1 else batch
        dims = {
            "loss": (*batch, "save"),
            "bounds": (*batch, "bound", "save"),
            "valid": (*batch, "bound"),
            "informative": (*batch, "bound"),
            "holds": (*batch, "bound"),
            "tightest": (*batch, "save"),
        }
        data = {name: (axes, np.asarray(getattr(self, name))) for name, axes in dims.items()}
        times = np.asarray(self.times)
        axes = dims["loss"] if times.ndim == self.loss.ndim else ("save",)
        return xr.Dataset(data, {"bound": list(self.names), self.clock: (axes, times)})


def _counted(verdicts: Array) -> str:
    """Of one run yes or no, of a batch how many."""
    if verdicts.ndim == 0:
        return "yes" if verdicts else "no"
    return f"{int(jnp.sum(verdicts))} of {verdicts.size}"


def compare(
    trajectory: Trajectory,
    target: Target,
    tau: ArrayLike,
    *,
    loss: Discrepancy = "bures_wasserstein",
    step_size: ArrayLike | None = None,
) -> Comparison:
    """Hold the losses of a run against what is known from its start.

    Bounds are `L0 e^{-rate t}` for a flow, with these rates, and `L0 factor^k` for a descent.

    - `"published"`: `published_rate` as it stands. Not a bound with smoothing: `valid` is true only
      where a proved rate is at least as large.
    - `"published, corrected margin"`: with `margin`.
    - `"sharp"`: `sharp_rate`.
    - `"along the run"`, if singular values were recorded: `pl_constant` between one save and the
      next at a lower bound of `sigma_n` there, so that it is a bound, not a quadrature. With
      `a = sigma_n^{1/N}`, for `D` the fall of the loss in a time `d`, it is the larger one of
      `(a_i + a_{i+1} - (d D / N)^{1/2}) / 2` to the power of `N` and the margin at `L_i`.
    - `"descent factor"`, the only one for a descent: `descent_factor` at the margin.

    The Frobenius loss has the last two of a flow, and none for a descent.

    Parameters
    ----------
    trajectory
        A run with a probe `"loss"`, in layers; batches by `jax.vmap` of this function.
    target, tau
        Covariance and smoothing of the loss.
    loss
        `"bures_wasserstein"` or `"frobenius"`.
    step_size
        Of a descent by `optax.sgd`; left out for a flow.

    Returns
    -------
    Comparison
        `times`, `loss`, `bounds`, `names`, `valid`, `informative`, `holds`, `tightest`;
        `to_dataset()`.

    Raises
    ------
    ValueError
        If the run has no probe `"loss"`, its parameters are no layers that fit the target, the step
        size is missing or superfluous, an argument is not of its kind, or the loss recorded last is
        not that of `tau` and `loss` at the final factors.

    Notes
    -----
    Where the margin is 0, as it is for a width below `n`, all are bounds by `L0`, which say
    nothing: such a one is proved, holds, and is not `informative`. Rates are proved for one and
    two layers, for more if they are balanced, and `"along the run"` for balanced ones: singular
    values of a layer move no further than the layer,
    `sum_j (path of W_j)^2 <= d D`. That of a descent is proved for one layer and `step_size <= 1`.
    The imbalance of a flow is constant: it is judged at the end, with the tolerance of
    `Assumptions`. After `until` was met bounds stay as the run does. Cost: as many evaluations of
    the margin as saves.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> from bwflow import theory
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> run = bw.gradient_flow(
    ...     bw.losses.BuresWasserstein(target, 0.0), (jnp.diag(jnp.array([1.9, 0.9])),),
    ...     times=jnp.array([0.0, 1.0]), rtol=1e-7, atol=1e-9)
    >>> found = theory.compare(run, target, 0.0)
    >>> [found.names[i] for i in found.tightest], found.holds.tolist()
    (['published', 'sharp'], [True, True, True])
    """
    _checks.instance("trajectory", trajectory, Trajectory, "a bwflow.Trajectory")
    _checks.instance("target", target, Target, "a bwflow.Target")
    _checks.choice("loss", loss, get_args(Discrepancy))
    if "loss" not in trajectory.probes:
        recorded = ", ".join(trajectory.probes) or "nothing"
        raise ValueError(
            f"trajectory must have a probe 'loss'; it has {recorded}. "
            'Record it with probe=bw.diagnostics.record("loss", ...).'
        )
    layers = trajectory.factors
    if not isinstance(layers, (tuple, list)):
        raise ValueError(
            "trajectory must end in layers (W_1, ..., W_N), which say depth and widths; got "
            f"{_checks.shown(layers)}. For other coordinates use sharp_rate and the like."
        )
    if any(np.ndim(W) != 2 for W in layers):
        raise ValueError("trajectory must be one run; map compare over a batch with jax.vmap.")
    widths(tuple(layers))
    check_rows("trajectory.factors", tuple(layers), target)
    dtype = dtype_of(target)
    tau = _checks.scalar("tau", tau, dtype, minimum=0.0)
    if (step_size is None) != (trajectory.clock == "time"):
        given, expected = ("a descent", "given") if step_size is None else ("a flow", "left out")
        raise ValueError(f"step_size must be {expected} for {given}.")
    if step_size is not None:
        if loss == "frobenius":
            raise ValueError("loss must be 'bures_wasserstein' for a descent; got 'frobenius'.")
        step_size = _checks.scalar("step_size", step_size, dtype, positive=True)
    _check_loss(trajectory, target, tau, loss)
    return _compare(trajectory, target, tau, step_size, loss)


def _check_loss(run: Trajectory, target: Target, tau: ArrayLike, loss: Discrepancy) -> None:
    """Refuse a run of another loss, or of another smoothing, than the one that is named."""
    recorded = run.probes["loss"][-1]
    leaves = jax.tree.leaves((recorded, tau, target, run.factors, run.result))
    if not all(map(_checks.is_concrete, leaves)) or run.result != RESULTS.successful:
        return
    function = smoothed_bures if loss == "bures_wasserstein" else frobenius
    found = function(end_to_end(tuple(run.factors)), target, tau=tau)
    lam = target.eigenvalues
    size = float(jnp.sum(lam) if loss == "bures_wasserstein" else jnp.sum(lam**2))
    slack = float(jnp.sqrt(jnp.finfo(recorded.dtype).eps)) * (size + float(recorded))
    if abs(float(found) - float(recorded)) > slack:
        raise ValueError(
            f"tau and loss must be those of the run: at its final factors {loss} with "
            f"tau = {np.asarray(tau):g} is {float(found):.6g}; {float(recorded):.6g} was recorded."
        )


@partial(jax.jit, static_argnums=4)
@full_precision
def _compare(
    run: Trajectory, target: Target, tau: Array, step_size: Array | None, loss: Discrepancy
) -> Comparison:
    N, losses = len(run.factors), run.probes["loss"]
    L0 = losses[0]
    # What follows the end of a run repeats it.
    elapsed = jnp.minimum(run.times.astype(L0.dtype), run.hit.astype(L0.dtype))
    elapsed = elapsed - run.times[0].astype(L0.dtype)
    wide = min(widths(run.factors)) >= target.dim
    balanced = is_balanced(run.factors)
    c = margin(target, L0, tau=tau, loss=loss) if wide else jnp.zeros_like(L0)
    if step_size is not None:
        proved = jnp.asarray(N == 1) & (step_size <= 1)
        factor = descent_factor(step_size, c, depth=N, tau=tau)
        bounds = {"descent factor": (L0 * factor**elapsed, proved | (factor == 1))}
    else:
        proved = jnp.asarray(N <= 2) | balanced
        rates = {"sharp": pl_constant(c, tau=tau, depth=N, loss=loss)}
        if loss == "bures_wasserstein":
            published = published_rate(target, L0, depth=N, tau=tau)
            corrected = published_rate(target, L0, depth=N, tau=tau, margin=c)
            rates = {"published": published, "published, corrected margin": corrected} | rates
        bounds = {
            name: (L0 * jnp.exp(-rate * elapsed), (proved | (rate == 0)) & (rate <= rates["sharp"]))
            for name, rate in rates.items()
        }
        if "singular_values" in run.probes:
            floor = _floor(run, target, tau, elapsed, balanced, loss) if wide else None
            mu = (
                0 * elapsed[1:]
                if floor is None
                else pl_constant(floor, tau=tau, depth=N, loss=loss)
            )
            exponents = jnp.concatenate([elapsed[:1], jnp.cumsum(mu * jnp.diff(elapsed))])
            bounds["along the run"] = (L0 * jnp.exp(-exponents), proved | ~jnp.any(mu > 0))
    rows, valid = (jnp.stack(x) for x in zip(*bounds.values(), strict=True))
    eps = jnp.finfo(L0.dtype).eps
    lam = target.eigenvalues
    size = jnp.linalg.norm(lam) if loss == "frobenius" else jnp.sqrt(jnp.sum(lam))
    slack = jnp.sqrt(eps) * (root(L0) + size)
    within = jnp.sqrt(losses)[None, :] <= jnp.sqrt(rows) + slack
    least = jnp.argmin(jnp.where(valid[:, None], rows, jnp.inf), axis=0)
    return Comparison(
        times=run.times,
        loss=losses,
        bounds=rows,
        valid=valid,
        holds=jnp.all(within, axis=1) & (run.result == RESULTS.successful),
        tightest=jnp.where(jnp.any(valid), least, -1).astype(jnp.int32),
        names=tuple(bounds),
        clock=run.clock,
    )


def _floor(
    run: Trajectory,
    target: Target,
    tau: Array,
    elapsed: Array,
    balanced: Array,
    loss: Discrepancy,
) -> Float[Array, " interval"]:
    """Lower bound of `sigma_n(W)` from each save to the next."""
    N, losses = len(run.factors), run.probes["loss"]
    known = margin(target, losses[:-1], tau=tau, loss=loss)
    a = run.probes["singular_values"][:, target.dim - 1] ** (1 / N)
    path = root(-jnp.diff(losses) * jnp.diff(elapsed) / N)
    between = jnp.maximum((a[:-1] + a[1:] - path) / 2, 0)
    between = jnp.minimum(between, jnp.minimum(a[:-1], a[1:])) ** N
    return jnp.maximum(known, jnp.where(balanced, between, 0))
