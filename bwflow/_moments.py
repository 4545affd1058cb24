"""Moments of samples that come block by block, held as a factor of their covariance."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks

# Rows up to which blocks are only collected: below, a decomposition is not worth its calls.
_FEW_ROWS = 128


class Moments:
    """Count, mean and scatter `S = sum (x - mean) (x - mean)^T` of samples, mergeable.

    `S = R^T R` with the centred samples as rows of `R`, replaced by fewer rows with the same `S`
    when they have become many: never more than `2 n`, or about twice the rank where that is less.
    Two sets of samples with means `a`, `b` and counts `k`, `l` merge into the rows of both and
    `sqrt(k l / (k + l)) (b - a)`.

    Parameters
    ----------
    X
        A block of samples in rows, `num_samples x n`.

    Attributes
    ----------
    count
        Number of samples.
    dim
        Their size `n`.

    Raises
    ------
    ValueError
        If `X` is not a real floating matrix, is empty, not finite or traced; if what is merged
        has another width or dtype.

    Notes
    -----
    Everything is held in double precision in the memory of the host, whatever the dtype of the
    samples, and relative to the first of them, so that a mean far from 0 costs no accuracy. For `m`
    the rank, a sample costs about `8 n min(n, m)` multiplications in blocks of any size. Objects
    do not change: `update` and `merge` return new ones. They can be pickled, so that processes may
    take a share of the blocks each.

    References
    ----------
    Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance.

    Examples
    --------
    >>> import numpy as np
    >>> import bwflow as bw
    >>> X = np.random.default_rng(0).normal(size=(100, 3))
    >>> moments = bw.covariances.Moments(X[:50]).update(X[50:])
    >>> moments.count, bool(np.allclose(moments.mean, X.mean(axis=0)))
    (100, True)
    >>> bw.Target.from_samples(moments).rank
    3
    """

    def __init__(self, X: ArrayLike):
        rows = _samples("X", X)
        self.count, self.dim = rows.shape
        self._dtype = rows.dtype
        rows = np.array(rows, np.float64)
        self._origin = rows[0].copy()
        rows -= self._origin
        self._offset = rows.mean(axis=0)
        rows -= self._offset
        self._parts: tuple[np.ndarray, ...] = (rows,) if self.count > 1 else ()
        self._kept = 0
        self._reduce()

    @property
    def dtype(self) -> np.dtype:
        """Of the samples, as jax has it, and of what is computed from them."""
        return np.dtype(jax.dtypes.canonicalize_dtype(self._dtype))

    @property
    def mean(self) -> Float[np.ndarray, " n"]:
        """Mean of the samples."""
        return self._origin + self._offset

    def update(self, X: ArrayLike) -> "Moments":
        """Moments of these samples and those of another block."""
        return self.merge(Moments(X))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the samples of both."""
        _checks.instance("other", other, Moments, "bwflow.covariances.Moments")
        if (other.dim, other._dtype) != (self.dim, self._dtype):
            raise ValueError(
                f"Blocks of samples must have one width and one dtype; got {self.dim} columns of "
                f"{self._dtype} and {other.dim} of {other._dtype}."
            )
        both = object.__new__(Moments)
        both.count, both.dim, both._dtype = self.count + other.count, self.dim, self._dtype
        both._origin = self._origin
        apart = (other._origin - self._origin) + (other._offset - self._offset)
        share = other.count / both.count
        both._offset = self._offset + share * apart
        between = math.sqrt(self.count * share) * apart
        both._parts = (*self._parts, *other._parts, between[None, :])
        both._kept = max(self._kept, other._kept)
        both._reduce()
        return both

    def factor(self, *, ddof: int = 0) -> Float[Array, "n m"]:
        """`B` with `B B^T = S / (count - ddof)`, of at most `n` columns."""
        rows = self._rows()
        if len(rows) > self.dim:
            rows = _fewer(rows)
        scale = math.sqrt(divisor("X", self.count, ddof))
        if not np.any(rows):
            raise ValueError("X must hold samples that differ; all its rows are equal.")
        return jnp.asarray(rows.T / scale, self.dtype)

    def _rows(self) -> np.ndarray:
        return np.concatenate([np.empty((0, self.dim)), *self._parts])

    def _reduce(self) -> None:
        """Fewer rows, where there are twice as many as the last time, so that the cost adds up."""
        if sum(map(len, self._parts)) > 2 * max(self._kept, _FEW_ROWS):
            rows = _fewer(self._rows())
            self._parts, self._kept = (rows,), len(rows)


def divisor(name: str, count: int, ddof: int) -> int:
    """`count - ddof`, refused below 1."""
    left = count - _checks.integer("ddof", ddof, minimum=0)
    if left < 1:
        raise ValueError(
            f"{name} must hold more than ddof={ddof} samples in its rows; got {count} samples."
        )
    return left


def gathered(X: ArrayLike | Iterable[ArrayLike] | Moments) -> ArrayLike | Moments:
    """Moments of all the blocks, in one pass, if `X` is an iterable of matrices; else itself."""
    if isinstance(X, Moments) or not _in_blocks(X):
        return cast("ArrayLike | Moments", X)
    moments = None
    for i, block in enumerate(cast("Iterable[ArrayLike]", X)):
        one = Moments(_samples(f"block {i} of X", block))
        moments = one if moments is None else moments.merge(one)
    if moments is None:
        raise ValueError("X must hold at least one block of samples; got none.")
    return moments


def _in_blocks(X: Any) -> bool:
    """Whether these are matrices one after another, not an array or nested lists of numbers."""
    if hasattr(X, "__array__") or isinstance(X, (str, bytes, Mapping)):
        return False
    if isinstance(X, Sequence):
        return len(X) == 0 or getattr(X[0], "ndim", None) == 2
    return isinstance(X, Iterable)


def _samples(name: str, X: ArrayLike) -> np.ndarray:
    """The block as a finite real floating matrix of numpy, in its own precision."""
    array = _checks.real_floating(name, _checks.seen(name, X), 2)
    if not _checks.is_concrete(array):
        raise ValueError(f"{name} must not be traced: Moments are taken outside of jax.jit.")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}.")
    values = np.asarray(array)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity.")
    return values


def _fewer(rows: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "m n"]:
    """`R` with `R^T R` that of the rows, of as many rows as they have numerical rank, or `n`."""
    if rows.shape[0] >= rows.shape[1]:
        return _triangle(rows)
    triangle = _triangle(rows.T)
    U, s, _ = np.linalg.svd(triangle.T)
    kept = int(np.count_nonzero(s > max(rows.shape) * np.finfo(np.float64).eps * s[0]))
    return rows if kept == len(s) else U[:, :kept].T @ rows


def _triangle(A: Float[np.ndarray, "N n"]) -> Float[np.ndarray, "k n"]:
    return np.asarray(np.linalg.qr(A, mode="r"))
