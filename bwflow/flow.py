"""Gradient flow `dW_j/dt = -grad_j` as an ordinary differential equation, by diffrax."""

from collections.abc import Sequence
from typing import Any, cast

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._trajectory import RESULTS, Trajectory, concluded
from bwflow._types import Loss, Params, Probe
from bwflow.diagnostics import Point, bound_probe, standard
from bwflow.factors import Deep
from bwflow.until import Criterion


def gradient_flow(
    loss: Loss,
    params: Params,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),  # noqa: B008 (immutable)
    *,
    times: ArrayLike | Sequence[float],
    rtol: ArrayLike,
    atol: ArrayLike,
    factorization: Any = Deep(),  # noqa: B008 (immutable)
    probe: Probe = standard,
    until: Criterion | None = None,
    norm: Any = optx.max_norm,
    max_steps: int = 100_000,
    dt0: ArrayLike | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    progress_meter: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter(),  # noqa: B008
    throw: bool = True,
) -> Trajectory:
    """Follow the gradient flow of a loss from given parameters.

    Solves `dW_j/dt = -W_{>j}^T G W_{<j}^T`, `G` the gradient of the loss at `W = W_N ... W_1`.

    Parameters
    ----------
    loss
        Function of the end-to-end matrix, a pytree: a module of `bwflow.losses` or
        `jax.tree_util.Partial(bwflow.smoothed_bures, target=..., tau=...)`. A lambda works, and
        is compiled anew for each new lambda.
    params
        The start: the tuple `(W_1, ..., W_N)`, or what `factorization` assembles.
    solver
        Any diffrax solver. One without an error estimate takes constant steps `dt0`.
    times
        Increasing; probes are recorded at each, the first is the start.
    rtol, atol
        Tolerances of the step-size control.
    factorization
        How parameters become the end-to-end matrix.
    probe
        What to record: `bwflow.diagnostics.record(...)` or a function of `(loss, params)`.
    until
        Criterion of `bwflow.until` at which to stop; the time is found by bisection on the
        solver's interpolant.
    norm
        Norm of the error estimate. The maximum norm makes accuracy independent of size.
    max_steps
        Bound on the solver's steps.
    dt0
        First step; chosen by the solver if left out.
    adjoint
        How to differentiate through the flow; diffrax's recursive checkpointing by default.
    progress_meter
        A diffrax progress meter; none by default.
    throw
        Whether to raise if the solve fails. If not, look at `result`.

    Returns
    -------
    Trajectory
        With `clock="time"`.

    Raises
    ------
    ValueError
        If `times` are not at least two increasing numbers, a tolerance is not positive, or the
        solver needs a `dt0`.
    RuntimeError
        If the solve fails and `throw` is true.

    Notes
    -----
    Cost: one gradient per solver stage, and one more for each save; memory does not grow with the
    number of steps. Differentiable in reverse and (with `diffrax.ForwardMode()`) forward mode.
    Under `jax.vmap` all runs take as many steps as the slowest.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027. Tsitouras (2011) for the default solver.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(4.0 * jnp.eye(2))
    >>> loss = bw.losses.BuresWasserstein(target, tau=0.0)
    >>> run = bw.gradient_flow(
    ...     loss, (jnp.eye(2),), times=jnp.array([0.0, 1.0]), rtol=1e-5, atol=1e-6)
    >>> bool(jnp.allclose(run.factors[0], (2 - jnp.exp(-2.0)) * jnp.eye(2), atol=1e-3))
    True
    """
    params = jax.tree.map(jnp.asarray, params)
    factorization.bottleneck(params)  # refuses what does not chain
    dtype = jnp.result_type(*jax.tree.leaves(params))
    times = _save_times(times, dtype)
    rtol = _checks.scalar("rtol", rtol, dtype, positive=True)
    atol = _checks.scalar("atol", atol, dtype, positive=True)
    adaptive = isinstance(solver, diffrax.AbstractAdaptiveSolver)
    if dt0 is not None:
        dt0 = _checks.scalar("dt0", dt0, dtype, positive=True)
    elif not adaptive:
        raise ValueError(
            f"dt0 must be given: {type(solver).__name__} has no error estimate to choose steps by."
        )
    trajectory = _solve(
        _checks.traced_numbers(loss, dtype),
        params,
        solver,
        diffrax.PIDController(rtol, atol, norm=norm, dtmin=_least_step(times), force_dtmin=False)
        if adaptive
        else diffrax.ConstantStepSize(),
        times,
        dt0,
        _checks.traced_numbers(until, dtype),
        bound_probe(probe, loss, factorization),
        factorization,
        _checks.positive_int("max_steps", max_steps),
        diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        progress_meter,
    )
    return concluded(trajectory, throw)


