"""What both dynamics return."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bwflow import _checks
from bwflow._types import Params


class RESULTS(eqx.Enumeration):
    """How a run ended; the sentences say what to do."""

    successful = "The run reached its end or its stopping criterion."
    nonfinite = (
        "The loss or its gradient became NaN or infinite. Reduce the learning rate or the scale "
        "of the start."
    )
    max_steps_reached = (
        "The maximum number of steps was reached before the end time. Raise `max_steps`, loosen "
        "`rtol` and `atol`, or shorten `times`."
    )
    step_size_underflow = (
        "The step size became too small to advance time. Loosen `rtol` and `atol`, or look for a "
        "kink: at tau = 0 the gradient jumps where the rank of B^T W drops."
    )
    solver_failed = (
        "The solver gave up: an implicit stage did not converge. Try an explicit solver."
    )


# The codes that a store keeps, in a fixed order.
OUTCOMES = (
    "successful",
    "nonfinite",
    "max_steps_reached",
    "step_size_underflow",
    "solver_failed",
)


class Trajectory(eqx.Module):
    """A run: what was probed along it and where it ended.

    Attributes
    ----------
    times
        Save times of a flow, or step counts of a descent; entry 0 is the start.
    probes
        Name to array; row `i` belongs to `times[i]`. After `until` was met the rows repeat the
        last state, after a failure the last one recorded before it.
    factors
        The final parameters.
    num_steps
        Steps taken: attempted solver steps of a flow, updates of a descent.
    num_rejected
        Of these, solver steps whose error was too large; 0 for a descent.
    hit
        Time or step at which `until` first held; infinity if it never did.
    result
        One of `RESULTS`.
    clock
        `"time"` or `"step"`: what `times` and `hit` count.
    """

    times: Float[Array, "*batch save"] | Int[Array, "*batch save"]
    probes: dict[str, Array]
    factors: Params
    num_steps: Int[Array, "*batch"]
    num_rejected: Int[Array, "*batch"]
    hit: Float[Array, "*batch"]
    result: RESULTS
    clock: Literal["time", "step"] = eqx.field(static=True)

    @property
    def outcome(self) -> Int[Array, "..."]:
        """Index of `result` in `OUTCOMES`; 0 is success."""
        codes = [jnp.asarray(self.result == getattr(RESULTS, name)) for name in OUTCOMES]
        return jnp.argmax(jnp.stack(codes), axis=0).astype(jnp.int32)


def concluded(trajectory: Trajectory, throw: bool) -> Trajectory:
    """The trajectory, or an error that tells how it failed if `throw` asks for one."""
    if not throw:
        return trajectory
    failed = trajectory.result != RESULTS.successful
    if not _checks.is_concrete(failed):
        return trajectory.result.error_if(trajectory, failed)
    if bool(failed):
        raise RuntimeError(RESULTS[trajectory.result])
    return trajectory
