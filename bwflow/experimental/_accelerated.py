"""Accelerated projected descent of a convex function."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def accelerated(
    step: Callable[[Array], Array], start: Array, num_steps: int, metric: Array | float = 1.0
) -> Array:
    """Where accelerated steps lead; the momentum starts anew where it points uphill.

    `step` is a projected gradient step, in the metric of which `metric` is the diagonal.

    References
    ----------
    Beck and Teboulle (2009), A fast iterative shrinkage-thresholding algorithm; O'Donoghue and
    Candes (2015), arXiv 1204.3982, for the restarts.
    """

    def advance(_, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, y, inertia = state
        new = step(y)
        uphill = jnp.vdot((y - new) * metric, new - x) > 0
        inertia = jnp.where(uphill, 1, inertia)
        faster = (1 + jnp.sqrt(1 + 4 * inertia**2)) / 2
        momentum = jnp.where(uphill, 0, (inertia - 1) / faster)
        return new, new + momentum * (new - x), faster

    one = jnp.ones((), start.dtype)
    return lax.fori_loop(0, num_steps, advance, (start, start, one))[0]