def _save_times(times: ArrayLike | Sequence[float], dtype: Any) -> Array:
    grid = jnp.asarray(times, dtype)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"times must be at least two numbers; got shape {grid.shape}.")
    if _checks.is_concrete(times):
        seen = np.asarray(times)
        if not (np.all(np.diff(seen) > 0) and np.all(np.isfinite(seen))):
            raise ValueError(f"times must be strictly increasing and finite; got {seen}.")
    return grid


def _least_step(times: Array) -> Array:
    """A step below which time would not advance."""
    return 4 * jnp.finfo(times.dtype).eps * jnp.max(jnp.abs(times))


@eqx.filter_jit
def _solve(
    loss,
    params,
    solver,
    controller,
    times,
    dt0,
    until,
    probe,
    factorization,
    max_steps,
    adjoint,
    progress_meter,
) -> Trajectory:
    def velocity(t, params, loss):
        return jax.tree.map(jnp.negative, Point(loss, params, factorization).gradients)

    start = probe(loss, params)
    event, threshold = None, None
    if until is not None:
        threshold = until.threshold(Point(loss, params, factorization))
        event = diffrax.Event(
            # Diffrax compares the value with a zero of the default precision.
            lambda t, y, args, **_: until.excess(Point(args, y, factorization), threshold).astype(
                jnp.result_type(float)
            ),
            optx.Bisection(_event_tolerance(times), _event_tolerance(times)),
        )
    solve = diffrax.diffeqsolve
    if event is not None:
        solve = jax.numpy_dtype_promotion("standard")(solve)
    solution = solve(
        diffrax.ODETerm(velocity),
        solver,
        times[0],
        times[-1],
        dt0,
        params,
        args=loss,
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(ts=times, fn=lambda t, y, args: probe(args, y)),
                diffrax.SubSaveAt(t1=True),
            ]
        ),
        stepsize_controller=controller,
        event=event,
        adjoint=adjoint,
        max_steps=max_steps,
        progress_meter=progress_meter,
        throw=False,
    )
    (saved_times, last_time), (rows, last) = cast(tuple, solution.ts), cast(tuple, solution.ys)
    end = jax.tree.map(lambda x: x[0], last)
    if until is None:
        hit = jnp.asarray(jnp.inf, times.dtype)
    else:
        early = until.excess(Point(loss, params, factorization), threshold) <= 0
        stopped = solution.result == diffrax.RESULTS.event_occurred
        hit = jnp.where(early, times[0], jnp.where(stopped, last_time[0], jnp.inf))
        end = jax.tree.map(lambda x, x0: jnp.where(early, x0, x), end, params)
        saved_times = jnp.where(early & (times > times[0]), jnp.inf, saved_times)
    final = probe(loss, end)
    reached = saved_times <= times[-1]
    probes = jax.tree.map(
        lambda row, last: jnp.where(reached.reshape((-1,) + (1,) * last.ndim), row, last[None]),
        rows,
        final,
    )
    probes = jax.tree.map(lambda row, first: row.at[0].set(first), probes, start)
    return Trajectory(
        times=times,
        probes=probes,
        factors=end,
        num_steps=jnp.asarray(solution.stats["num_steps"]),
        hit=hit,
        result=_outcome(solution.result, jax.tree.leaves(end)),
        clock="time",
    )


def _event_tolerance(times: Array) -> float:
    """Accuracy of an event's time, absolute and relative."""
    return 10 * float(jnp.finfo(times.dtype).eps) ** 0.75


def _outcome(result: diffrax.RESULTS, leaves: list[Array]) -> RESULTS:
    outcome = RESULTS.solver_failed
    for theirs, ours in (
        (diffrax.RESULTS.successful, RESULTS.successful),
        (diffrax.RESULTS.event_occurred, RESULTS.successful),
        (diffrax.RESULTS.max_steps_reached, RESULTS.max_steps_reached),
        (diffrax.RESULTS.dt_min_reached, RESULTS.step_size_underflow),
    ):
        outcome = RESULTS.where(result == theirs, ours, outcome)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
    return RESULTS.where(finite, outcome, RESULTS.nonfinite)
