"""Weights of observed entries that make their pattern look like the complete one."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.experimental._accelerated import accelerated
from bwflow.linalg import full_precision
from bwflow.operators import Entries

_MET = 1e-3  # excess that counts as none, relative to the square of the bound


def completion_weights(
    rows: Any, columns: Any, shape: tuple[int, int], *, num_steps: int = 150, num_rounds: int = 12
) -> Float[Array, " m"]:
    """Weights `w >= 0` of observed entries with `||W - 1 1^T||` as small as it gets.

    `W` has the weights at the observed places and zeros elsewhere. Where an adversary has added
    entries to a uniform sample, descent of the weighted loss,
    `bwflow.losses.weighted(loss, weights)`, has the landscape that it has of a sample without them.

    The least `lam` is sought, by bisection, for which accelerated projected descent brings
    `1/2 sum_k (sigma_k(W - 1 1^T) / (n p)^{1/2} - lam)_+^2` down to almost nothing.

    Parameters
    ----------
    rows, columns, shape
        Indices of the observed entries and `(n, p)`, as `losses.Completion` takes them. One that
        is observed twice gets two weights.
    num_steps, num_rounds
        Steps for each `lam`, and values of `lam`.

    Returns
    -------
    Array
        A weight for each entry, in the units of `losses.Completion`: its share of all `n p` times
        the weight in `W`, so that equal weights are ones.

    Raises
    ------
    ValueError
        If the indices are none of such a matrix, a row or a column has no observed entry, when
        nothing can complete it, or a count is no positive integer.

    Notes
    -----
    The function minimised is convex. That a small norm removes bad local minima is proved by Cheng
    and Ge for their algorithm; for these weights it is measured alone. The weights do not depend on
    the values of the entries, so they are found once.

    Cost: `num_steps * num_rounds` singular value decompositions of `n x p`.

    References
    ----------
    Cheng and Ge (2018), Non-convex matrix completion against a semi-random adversary, arXiv
    1803.10846.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> semirandom = bw.experimental.semirandom
    >>> i, j = jnp.nonzero(jax.random.uniform(jax.random.key(0), (20, 20)) < 0.4)
    >>> i, j = (jnp.concatenate([x, jnp.tile(y, 60)]) for x, y in ((i, i[:9]), (j, j[:9])))
    >>> w = semirandom.completion_weights(i, j, (20, 20))
    >>> before, after = (semirandom.pattern_distance(i, j, (20, 20), w) for w in (None, w))
    >>> bool(after < before / 2)
    True
    """
    pattern = _pattern(rows, columns, shape)
    steps = _checks.positive_int("num_steps", num_steps)
    rounds = _checks.positive_int("num_rounds", num_rounds)
    counts = _counts(pattern)
    W = _flattened(counts, steps, rounds)
    share = pattern.rows.size / W.size
    # Entries observed several times share the weight of their place.
    places = counts[pattern.rows, pattern.columns]
    return share * W[pattern.rows, pattern.columns] / places


def pattern_distance(
    rows: Any, columns: Any, shape: tuple[int, int], weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """`||W - 1 1^T|| / (n p)^{1/2}` for weights of observed entries, by default equal ones.

    Examples
    --------
    >>> from bwflow.experimental import semirandom
    >>> print(semirandom.pattern_distance([0, 1], [0, 1], (2, 2)).round(4))
    1.0
    """
    pattern = _pattern(rows, columns, shape)
    m, (n, p) = pattern.rows.size, pattern.shape
    w = jnp.ones(m) if weights is None else _checks.real_array("weights", weights, ndim=1)
    if w.size != m:
        raise ValueError(f"weights must have {m} entries, one for each observed; got {w.size}.")
    W = jnp.zeros((n, p), w.dtype).at[pattern.rows, pattern.columns].add(w * (n * p / m))
    return jnp.linalg.norm(W - 1, 2) / (n * p) ** 0.5


def _pattern(rows: Any, columns: Any, shape: tuple[int, int]) -> Entries:
    pattern = Entries(rows, columns, shape)
    for name, x, size in (("rows", pattern.rows, shape[0]), ("columns", pattern.columns, shape[1])):
        if _checks.is_concrete(x):
            missing = np.setdiff1d(np.arange(size), np.asarray(x))
            if missing.size:
                raise ValueError(
                    f"{name} must name each of the {size} at least once, or nothing is known of it;"
                    f" got no entry of number {missing[0]}."
                )
    return pattern


def _counts(pattern: Entries) -> Float[Array, "n p"]:
    return jnp.zeros(pattern.shape).at[pattern.rows, pattern.columns].add(1)


@partial(jax.jit, static_argnums=(1, 2))
@full_precision
def _flattened(counts: Array, num_steps: int, num_rounds: int) -> Array:
    n, p = counts.shape
    unit = (n * p) ** 0.5
    observed = counts > 0

    def excess(W: Array, bound: Array) -> tuple[Array, Array]:
        U, s, Vt = jnp.linalg.svd((W - 1) / unit, full_matrices=False)
        over = jnp.maximum(s - bound, 0)
        return jnp.sum(over**2) / 2, (U * over[None, :]) @ Vt

    def lowered(W: Array, bound: Array) -> Array:
        """Accelerated descent, in units in which the gradient has Lipschitz constant 1."""

        def descended(W: Array) -> Array:
            return jnp.where(observed, jnp.maximum(W - unit * excess(W, bound)[1], 0), 0)

        return accelerated(descended, W, num_steps)

    def halve(_, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, W = state
        bound = (low + high) / 2
        new = lowered(W, bound)
        met = excess(new, bound)[0] <= _MET * bound**2
        return jnp.where(met, low, bound), jnp.where(met, bound, high), jnp.where(met, new, W)

    start = jnp.where(observed, counts * (n * p) / jnp.sum(counts), 0)
    high = jnp.linalg.norm((start - 1) / unit, 2)
    return lax.fori_loop(0, num_rounds, halve, (jnp.zeros_like(high), high, start))[2]
