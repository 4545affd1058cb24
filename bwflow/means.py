"""Low-rank barycenters of more covariances than memory holds, pass by pass through a store."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, ArrayLike, Float
from tqdm.auto import tqdm

from bwflow import _checks, _units, geometry, store
from bwflow._process import in_precision
from bwflow._units import Grid
from bwflow.geometry import Barycenter, Factor
from bwflow.geometry.streaming import (
    Iteration,
    contribution,
    finished,
    sketch,
    sketched,
    usual_rtol,
)

__all__ = ["barycenter"]

_VERSION = "means-1"


@runtime_checkable
class Blocks(Protocol):
    """Covariances in blocks: `blocks[i]` are factors of some, `N_i x n x m`."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> ArrayLike: ...


def barycenter(
    blocks: Blocks,
    path: str | Path,
    *,
    rank: int,
    start: Factor | None = None,
    rtol: float | None = None,
    max_passes: int = 100,
    memory: int = 5,
    progress: bool = True,
    throw: bool = True,
) -> Barycenter:
    """The barycenter of rank `k` of covariances that come in blocks of factors, one at a time.

    The iteration of `bwflow.geometry.barycenter`: a pass over all blocks is one evaluation. What
    every block adds to it is kept in a store, so that a run that was interrupted goes on with the
    block where it was, by the same call, and ends with the same bits.

    Parameters
    ----------
    blocks
        Anything with a length and items, such as a list, a memory-mapped array of four dimensions
        or an object that reads files: item `i` holds the factors of a block, `N_i x n x m`, of
        float32 or float64. All blocks have one `n` and `m`, and none more covariances than the
        first.
    path
        Where the store is, or is to be made.
    rank
        Columns `k` of the factor of the mean, at most `n`.
    start
        Where to start; by default a random sketch of the arithmetic mean, by a pass of its own.
    rtol
        Residual to stop at, relative to `||F||`, as in `bwflow.geometry.barycenter`.
    max_passes
        Passes to stop at, the sketch included.
    memory
        How many earlier passes Anderson's method combines; 0 is the plain iteration.
    progress
        Whether to show a bar of the blocks of a pass, with the residual.
    throw
        Whether failure raises an error.

    Returns
    -------
    Barycenter
        The mean; `num_steps` counts passes. Its `gap` is infinite.

    Raises
    ------
    ValueError
        If `blocks` holds nothing, or a block is no real finite array of its shape; if `rank` or
        another number is out of range; if the store at `path` is of other blocks or another call.
    RuntimeError
        If the tolerance was not reached, unless `throw` is false.

    Notes
    -----
    Memory: one block, and some `memory` factors of the mean. Cost of a pass: a polar factor of size
    `m x k` for each covariance and products of size `N m n k`. The store takes `8 n k` bytes for
    each block and pass. Of the data it knows shapes, and a hash of the first and the last block,
    by which others are refused. Computation is in the precision of the first block.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import bwflow as bw
    >>> rng = np.random.default_rng(0)
    >>> blocks = [rng.normal(size=(50, 4, 2)) for _ in range(3)]
    >>> mean = bw.means.barycenter(blocks, f"{tempfile.mkdtemp()}/mean", rank=2, progress=False)
    >>> mean.covariance.shape, float(mean.residual) < 1e-9
    ((4, 4), True)
    """
    first = _block(blocks, 0, None)
    n = first.shape[1]
    if _checks.positive_int("rank", rank) > n:
        raise ValueError(f"rank must be at most {n}; got {rank}.")
    if start is not None:
        _checks.instance("start", start, Factor, "a bwflow.geometry.Factor")
        if start.factor.shape != (n, rank):
            raise ValueError(f"start must be {n} x {rank}; got shape {start.factor.shape}.")
    max_passes = _checks.positive_int("max_passes", max_passes)
    memory = _checks.integer("memory", memory, minimum=0)
    rtol = usual_rtol(first.dtype) if rtol is None else rtol
    _checks.scalar("rtol", rtol, first.dtype, minimum=0.0)
    path = store.place(path)
    with in_precision(str(first.dtype)):
        identity = _identity(blocks, first, rank, start, memory, max_passes)
        grid = _opened(path, identity, first, rank, len(blocks), max_passes)
        passes = _Passes(blocks, first, grid, progress)
        with passes.bar:
            found = _iterated(passes, rank, start, rtol, max_passes, memory)
        return geometry.concluded(found, throw)


