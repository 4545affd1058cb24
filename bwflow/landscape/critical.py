"""Critical points of the smoothed losses: enumerated in order of the loss, with their curvature."""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._minima import Discrepancy
from bwflow.covariances import Target
from bwflow.landscape._levels import (
    Levels,
    balance,
    curvature_across,
    curvature_inside,
    curvature_outside,
    levels,
    positive_power,
)


@dataclass(frozen=True, eq=False, repr=False)
class CriticalPoint:
    """Covariance `S_J = sum_{j in J} (lambda_j - tau) omega_j omega_j^T` and the curvature there.

    Attributes
    ----------
    indices
        `J`, zero-based into `target.eigenvalues`. Of a repeated eigenvalue the first ones are named
        and stand for any subspace of the eigenspace of that dimension.
    rank, tau, loss, depth, target
        What was asked for; `rank` is the number of columns of `W`, the bottleneck of a network.
    value
        The loss.
    levels, counts
        The distinct eigenvalues of the target, and how many of each are learnt.
    """

    target: Target
    rank: int
    tau: float
    loss: Discrepancy
    depth: int
    value: float
    levels: Levels
    counts: np.ndarray

    def __repr__(self) -> str:
        return (
            f"CriticalPoint(indices={self.indices}, value={self.value:.6g}, "
            f"morse_index={self.morse_index})"
        )

    @cached_property
    def indices(self) -> tuple[int, ...]:
        starts = np.cumsum(self.levels.sizes) - self.levels.sizes
        taken = zip(starts, self.counts, strict=True)
        return tuple(int(i) for start, c in taken for i in range(start, start + c))

    @property
    def grassmannian(self) -> tuple[tuple[int, int], ...]:
        """`(q, r)` for every `r`-fold eigenvalue that is learnt `q` times, `0 < q < r`.

        The critical covariances form the product of these Grassmannians `Gr(q, r)`; where there is
        none, the point is the only one of its kind.
        """
        pairs = zip(self.counts.tolist(), self.levels.sizes.tolist(), strict=True)
        return tuple((q, r) for q, r in pairs if 0 < q < r)

    @property
    def covariance(self) -> Float[Array, "n n"]:
        """`S_J`, in the precision of the target."""
        W = self._factor
        return jnp.asarray(W @ W.T, self.target.eigenvalues.dtype)

    def end_to_end(self, columns: int | None = None) -> Float[Array, "n p"]:
        """A factor of `S_J`, `n x columns`: by default `rank` columns, the last ones zero.

        `bwflow.initializers.split_evenly` makes balanced layers of it.
        """
        k = len(self.indices)
        columns = self.rank if columns is None else _checks.integer("columns", columns, minimum=k)
        W = np.pad(self._factor, ((0, 0), (0, columns - k)))
        return jnp.asarray(W, self.target.eigenvalues.dtype)

    @property
    def _factor(self) -> np.ndarray:
        J = list(self.indices)
        lam = np.asarray(self.target.eigenvalues, np.float64)[J]
        vectors = np.asarray(self.target.eigenvectors, np.float64)[:, J]
        return vectors * np.sqrt(np.maximum(lam - self.tau, 0))

    @property
    def morse_index(self) -> int:
        """Negative eigenvalues of the Hessian on `n x rank` matrices, whatever the depth.

        With `k = |J|` it is the number of pairs `i not in J`, `j in J` with `lambda_i > lambda_j`,
        and `rank - k` times the number of `i not in J` with `lambda_i > tau`.
        """
        left = self.levels.sizes - self.counts
        above = np.cumsum(left) - left
        free = self.rank - int(self.counts.sum())
        return int(above @ self.counts + free * left[: self.levels.learnable].sum())

    @property
    def is_minimum(self) -> bool:
        """Whether no matrix of the rank has a lower loss."""
        return self.morse_index == 0

    @property
    def is_strict(self) -> bool:
        """Whether it is a strict saddle: the loss falls quadratically in some direction.

        Of the layers, balanced, if `depth` is above 1. There a saddle is not strict if `J` are the
        largest eigenvalues but fewer than could be learnt; at other layers with that product it can
        be.
        """
        return bool(np.any(self.hessian_eigenvalues < 0))

    @property
    def hessian_eigenvalues(self) -> np.ndarray:
        """Distinct eigenvalues of the Hessian, ascending; see `critical_points`."""
        return self._spectrum[0]

    @property
    def multiplicities(self) -> np.ndarray:
        """How often each of `hessian_eigenvalues` occurs."""
        return self._spectrum[1]

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        v, c, tau, N = self.levels.values, self.counts, self.tau, self.depth
        left, k = self.levels.sizes - c, int(c.sum())
        s2 = np.where(c > 0, np.maximum(v - tau, 0), 0)
        learnt = np.where(c > 0, v, 1)  # a stand-in where nothing is counted
        a, b = np.triu_indices(v.size)
        inside = curvature_inside(learnt[a], learnt[b], tau, self.loss) * balance(s2[a], s2[b], N)
        apart = s2 ** (1 - 1 / N)
        pairs = np.where(a == b, c[a] * (c[a] + 1) // 2, c[a] * c[b])
        across = curvature_across(v[:, None], learnt[None, :], tau, self.loss) * apart[None, :]
        blocks = [(inside, pairs), (across, left[:, None] * c[None, :])]
        if N == 1:
            blocks += [
                (curvature_outside(v, tau, self.loss), left * (self.rank - k)),
                (np.zeros(1), np.array([k * (k - 1) // 2 + k * (self.rank - k)])),
            ]
        values = np.concatenate([x.ravel() for x, _ in blocks])
        counted = np.concatenate([x.ravel() for _, x in blocks])
        kept = counted > 0 if N == 1 else (counted > 0) & (values != 0)
        return _merged(values[kept], counted[kept], self.target.dim)


def _merged(
    values: np.ndarray, multiplicities: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, ascending, what differs by rounding being one value."""
    order = np.argsort(values)
    values, multiplicities = values[order], multiplicities[order]
    rounding = n * np.finfo(float).eps * np.max(np.abs(values), initial=0)
    starts = np.flatnonzero(np.diff(values, prepend=-np.inf) > rounding)
    if not starts.size:
        return values, multiplicities
    return values[starts], np.add.reduceat(multiplicities, starts)


def critical_points(
    target: Target,
    rank: int,
    *,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
    depth: int = 1,
) -> Iterator[CriticalPoint]:
    """Critical points of a smoothed loss over matrices of bounded rank, the lowest loss first.

    They are the covariances `S_J = sum_{j in J} (lambda_j - tau) omega_j omega_j^T`, with `J` at
    most `rank` eigenvalues above `tau`, and their losses the sums over `i` not in `J` of
    `(sqrt(lambda_i) - sqrt(tau))^2` (Bures-Wasserstein) and `(lambda_i - tau)^2` (Frobenius). On
    `n x rank` matrices, with `k = |J|`, the Hessian at a factor of `S_J` has the eigenvalues

        BW: 2 (lambda_a + lambda_b - 2 tau) / (lambda_a + lambda_b)      a <= b in J
            2 (lambda_j - lambda_i) / (lambda_j + sqrt(lambda_i tau))    i not in J, j in J
            2 (1 - sqrt(lambda_i / tau))             i not in J, for each of rank - k null columns
        Frobenius: 4 (lambda_a + lambda_b - 2 tau),  4 (lambda_j - lambda_i),  4 (tau - lambda_i)

    and `k (k-1)/2 + k (rank-k)` zeros, since rotations of the columns change nothing. At balanced
    layers the first kind is multiplied by `sum_{l=1}^N s_a^{2(N-l)/N} s_b^{2(l-1)/N}`, with
    `s = (lambda - tau)^{1/2}`, the second by `s_j^{2(N-1)/N}`, and all others are zero.

    Parameters
    ----------
    target
        Covariance `Sigma0`.
    rank
        Number of columns of `W`: the bottleneck of a network. It may exceed the target's rank.
    tau
        Smoothing, in units of the covariance.
    loss
        `"bures_wasserstein"` or `"frobenius"`.
    depth
        Number of layers, to which `hessian_eigenvalues` and `is_strict` of the points belong. For
        more than one, only eigenvalues other than zero are listed, at balanced layers.

    Returns
    -------
    Iterator of CriticalPoint
        Lazy: their number is exponential, but the first ones are found at once.

    Raises
    ------
    ValueError
        If an argument is none of these, or `target` or `tau` is traced: values decide the order.

    Notes
    -----
    Proved: for `tau > 0`, and for the Frobenius loss, these are all critical points, on matrices
    and, over `W = W_N ... W_1`, of deep networks. The Bures-Wasserstein loss at `tau = 0` is smooth
    only where `rank(B^T W)` is as large as it can be: exactly the `J` of `min(rank, m)` elements
    are listed there, and smaller ones are kinks, at which the loss has a slope downwards.

    Repeated eigenvalues, told apart by more than `10 n eps lambda_1`, count once per number that
    is learnt. A level at `tau`, to the same tolerance, is not learnt: its null direction has
    curvature zero.

    Cost: a heap, whose steps take `O(n rank)`; a point's spectrum and covariance are computed when
    they are asked for.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027, for the critical points; curvatures derived here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([9.0, 4.0])))
    >>> for point in bw.landscape.critical_points(target, 1, tau=1.0):
    ...     print(point.indices, round(point.value, 5), point.morse_index)
    (0,) 1.0 0
    (1,) 4.0 1
    () 5.0 2
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    rank, depth = _checks.positive_int("rank", rank), _checks.positive_int("depth", depth)
    _checks.choice("loss", loss, get_args(Discrepancy))
    tau = concrete_tau(target, tau)
    return _enumerate(target, rank, tau, loss, depth)


def concrete_tau(target: Target, tau: ArrayLike) -> float:
    """The smoothing as a number; refused if it, or the target, is traced."""
    tau = _checks.scalar("tau", tau, target.eigenvalues.dtype, minimum=0.0)
    for name, x in (("target", target.eigenvalues), ("tau", tau)):
        if not _checks.is_concrete(x):
            raise ValueError(f"{name} must not be traced: its values decide what is critical.")
    return float(tau)


def _enumerate(
    target: Target, rank: int, tau: float, loss: Discrepancy, depth: int
) -> Iterator[CriticalPoint]:
    found = levels(target, tau)
    sizes = [int(size) for size in found.sizes[: found.learnable]]
    power = 0.5 if loss == "bures_wasserstein" else 1.0
    costs = ((found.values**power - tau**power) ** 2).tolist()
    rest = [int(size) * cost for size, cost in zip(found.sizes, costs, strict=True)][len(sizes) :]

    def value(counts: tuple[int, ...]) -> float:
        left = zip(sizes, counts, costs, strict=False)
        return math.fsum([(size - count) * cost for size, count, cost in left] + rest)

    kinks = loss == "bures_wasserstein" and tau == 0
    full = np.diff(np.minimum(np.cumsum([0, *sizes]), rank))
    root = tuple(int(count) for count in full)
    heap, seen = [(value(root), root)], {root}
    while heap:
        least, counts = heapq.heappop(heap)
        padded = np.pad(np.array(counts, int), (0, found.sizes.size - len(counts)))
        yield CriticalPoint(target, rank, tau, loss, depth, least, found, padded)
        for successor in _successors(counts, sizes, drop=not kinks):
            if successor not in seen:
                seen.add(successor)
                heapq.heappush(heap, (value(successor), successor))


def _successors(
    counts: tuple[int, ...], sizes: list[int], *, drop: bool
) -> Iterator[tuple[int, ...]]:
    """One eigenvalue replaced by one of the next level, or the lowest one left out.

    None of these lowers the loss, and every set is reached: through the largest sets of its size.
    """
    for g, count in enumerate(counts[:-1]):
        if count > 0 and counts[g + 1] < sizes[g + 1]:
            yield (*counts[:g], count - 1, counts[g + 1] + 1, *counts[g + 2 :])
    lowest = max((g for g, count in enumerate(counts) if count > 0), default=None)
    if drop and lowest is not None:
        yield (*counts[:lowest], counts[lowest] - 1, *counts[lowest + 1 :])


def minimizer_spectrum(
    target: Target,
    rank: int,
    *,
    depth: int = 1,
    tau: ArrayLike = 0.0,
    loss: Discrepancy = "bures_wasserstein",
) -> Float[Array, " e"]:
    """Eigenvalues of the Hessian at the (balanced) minimiser, without the zeros of the gauge.

    The formulas at `critical_points` for `J` the `k = min(rank, m)` leading eigenvalues, in three
    blocks: the pairs `a <= b < k`; `i >= k` with `j < k`, row by row of `i`, zero eigenvalues
    included; `i >= k` with the `rank - k` null columns. Gaps `L - L*` of the flow decay at twice
    the least of them, and steps of descent have to stay below 2 divided by the largest.

    Parameters
    ----------
    target, rank, tau, loss
        As `critical_points` takes them; here `tau` and the target may be traced.
    depth
        Number of layers.

    Returns
    -------
    Array
        `k (k+1) / 2 + (n-k) rank` values, not sorted.

    Raises
    ------
    ValueError
        If an argument is none of these.

    Notes
    -----
    Zeros say that the decay is not exponential, or the minimiser not unique: they occur for
    `lambda_k = lambda_{k+1}` and, at depth 2 or more, between null spaces: where `tau >= lambda_k`
    or `rank > m`. A pair of eigenvalues that are not learnt, `tau >= lambda_b`, has entries for
    one of its two eigenvalues, the lower one; all distinct values are there.

    References
    ----------
    Derived for the losses of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> bw.landscape.minimizer_spectrum(target, 1).tolist()
    [2.0, 1.5]
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    rank, depth = _checks.positive_int("rank", rank), _checks.positive_int("depth", depth)
    _checks.choice("loss", loss, get_args(Discrepancy))
    tau = _checks.scalar("tau", tau, target.eigenvalues.dtype, minimum=0.0)
    return _minimizer_spectrum(target.eigenvalues, tau, target.dim, rank, depth, loss)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _minimizer_spectrum(
    lam: Array, tau: Array, n: int, rank: int, depth: int, loss: Discrepancy
) -> Array:
    k = min(rank, lam.size)
    top, rest = lam[:k], jnp.pad(lam[k:], (0, n - lam.size))
    s2 = jnp.maximum(top - tau, 0)
    a, b = np.triu_indices(k)
    apart = positive_power(s2, 1 - 1 / depth)
    flat = 1.0 if depth == 1 else 0.0
    inside = jnp.select(
        [top[b] > tau, top[a] > tau],
        [
            curvature_inside(top[a], top[b], tau, loss) * balance(s2[a], s2[b], depth),
            curvature_across(top[b], top[a], tau, loss) * apart[a],
        ],
        flat * curvature_outside(top[a], tau, loss),
    )
    null = flat * curvature_outside(rest, tau, loss)
    across = jnp.where(
        top[None, :] > tau,
        curvature_across(rest[:, None], top[None, :], tau, loss) * apart[None, :],
        null[:, None],
    )
    return jnp.concatenate([inside, across.ravel(), jnp.repeat(null, rank - k)])
