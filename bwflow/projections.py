"""Projections that keep an iterate sparse or incoherent, and how they follow an optimiser's step.

The projections are plain functions; `projected(f)` makes an optax transformation of one, which goes
last in a chain and lands on `f(params + updates)`.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float
from scipy import special

from bwflow import _checks
from bwflow._types import Scalar

__all__ = ["Sparsity", "clip_rows", "double_threshold", "projected", "row_bound", "thresholded"]


class Sparsity(eqx.Module):
    """How sparse a matrix may be: entries in all, and shares of every row and column.

    Parameters
    ----------
    count
        Most entries that are not zero, `K`.
    row, column
        Largest share of them in a row and in a column, both in `(0, 1)`. These are worst cases, not
        means: see `of` and `bernoulli`.

    Raises
    ------
    ValueError
        If `count` is no number of at least 1, or a share is not between 0 and 1; in use, if `count`
        is larger than the matrix.

    Notes
    -----
    All three are traced, so that a phase diagram over them is one program.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> S = jnp.array([[0.0, 5.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    >>> bw.projections.Sparsity.of(S)
    Sparsity(count=2, row=0.3333333333333333, column=0.6666666666666666)
    """

    count: Any
    row: Any
    column: Any

    def __check_init__(self):
        _checks.scalar("count", self.count, float, minimum=1.0)
        for name, share in (("row", self.row), ("column", self.column)):
            x = _checks.scalar(name, share, float)
            if _checks.is_concrete(x) and not 0 < x < 1:
                raise ValueError(f"{name} must be a share between 0 and 1; got {x}.")

    @classmethod
    def of(cls, S: ArrayLike) -> "Sparsity":
        """That of a matrix: its entries, and the shares of its worst row and column.

        Raises
        ------
        ValueError
            If it is no finite matrix, has no entry that is not zero, or has a row or a column that
            has no other; where it is traced, only the shape is looked at.
        """
        S = _checks.real_array("S", S, ndim=2)
        seen = _checks.is_concrete(S)
        struck = np.asarray(S) != 0 if seen else jnp.asarray(S != 0, S.dtype)
        found = struck.sum(), struck.mean(1).max(), struck.mean(0).max()
        return cls(*(x.item() for x in found)) if seen else cls(*found)

    @classmethod
    def bernoulli(cls, rate: float, shape: tuple[int, int], *, failure: float = 1e-3) -> "Sparsity":
        """Bounds that hold, but with probability `failure`, where entries are struck independently.

        The worst of many rows has far more than the mean: of 200 rows of 200 entries at a rate of
        0.1 some 34, not 20, and with the mean for a bound recovery stalls. The counts are quantiles
        of binomial laws at `failure` divided by the number of rows, columns and 1 that they are
        asked of: a union bound.

        Parameters
        ----------
        rate
            Probability that an entry is struck, in `(0, 1)`.
        shape
            `(n, p)`.
        failure
            Probability that one of the bounds does not hold, in `(0, 1)`.

        Raises
        ------
        ValueError
            If a probability is not between 0 and 1, or the bound is a whole row or column: then no
            recovery is possible.
        """
        for name, x in (("rate", rate), ("failure", failure)):
            if not 0 < _checks.scalar(name, x, float) < 1:
                raise ValueError(f"{name} must be between 0 and 1; got {x}.")
        n, p = _checks.pair("shape", shape)
        of = {size: _exceeded(size, rate, failure / (n + p + 1)) for size in (n, p, n * p)}
        return cls(of[n * p], of[p] / p, of[n] / n)

    def threshold(self, S: Float[Array, "n p"], excess: ArrayLike = 1.0) -> Float[Array, "n p"]:
        """`S` cut to this sparsity, or to `excess` times it: see `double_threshold`."""
        return double_threshold(S, self, excess=excess)


def _exceeded(size: int, rate: float, failure: float) -> int:
    """The least count that is exceeded of `size` entries with at most this probability."""

    def is_rare(count: int) -> bool:
        return bool(special.bdtrc(count, size, rate) <= failure)

    return bisect_left(range(size + 1), True, key=is_rare)


def double_threshold(
    S: Float[Array, "n p"], sparsity: Sparsity, *, excess: ArrayLike = 1.0
) -> Float[Array, "n p"]:
    """First the largest entries overall, then of these the largest in their row and their column.

    The `excess K` entries of largest modulus are kept, and of them those which are among the
    `excess * row * p` largest of their row and the `excess * column * n` largest of their column,
    numbers rounded down.

    Parameters
    ----------
    S
        `n x p`.
    sparsity
        Bounds `K`, `row` and `column`.
    excess
        Factor on all three, `gamma`; at least 1. More than the truth has must be kept, or what is
        cut wrongly never comes back, and everything that is kept wrongly slows the rest: 1.2 to 2.

    Raises
    ------
    ValueError
        If `S` is no matrix, `sparsity` is none, `K` is larger than the matrix, or `excess` is below
        1.

    Notes
    -----
    Cost: some 200 passes over the matrix (100 in single precision), whatever the numbers, which may
    be traced; no sorting. Entries of equal modulus stay or go together, so that there may be more
    than the bound. The derivative is that of the entries which stay.

    References
    ----------
    Zhang, Wang and Gu (2018), arXiv 1702.06525.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import projections
    >>> S = jnp.array([[4.0, 3.0, 0.1], [2.0, 0.2, 0.1], [0.3, 0.1, 0.1]])
    >>> projections.double_threshold(S, projections.Sparsity(3, 0.4, 0.4)).tolist()
    [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    S = _checks.real_array("S", S, ndim=2, finite=False)
    _checks.instance("sparsity", sparsity, Sparsity, "a bwflow.projections.Sparsity")
    n, p = S.shape
    _checks.scalar("excess", excess, float, minimum=1.0)
    if _checks.is_concrete(sparsity.count) and sparsity.count > n * p:
        raise ValueError(
            f"sparsity must have a count of at most {n * p}, the entries of a matrix of shape "
            f"{(n, p)}; got {sparsity.count}."
        )
    return _double_threshold(S, _checks.traced_numbers((sparsity, excess), S.dtype))


@jax.jit
def _double_threshold(S: Array, bounds: tuple[Sparsity, Array]) -> Array:
    sparsity, excess = bounds
    n, p = S.shape

    def number(bound: ArrayLike, size: int) -> Array:
        # A product that rounding has left just below an integer is that integer.
        wanted = jnp.asarray(bound, S.dtype) * excess * (1 + 4 * jnp.finfo(S.dtype).eps)
        return jnp.clip(jnp.floor(wanted), 1, size).astype(jnp.int32)

    sizes = jnp.abs(lax.stop_gradient(S))
    kept = sizes >= _largest(sizes, number(sparsity.count, n * p), None)
    sizes = jnp.where(kept, sizes, 0)
    kept &= sizes >= _largest(sizes, number(jnp.asarray(sparsity.row, S.dtype) * p, p), 1)
    kept &= sizes >= _largest(sizes, number(jnp.asarray(sparsity.column, S.dtype) * n, n), 0)
    return jnp.where(kept, S, 0)


def _largest(sizes: Array, k: Array, axis: int | None) -> Array:
    """The `k`-th largest of numbers that are not negative, bit by bit from above.

    They are in the order of their bits, and counting is much cheaper than sorting.
    """
    width = 8 * sizes.dtype.itemsize
    integer = jnp.uint32 if width == 32 else jnp.uint64
    bits = lax.bitcast_convert_type(sizes, integer)

    def extend(i: Array, found: Array) -> Array:
        longer = found | lax.shift_left(jnp.ones((), integer), jnp.asarray(width - 2 - i, integer))
        enough = jnp.sum(bits >= longer, axis=axis, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, longer, found)

    start = jnp.zeros_like(bits, shape=jnp.sum(bits, axis=axis, keepdims=True).shape)
    return lax.bitcast_convert_type(lax.fori_loop(0, width - 1, extend, start), sizes.dtype)


def clip_rows(X: Float[Array, "n r"], bound: ArrayLike) -> Float[Array, "n r"]:
    """`X` with rows of norm at most `bound`: longer ones are shortened.

    The projection on incoherent factors; `row_bound` gives bounds.

    Raises
    ------
    ValueError
        If `X` is no matrix or `bound` is not positive.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import projections
    >>> projections.clip_rows(jnp.array([[3.0, 4.0], [0.6, 0.8]]), 2.0).round(2).tolist()
    [[1.2, 1.6], [0.6, 0.8]]
    """
    X = _checks.real_array("X", X, ndim=2, finite=False)
    bound = jnp.asarray(_checks.scalar("bound", bound, X.dtype, positive=True))
    squares = jnp.sum(X**2, axis=1, keepdims=True)
    long = squares > bound**2
    return X * jnp.where(long, bound / jnp.sqrt(jnp.where(long, squares, 1)), 1)


def row_bound(X: Float[Array, "n r"], coherence: ArrayLike) -> Scalar:
    """`sqrt(mu r / n) ||X||`, `mu` the coherence: what `clip_rows` takes for a factor like `X`.

    `||X||` is its largest singular value. The coherence of a subspace is at least 1; a bound must
    leave room, for that of the truth is not known and `||X||` is not that of the truth.

    Raises
    ------
    ValueError
        If `X` is no matrix or the coherence is below 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import projections
    >>> print(projections.row_bound(3.0 * jnp.eye(4, 1), 4.0).round(4))
    3.0
    """
    X = _checks.real_array("X", X, ndim=2)
    mu = jnp.asarray(_checks.scalar("coherence", coherence, X.dtype, minimum=1.0))
    return jnp.sqrt(mu * X.shape[1] / X.shape[0]) * jnp.linalg.norm(X, 2)


def projected(*projections: Callable[[Array], Array]) -> optax.GradientTransformationExtraArgs:
    """Updates that land on a projection: `u` becomes `f(x + u) - x` for every leaf `x`.

    One function for all leaves, or one for each. Put it last in a chain.

    Raises
    ------
    ValueError
        If one is no function; in the update, if the parameters are not given or have another number
        of leaves.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> clipped = bw.projections.projected(lambda X: bw.projections.clip_rows(X, 1.0))
    >>> optimizer = optax.chain(optax.sgd(0.1), clipped)
    """
    for f in projections:
        _checks.function("projections", f, "an array")
    if not projections:
        raise ValueError("projections must be one function or more; got none.")

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("params must be given to the update of projected; got None.")
        leaves, structure = jax.tree.flatten(params)
        functions = projections * len(leaves) if len(projections) == 1 else projections
        if len(functions) != len(leaves):
            raise ValueError(
                f"projections must be one function or {len(leaves)}, one for each leaf of the "
                f"parameters; got {len(functions)}."
            )
        steps = zip(functions, leaves, jax.tree.leaves(updates), strict=True)
        return jax.tree.unflatten(structure, [f(x + u) - x for f, x, u in steps]), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def thresholded(
    learning_rate: optax.ScalarOrSchedule, sparsity: Sparsity, *, excess: ArrayLike = 1.5
) -> optax.GradientTransformationExtraArgs:
    """Descent of a sparse matrix: a gradient step, cut by `double_threshold`.

    With `losses.Approximation` and a rate of 1 it is `S <- T(Y - L R^T)`, what is best given the
    rest but for the cut.

    Raises
    ------
    ValueError
        As `double_threshold`, or if the rate is no number and no schedule.

    References
    ----------
    Zhang, Wang and Gu (2018), arXiv 1702.06525; Yi, Park, Chen and Caramanis (2016), arXiv
    1605.07784.

    Examples
    --------
    >>> import bwflow as bw
    >>> optimizer = bw.projections.thresholded(1.0, bw.projections.Sparsity(40, 0.1, 0.1))
    """
    if not callable(learning_rate):
        _checks.scalar("learning_rate", learning_rate, float)
    _checks.instance("sparsity", sparsity, Sparsity, "a bwflow.projections.Sparsity")
    _checks.scalar("excess", excess, float, minimum=1.0)
    cut = partial(double_threshold, sparsity=sparsity, excess=excess)
    return optax.chain(optax.scale_by_learning_rate(learning_rate), projected(cut))