class _Passes:
    """Sums over all blocks, of which the store has some already."""

    def __init__(self, blocks: Blocks, first: np.ndarray, grid: Grid, progress: bool):
        self.blocks, self.first, self.grid = blocks, first, grid
        self.bar = tqdm(unit="block", desc=grid.path.name, disable=not progress)

    def total(self, number: int, kernel: Any, F: Array) -> tuple[Array, Array]:
        """Of the contributions of all covariances to pass `number`, the mean."""
        units = [unit for unit in self.grid.units() if unit["pass"].start == number]
        self.bar.reset(len(units))
        for i, unit in enumerate(units):
            if not self.grid.is_done(unit):
                self.grid.put(unit, self._contribution(i, kernel, F))
            self.bar.update()
        found = [self.grid.read(unit) for unit in units]
        count = sum(one["count"].sum() for one in found)
        # In the order of the blocks: the same bits whoever computed them.
        average = sum(one["average"][0, 0] for one in found) / count
        value = sum(one["objective"][0, 0] for one in found) / count
        dtype = self.first.dtype
        return jnp.asarray(average, dtype), jnp.asarray(value, dtype)

    def _contribution(self, i: int, kernel: Any, F: Array) -> dict[str, np.ndarray]:
        block = _block(self.blocks, i, self.first)
        padded = np.zeros(self.first.shape, self.first.dtype)
        padded[: len(block)] = block
        average, value = kernel(F, padded, np.arange(len(padded)) < len(block))
        return {
            "average": np.asarray(average)[None, None],
            "objective": np.asarray(value)[None, None],
            "count": np.full((1, 1), len(block)),
        }


def _iterated(
    passes: _Passes, rank: int, start: Factor | None, rtol: float, max_passes: int, memory: int
) -> Barycenter:
    number, dtype = 0, passes.first.dtype
    if start is None:
        omega = sketch(passes.first.shape[1], rank, dtype)
        F = sketched(omega, passes.total(0, contribution("sketch"), omega)[0])
        number = 1
    else:
        F = jnp.asarray(start.factor, dtype)
    state, kernel = Iteration.at(F, memory), contribution("mean")
    while number < max_passes and (state.evaluations == 0 or bool(state.unfinished(rtol))):
        F = state.proposal()
        state = state.after(F, *passes.total(number, kernel, F))
        number += 1
        length = float(state.norm / jnp.linalg.norm(state.point))
        passes.bar.set_postfix_str(f"pass {number}, residual {length:.1e}")
    return finished(state, rtol, number)


def _block(blocks: Blocks, i: int, first: np.ndarray | None) -> Float[np.ndarray, "N n m"]:
    """The factors of a block; refused if they are not like those of the first."""
    try:
        count = len(blocks)
        block = blocks[i] if count else None
    except TypeError:
        count, block = 0, None
    if block is None:
        raise ValueError(f"blocks must have a length and items, one at least; got {type(blocks)}.")
    name = f"blocks[{i}]"
    values = np.asarray(_checks.real_floating(name, _checks.seen(name, block), 3))
    if not values.size or not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite and not empty; got shape {values.shape}.")
    if first is None:
        return values
    if values.shape[1:] != first.shape[1:] or len(values) > len(first):
        raise ValueError(
            f"{name} must be at most {len(first)} factors of {first.shape[1]} x {first.shape[2]}, "
            f"as the first block has; got shape {values.shape}."
        )
    return values.astype(first.dtype, copy=False)


def _identity(
    blocks: Blocks,
    first: np.ndarray,
    rank: int,
    start: Factor | None,
    memory: int,
    max_passes: int,
) -> dict[str, Any]:
    """What the bits in the store depend on."""
    last = _block(blocks, len(blocks) - 1, first)
    ends = [np.ascontiguousarray(x).tobytes() for x in (first, last)]
    origin = "" if start is None else np.asarray(start.factor, first.dtype).tobytes().hex()
    return {
        "kind": _VERSION,
        "blocks": len(blocks),
        "shape": list(first.shape),
        "dtype": str(first.dtype),
        "data": hashlib.sha256(b"".join(ends)).hexdigest(),
        "rank": rank,
        "start": hashlib.sha256(origin.encode()).hexdigest() if origin else "",
        "memory": memory,
        "max_passes": max_passes,
        "versions": store.versions(),
    }


def _opened(
    path: Path,
    identity: dict[str, Any],
    first: np.ndarray,
    rank: int,
    num_blocks: int,
    max_passes: int,
) -> Grid:
    """The store, made if there is none, refused if it is another's."""
    store.check_place(path)
    if not path.exists():
        axes = {"pass": np.arange(max_passes), "block": np.arange(num_blocks)}
        result = np.zeros((1, 1, first.shape[1], rank), first.dtype)
        outline = xr.Dataset(
            {
                "average": (("pass", "block", "row", "column"), result),
                "objective": (("pass", "block"), result[..., 0, 0]),
                "count": (("pass", "block"), np.zeros((1, 1), np.int64)),
            },
            coords={name: (name, values[:1]) for name, values in axes.items()},
            attrs={"means": json.dumps(identity)},
        )
        with store.draft(path) as draft:
            _units.create(outline, draft, axes, {"pass": 1, "block": 1})
    held = json.loads(store.open(path).attrs.get("means", "{}"))
    different = [key for key in identity if held.get(key) != identity[key]]
    if different:
        raise ValueError(
            f"store {path} is of another mean: {', '.join(different)} differ. Choose another path."
        )
    return Grid.open(path)
