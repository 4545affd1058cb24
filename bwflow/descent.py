"""Gradient descent in the parameters with any optax optimiser."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from bwflow import _checks
from bwflow._blocks import Block, checked_order
from bwflow._trajectory import RESULTS, Trajectory, concluded
from bwflow._types import Loss, Params, Probe
from bwflow.diagnostics import Point, bound_probe, checked_start, recorded, standard
from bwflow.factors import Deep
from bwflow.until import Criterion, check_until


def gradient_descent(
    loss: Loss,
    params: Params,
    optimizer: optax.GradientTransformation | Sequence[optax.GradientTransformation],
    *,
    num_steps: int,
    save_every: int = 1,
    order: Sequence[int] | None = None,
    factorization: Any = Deep(),  # noqa: B008 (immutable)
    probe: Probe = standard,
    until: Criterion | None = None,
    throw: bool = True,
) -> Trajectory:
    """Descend a loss from given parameters.

    With `optax.sgd(eta)` the step is `W_j <- W_j - eta W_{>j}^T G W_{<j}^T`, all layers from the
    same old values or, given an `order`, each from the newest.

    Parameters
    ----------
    loss
        Function of the end-to-end matrix, a pytree: a module of `bwflow.losses` or
        `jax.tree_util.Partial(bwflow.smoothed_bures, target=..., tau=...)`.
    params
        The start: the tuple `(W_1, ..., W_N)`, or what `factorization` assembles.
    optimizer
        Any optax transformation, schedules included. Where it takes extra arguments it receives
        `value`, `grad`, `value_fn` (the loss of the parameters), `loss` and `factorization`. With
        an `order` it may be a tuple of transformations, one for each block.
    num_steps
        Number of updates.
    save_every
        Updates between records. The last record is the end even if it falls between.
    order
        The blocks of the parameters (layers, or the factors of a pair) in the order in which they
        move within a step, such as `(1, 0)`: each with the gradient where the ones before it have
        gone, and with an optimiser, or at least its state, of its own. By default all move at once.
    factorization
        How parameters become the end-to-end matrix.
    probe
        What to record: `bwflow.diagnostics.record(...)` or a function of `(loss, params)`.
    until
        Criterion of `bwflow.until` at which to stop; it is checked at every step.
    throw
        Whether to raise if the loss becomes non-finite. If not, look at `result`.

    Returns
    -------
    Trajectory
        With `clock="step"`.

    Raises
    ------
    ValueError
        If a count is not a positive integer, the parameters are not finite arrays that fit together
        and to the loss, or another argument is not of its kind.
    RuntimeError
        If the loss or the parameters become non-finite and `throw` is true.

    Notes
    -----
    Cost: one gradient a step; with an `order` one evaluation of the loss and its gradient for each
    block, and with `until` one more. Without `until` the loop has a fixed length and is
    differentiable in both modes where the optimiser is; with it, in forward mode only. A fresh
    optimiser is a fresh program: keep the object, or sweep its numbers inside one `jax.vmap`.
    A descent has succeeded if all stays finite, though its loss may have grown: whether it arrived
    is what `until` says, by a finite `hit`.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(4.0 * jnp.eye(2)), tau=0.0)
    >>> run = bw.gradient_descent(loss, (jnp.eye(2),), optax.sgd(0.5), num_steps=1)
    >>> print(run.factors[0].round(4))
    [[2. 0.]
     [0. 2.]]
    """
    params = checked_start(loss, params, factorization, probe)
    num_steps = _checks.positive_int("num_steps", num_steps)
    save_every = _checks.positive_int("save_every", save_every)
    check_until(until, loss, params, factorization)
    order = checked_order(order, params)
    optimizer = _checked_optimizer(optimizer, None if order is None else len(order))
    dtype = jax.tree.leaves(params)[0].dtype
    trajectory = _descend(
        _checks.traced_numbers(loss, dtype),
        params,
        optimizer,
        _checks.traced_numbers(until, dtype),
        bound_probe(probe, loss, factorization),
        _checks.traced_numbers(factorization, dtype),
        num_steps,
        save_every,
        order,
    )
    return concluded(trajectory, throw)


def _checked_optimizer(optimizer: Any, blocks: int | None) -> Any:
    """One transformation; where blocks move in turn, a tuple of as many."""

    def is_one(x: Any) -> bool:
        return all(callable(getattr(x, method, None)) for method in ("init", "update"))

    if is_one(optimizer):
        return optimizer if blocks is None else (optimizer,) * blocks
    several = isinstance(optimizer, (tuple, list)) and all(map(is_one, optimizer))
    if blocks is None or not several or len(optimizer) != blocks:
        also = "" if blocks is None else f", or {blocks} of them, one for each block"
        raise ValueError(
            f"optimizer must be an optax transformation, such as optax.sgd(0.1){also}; "
            f"got {_checks.shown(optimizer)}."
        )
    return tuple(optimizer)


def recorded_steps(num_steps: int, save_every: int) -> list[int]:
    """The numbers of updates after which a descent records, the start among them."""
    return [*range(0, num_steps, save_every), num_steps]


class _State(NamedTuple):
    params: Params
    memory: Any  # of the optimiser
    step: Array
    hit: Array
    running: Array


@eqx.filter_jit
def _descend(loss, params, optimizer, until, probe, factorization, num_steps, save_every, order):
    if order is None:
        optimizer = optax.with_extra_args_support(optimizer)
    else:
        optimizer = tuple(map(optax.with_extra_args_support, optimizer))
    probe = partial(recorded, probe)
    dtype = jax.tree.leaves(params)[0].dtype
    move: Any = _update if order is None else partial(_update_in_turn, order)
    threshold = None
    if until is not None:
        threshold = until.threshold(Point(loss, params, factorization))

    def advance(state: _State) -> _State:
        point = _remembered(Point(loss, state.params, factorization), state.memory)
        new_params, memory = move(optimizer, point, state.memory)
        moved = _State(new_params, memory, state.step + 1, state.hit, state.running)
        if until is None:
            return moved
        excess = until.excess(point, threshold)
        met, broken = excess <= 0, ~jnp.isfinite(excess)
        stopped = state._replace(
            hit=jnp.where(met, state.step.astype(dtype), state.hit), running=jnp.asarray(False)
        )
        return jax.tree.map(lambda a, b: jnp.where(met | broken, a, b), stopped, moved)

    def moved_by(state: _State, length: int) -> tuple[_State, Any]:
        state = lax.fori_loop(0, length, lambda _, s: advance(s), state)
        return state, probe(loss, state.params)

    def moved_to(state: _State, end: Array) -> tuple[_State, Any]:
        state = lax.while_loop(lambda s: s.running & (s.step < end), advance, state)
        return state, probe(loss, state.params)

    memory, zero = _initial(optimizer, params, order), jnp.zeros((), jnp.int32)
    if _remembers(memory):
        start = Point(loss, params, factorization)
        memory = memory._replace(value=start.value, grad=start.gradients)
    state = _State(params, memory, zero, jnp.asarray(jnp.inf, dtype), jnp.asarray(True))
    times = jnp.asarray(recorded_steps(num_steps, save_every), jnp.int32)
    if until is None:
        # Numbers of steps that are known make a loop that can be differentiated backwards.
        whole, rest = divmod(num_steps, save_every)
        rows = [jax.tree.map(lambda x: x[None], probe(loss, params))]
        if whole:
            state, saved = lax.scan(lambda s, _: moved_by(s, save_every), state, length=whole)
            rows.append(saved)
        if rest:
            state, last = moved_by(state, rest)
            rows.append(jax.tree.map(lambda x: x[None], last))
        probes = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
    else:
        state, probes = lax.scan(moved_to, state, times)
    hit, end = state.hit, Point(loss, state.params, factorization)
    if until is not None:
        # The loop looks at a state before it moves on, so the very last one is still unseen.
        met = until.excess(end, threshold) <= 0
        hit = jnp.where(state.running & met, state.step.astype(dtype), hit)
    sound = jnp.isfinite(end.value) & jnp.isfinite(end.gradient_norm)
    return Trajectory(
        times=times,
        probes=probes,
        factors=state.params,
        num_steps=state.step,
        num_rejected=jnp.zeros((), jnp.int32),
        hit=hit,
        result=RESULTS.where(sound, RESULTS.successful, RESULTS.nonfinite),
        clock="step",
    )


def _initial(optimizer: Any, params: Any, order: tuple[int, ...] | None) -> Any:
    # Strongly typed leaves, so that the state has one type all along the loop.
    with jax.numpy_dtype_promotion("standard"):
        if order is None:
            state = optimizer.init(params)
        else:
            state = tuple(optimizer[index].init(params[index]) for index in order)
        return jax.tree.map(jnp.asarray, state)


def _remembers(memory: Any) -> bool:
    """Whether an optimiser keeps value and gradient of the point it leads to, as optax names them.

    Inside of a chain it may lead elsewhere, so only its own state is looked at.
    """
    return getattr(memory, "value", None) is not None and getattr(memory, "grad", None) is not None


def _remembered(point: Point, memory: Any) -> Point:
    return point.known(memory.value, memory.grad) if _remembers(memory) else point


def _update_in_turn(
    order: tuple[int, ...],
    optimizers: tuple[optax.GradientTransformationExtraArgs, ...],
    point: Point,
    memories: tuple,
) -> tuple:
    """An update of every block, each a descent of its own from where the ones before have gone."""
    params, moved = point.params, []
    for index, memory in zip(order, memories, strict=True):
        block = Block(point.factorization, params, index)
        new, memory = _update(optimizers[index], Point(point.loss, params[index], block), memory)
        params = block.whole(new)
        moved.append(memory)
    return params, tuple(moved)


def _update(optimizer: optax.GradientTransformationExtraArgs, point: Point, memory: Any) -> tuple:
    """One update; optax mixes dtypes (a step count with floats), which strict mode would refuse."""

    # Line searches of optax refuse extra arguments that it does not take.
    def value_fn(params, loss=point.loss, factorization=point.factorization):
        return Point(loss, params, factorization).value

    with jax.numpy_dtype_promotion("standard"):
        updates, memory = optimizer.update(
            point.gradients,
            memory,
            point.params,
            value=point.value,
            grad=point.gradients,
            value_fn=value_fn,
            loss=point.loss,
            factorization=point.factorization,
        )
        return optax.apply_updates(point.params, updates), memory
