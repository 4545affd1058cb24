"""What critical points are made of: distinct eigenvalues, and the curvature between two of them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bwflow import linalg
from bwflow._minima import Discrepancy
from bwflow.covariances import Target


class Levels(NamedTuple):
    """Distinct eigenvalues of a target, largest first and zero included, and how often they occur.

    Eigenvalues within `10 n eps lambda_1` of the largest one of a level belong to it; a level that
    close to a positive smoothing is put on it.
    """

    values: np.ndarray
    sizes: np.ndarray
    learnable: int  # so many of them are above the smoothing


def levels(target: Target, tau: float) -> Levels:
    """The levels of a concrete target, in double precision."""
    lam = np.asarray(target.eigenvalues, np.float64)
    sizes = np.array(level_sizes(target))
    values = np.add.reduceat(lam, np.cumsum(sizes) - sizes) / sizes
    if tau > 0:
        values = np.where(np.abs(values - tau) <= coincidence(target) * lam[0], tau, values)
    if target.dim > lam.size:
        values, sizes = np.append(values, 0.0), np.append(sizes, target.dim - lam.size)
    return Levels(values, sizes, int(np.sum(values > tau)))


def level_sizes(target: Target) -> tuple[int, ...]:
    """Multiplicities of the positive eigenvalues of a concrete target."""
    lam = np.asarray(target.eigenvalues, np.float64)
    starts = [0]
    for i, x in enumerate(lam):
        if lam[starts[-1]] - x > coincidence(target) * lam[0]:
            starts.append(i)
    return tuple(int(size) for size in np.diff([*starts, lam.size]))


def coincidence(target: Target) -> float:
    """Relative to the largest, how far apart eigenvalues are taken for one: `10 n eps`."""
    return 10 * target.dim * float(jnp.finfo(target.eigenvalues.dtype).eps)


# Arrays of numpy or jax; `low` and `tau` may be zero, the others not.
def curvature_inside(a: Any, b: Any, tau: Any, loss: Discrepancy) -> Any:
    """Curvature between two learnt eigenvalues."""
    if loss == "frobenius":
        return 4 * (a + b - 2 * tau)
    return 2 * (a + b - 2 * tau) / (a + b)


def curvature_across(low: Any, learnt: Any, tau: Any, loss: Discrepancy) -> Any:
    """Curvature between an eigenvalue that is not learnt and one that is."""
    if loss == "frobenius":
        return 4 * (learnt - low)
    return 2 * (learnt - low) / (learnt + positive_power(low * tau, 0.5))


def curvature_outside(low: Any, tau: Any, loss: Discrepancy) -> Any:
    """Curvature of an eigenvalue that is not learnt, for a null column."""
    if loss == "frobenius":
        return 4 * (tau - low)
    xp = jnp if isinstance(low, Array) else np
    return 2 - 2 * positive_power(low / xp.where(tau > 0, tau, 1), 0.5)


def balance(x: Any, y: Any, N: int) -> Any:
    """`sum_{l=1}^N x^{(N-l)/N} y^{(l-1)/N}`, zeroth powers being 1."""
    terms = [
        positive_power(x, (N - l) / N) * positive_power(y, (l - 1) / N) for l in range(1, N + 1)
    ]
    return sum(terms[1:], start=terms[0])


def positive_power(x: Any, exponent: float) -> Any:
    """`x^exponent` for `x >= 0`, with slope 0 where it is 0."""
    if isinstance(x, Array):
        return linalg.positive_power(x, exponent)
    return np.asarray(x, float) ** exponent
