"""Gradient flow `dW_j/dt = -grad_j` as an ordinary differential equation, by diffrax."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._trajectory import RESULTS, Trajectory, concluded
from bwflow._types import Factors, Loss, Params, Probe
from bwflow.diagnostics import Point, bound_probe, checked_start, recorded, standard
from bwflow.factors import Covariance, Deep, EndToEnd, end_to_end, widths
from bwflow.linalg import full_precision
from bwflow.until import Criterion, check_until

Coordinates: TypeAlias = Literal["factors", "end_to_end", "covariance"]


def gradient_flow(
    loss: Loss,
    params: Params,
    solver: diffrax.AbstractSolver = diffrax.Tsit5(),  # noqa: B008 (immutable)
    *,
    times: ArrayLike | Sequence[ArrayLike],
    rtol: ArrayLike,
    atol: ArrayLike,
    factorization: Any = Deep(),  # noqa: B008 (immutable)
    coordinates: Coordinates = "factors",
    depth: ArrayLike | None = None,
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
    coordinates
        `"factors"` moves the layers. For balanced ones, `"end_to_end"` moves their product `W` and
        `"covariance"` `W W^T`, at the cost of one layer whatever the depth: shorthands for the
        factorizations `bwflow.factors.EndToEnd` and `Covariance`. Final parameters and the norm of
        the gradient are then those of these coordinates.
    depth
        In other coordinates, for a start that is given by its end-to-end matrix: the number of
        layers `N`, which may be any real number of at least 1, and traced.
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
        If `times` are not at least two increasing numbers, a tolerance, a step or a count is not
        positive, both tolerances are below what the precision resolves, the solver needs a `dt0`,
        the parameters are not finite arrays that fit together and to the loss, coordinates other
        than `"factors"` get layers that are not balanced, a matrix without a depth or another
        factorization, or an argument is not of its kind.
    RuntimeError
        If the solve fails and `throw` is true.

    Notes
    -----
    Cost: one gradient per solver stage, and what the probe costs for each save. Memory: some tens
    of copies of the parameters, and one for each save; it does not grow with the number of steps.
    Differentiable in reverse and (with `diffrax.ForwardMode()`) forward mode.
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
    _checks.choice("coordinates", coordinates, get_args(Coordinates))
    if coordinates != "factors":
        params, factorization = _in_coordinates(coordinates, params, depth, factorization)
    elif depth is not None:
        raise ValueError(
            "depth must be left out with coordinates='factors', where it is the number of layers; "
            f"got {_checks.shown(depth)}."
        )
    params = checked_start(loss, params, factorization, probe)
    _check_parts(solver, adjoint, progress_meter)
    _checks.function("norm", norm, "the parameters' errors")
    check_until(until, loss, params, factorization)
    max_steps = _checks.positive_int("max_steps", max_steps)
    dtype = jax.tree.leaves(params)[0].dtype
    times = _checks.numbers("times", times, dtype, ndim=1, increasing=True)
    if times.size < 2:
        raise ValueError(f"times must be at least two numbers; got {times.size}.")
    rtol = _checks.scalar("rtol", rtol, dtype, positive=True)
    atol = _checks.scalar("atol", atol, dtype, positive=True)
    if isinstance(solver, diffrax.AbstractAdaptiveSolver):
        _check_resolved(rtol, atol, jnp.finfo(dtype))
    if dt0 is not None:
        dt0 = _checks.scalar("dt0", dt0, dtype, positive=True)
    elif not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"dt0 must be given: {type(solver).__name__} has no error estimate to choose steps by."
        )
    factorization = _checks.traced_numbers(factorization, dtype)
    trajectory = _solve(
        _checks.traced_numbers(loss, dtype),
        params,
        solver,
        norm,
        rtol,
        atol,
        times,
        dt0,
        _checks.traced_numbers(until, dtype),
        bound_probe(probe, loss, factorization),
        factorization,
        max_steps,
        diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        progress_meter,
    )
    return concluded(trajectory, throw)


def _in_coordinates(
    coordinates: Coordinates, params: Any, depth: ArrayLike | None, factorization: Any
) -> tuple[Array, EndToEnd | Covariance]:
    """A balanced start as its end-to-end matrix or its covariance, with their factorization."""
    if not isinstance(factorization, Deep):
        raise ValueError(
            f"factorization must be left out with coordinates={coordinates!r}; "
            f"got {_checks.shown(factorization)}."
        )
    layered = isinstance(params, (tuple, list))
    if layered == (depth is not None):
        given, expected = ("layers", "left out") if layered else ("a matrix", "given")
        raise ValueError(
            f"depth must be {expected} for a start in {given}; got {_checks.shown(depth)}."
        )
    N = len(params) if depth is None else _checks.scalar("depth", depth, float, minimum=1.0)
    if layered:
        layers = tuple(_checks.parameters("params", params))
        rank = min(widths(layers))
        _check_balanced(coordinates, layers)
        W = end_to_end(layers)
    else:
        W = _checks.real_array("params", params, ndim=2)
        rank = min(W.shape)
    if _checks.is_concrete(W):
        # Cut as the balanced initialisers do; the flow keeps what is left.
        s = np.linalg.svd(np.asarray(W), compute_uv=False)
        rank = max(1, min(rank, int(np.sum(s > max(W.shape) * np.finfo(s.dtype).eps * s[0]))))
    if coordinates == "end_to_end":
        return W, EndToEnd(N, rank)
    with full_precision:
        return W @ W.T, Covariance(N, min(rank, W.shape[0]))


def _check_balanced(coordinates: Coordinates, layers: Factors) -> None:
    if not all(_checks.is_concrete(W) for W in layers):
        return
    arrays = [np.asarray(W, np.float64) for W in layers]
    found = max((np.max(np.abs(V.T @ V - W @ W.T)) for W, V in pairwise(arrays)), default=0.0)
    size = max(np.max(np.abs(W)) for W in arrays)
    if not found <= np.sqrt(np.finfo(layers[0].dtype).eps) * size**2:
        raise ValueError(
            f"params must be balanced layers for coordinates={coordinates!r}; an entry of "
            f"W_(j+1)^T W_(j+1) - W_j W_j^T is {found:.2g}. bwflow.initializers.rebalanced "
            "and split_evenly make balanced ones."
        )


def _check_parts(solver: Any, adjoint: Any, progress_meter: Any) -> None:
    for name, part, kind, expected in (
        ("solver", solver, diffrax.AbstractSolver, "solver, such as diffrax.Tsit5()"),
        ("adjoint", adjoint, (diffrax.AbstractAdjoint, type(None)), "adjoint or None"),
        ("progress_meter", progress_meter, diffrax.AbstractProgressMeter, "progress meter"),
    ):
        _checks.instance(name, part, kind, f"a diffrax {expected}")


def _check_resolved(rtol: Any, atol: Any, resolution: Any) -> None:
    """Refuse tolerances that no step can meet."""
    if not _checks.is_concrete(rtol) or not _checks.is_concrete(atol):
        return
    if max(float(rtol), float(atol)) < resolution.eps:
        advice = ""
        if resolution.bits < 64:
            advice = ' For double precision call jax.config.update("jax_enable_x64", True) first.'
        raise ValueError(
            f"rtol or atol must be at least {resolution.eps:.2g}, what {resolution.dtype} "
            f"resolves; got {float(rtol):g} and {float(atol):g}.{advice}"
        )


@eqx.filter_jit
def _solve(
    loss,
    params,
    solver,
    norm,
    rtol,
    atol,
    times,
    dt0,
    until,
    probe,
    factorization,
    max_steps,
    adjoint,
    progress_meter,
) -> Trajectory:
    # One vector is what the solver moves: its arithmetic on many small arrays would cost as much as
    # gradients of small networks do.
    state, restored = ravel_pytree(params)

    def velocity(t, state, loss):
        return -ravel_pytree(Point(loss, restored(state), factorization).gradients)[0]

    eqx.filter_eval_shape(partial(recorded, probe), loss, params)  # refused, if at all, first
    begun = Point(loss, params, factorization)
    event, threshold, end_time = None, None, times[-1]
    if until is not None:
        threshold = until.threshold(begun)
        event = _event(until, threshold, factorization, restored, times)
        # Diffrax looks for an event, somewhere about the end, in all runs of a batch or in none.
        # What is saved before that is the same whatever the other runs of the batch do.
        end_time = end_time + 8 * _event_tolerance(times) * (1 + jnp.abs(end_time))
    solve = diffrax.diffeqsolve
    if event is not None:
        solve = jax.numpy_dtype_promotion("standard")(solve)
    solution = solve(
        diffrax.ODETerm(velocity),
        solver,
        times[0],
        end_time,
        dt0,
        state,
        args=loss,
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=times), diffrax.SubSaveAt(t1=True)]),
        stepsize_controller=_controller(solver, lambda y: norm(restored(y)), rtol, atol, times),
        event=event,
        adjoint=adjoint,
        max_steps=max_steps,
        progress_meter=progress_meter,
        throw=False,
    )
    saved_times, last_time = cast(tuple, solution.ts)
    states, last = cast(tuple, solution.ys)
    complete = saved_times[-1] <= times[-1]
    end = restored(jnp.where(complete, states[-1], last[0]))
    if until is None:
        hit = jnp.asarray(jnp.inf, times.dtype)
    else:
        early = until.excess(begun, threshold) <= 0
        stopped = ~complete & (solution.result == diffrax.RESULTS.event_occurred)
        hit = jnp.where(early, times[0], jnp.where(stopped, last_time[0], jnp.inf))
        end = jax.tree.map(lambda x, x0: jnp.where(early, x0, x), end, params)
        saved_times = jnp.where(early & (times > times[0]), jnp.inf, saved_times)
    # The last state of a run that failed depends, in rounding, on the others of a batch.
    sound = jnp.where(
        complete | (solution.result == diffrax.RESULTS.event_occurred),
        jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(end)])),
        jnp.isfinite(begun.value) & jnp.isfinite(begun.gradient_norm),
    )
    outcome = _outcome(solution.result, sound)
    reached = (saved_times <= times[-1]).at[0].set(True)
    # Probed when all is over: while the solver runs, a record of one run of a batch is computed for
    # all of them. Rows that were not reached hold no state, and get one that has derivatives.
    states = jnp.where(reached[:, None], states, state).at[0].set(state)
    states = jnp.concatenate([states, ravel_pytree(end)[0][None]])
    rows = lax.map(lambda state: recorded(probe, loss, restored(state)), states)
    probes = _filled(rows, reached, outcome == RESULTS.successful)
    return Trajectory(
        times=times,
        probes=probes,
        factors=end,
        num_steps=jnp.asarray(solution.stats["num_steps"], jnp.int32),
        num_rejected=jnp.asarray(solution.stats["num_rejected_steps"], jnp.int32),
        hit=hit,
        result=outcome,
        clock="time",
    )


def _filled(rows: Any, reached: Array, arrived: Array) -> Any:
    """The rows, with the end in place of those not reached, or the last record after a failure."""

    def fill(row: Array) -> Array:
        row, end = row[:-1], row[-1]
        rest = jnp.where(arrived, end, row[jnp.sum(reached) - 1])
        return jnp.where(reached.reshape((-1,) + (1,) * end.ndim), row, rest[None])

    return jax.tree.map(fill, rows)


def _controller(solver: Any, norm: Any, rtol: Array, atol: Array, times: Array) -> Any:
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        return diffrax.ConstantStepSize()
    # A step below which time would not advance.
    least = 4 * jnp.finfo(times.dtype).eps * jnp.max(jnp.abs(times))
    return diffrax.PIDController(rtol, atol, norm=norm, dtmin=least, force_dtmin=False)


def _event(
    until: Criterion, threshold: Array, factorization: Any, restored: Any, times: Array
) -> diffrax.Event:
    def excess(t, y, args, **_):
        point = Point(args, restored(y), factorization)
        # Diffrax compares the value with a zero of the default precision.
        return until.excess(point, threshold).astype(jnp.result_type(float))

    tolerance = _event_tolerance(times)
    # In runs of a batch that meet no event diffrax looks for the end of a step, which is at the end
    # of the bracket; told which side is positive, bisection does not refuse that.
    return diffrax.Event(excess, optx.Bisection(tolerance, tolerance, flip=True))


def _event_tolerance(times: Array) -> float:
    """Accuracy of an event's time, absolute and relative."""
    return 10 * float(jnp.finfo(times.dtype).eps) ** 0.75


def _outcome(result: diffrax.RESULTS, sound: Array) -> RESULTS:
    outcome = RESULTS.solver_failed
    for theirs, ours in (
        (diffrax.RESULTS.successful, RESULTS.successful),
        (diffrax.RESULTS.event_occurred, RESULTS.successful),
        (diffrax.RESULTS.max_steps_reached, RESULTS.max_steps_reached),
        (diffrax.RESULTS.dt_min_reached, RESULTS.step_size_underflow),
    ):
        outcome = RESULTS.where(result == theirs, ours, outcome)
    return RESULTS.where(sound, outcome, RESULTS.nonfinite)
