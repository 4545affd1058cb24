"""The parts of an iteration for barycenters whose data are never in memory at once."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from bwflow.geometry._barycenters import Barycenter, ended
from bwflow.geometry._fixed_points import Iteration as Iteration
from bwflow.geometry._fixed_points import Problem, average, filled
from bwflow.geometry._fixed_points import sketch as sketch
from bwflow.geometry._fixed_points import usual_rtol as usual_rtol
from bwflow.geometry._roots import root_and_inverse
from bwflow.linalg import full_precision


@jax.jit
@full_precision
def sketched(omega: Array, Y: Array) -> Array:
    """A factor of the Nystrom approximation of the `A` with `Y = A omega`."""
    _, K = root_and_inverse(omega.T @ Y)
    return Y @ K.T


@cache
def contribution(kind: Literal["mean", "sketch"]) -> Callable[..., tuple[Array, Array]]:
    """What a block of factors adds: `(F, block, mask)` to a sum of `n x k` and of objectives."""
    return jax.jit(full_precision({"mean": _turned, "sketch": _products}[kind]))


def _turned(F: Array, L: Array, mask: Array) -> tuple[Array, Array]:
    w = mask.astype(F.dtype)
    problem = Problem("mean", F.shape[1], 0)
    return average(problem, jnp.zeros((), F.dtype), w, filled(L, mask), F)


def _products(omega: Array, L: Array, mask: Array) -> tuple[Array, Array]:
    # What does not count is zero.
    columns = jnp.swapaxes(L, 0, 1).reshape(len(omega), -1)
    return columns @ (columns.T @ omega), jnp.sum(L**2)


def finished(state: Iteration, rtol: ArrayLike, count: int) -> Barycenter:
    """The barycenter where an iteration ended."""
    infinite = jnp.full((), jnp.inf, state.point.dtype)
    residual = jnp.linalg.norm(state.residual)
    return ended(state.point, state.value, residual, infinite, jnp.asarray(count), state.code(rtol))
