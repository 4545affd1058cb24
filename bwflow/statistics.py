"""Convergence statistics of a sweep: how many runs arrived, when, and how fast at the end.

A run that did not arrive is censored at the end of its time: it counts in every quantile, which
are those of the Kaplan-Meier estimate, and it is infinite only if too few runs arrived.

First every run is reduced to a few numbers, then these are pooled over axes. Of a stored study
only the first step sees the records, one block of the grid at a time.
"""

import functools
import json
import math
import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import special

from bwflow import _units, store
from bwflow._lockstep import lockstep as lockstep

__all__ = ["algebraic_decay", "lockstep", "summary"]

_QUANTILES = (0.25, 0.5, 0.75)
_NEEDED = ("gap", "hit", "loss", "num_steps", "success")
# What is kept of a run.
_FLAGS = ("done", "arrived", "failed")
_NUMBERS = ("duration", "late_rate", "late_slope", "steps")
_AT_ONCE = 2**18  # numbers of one temporary array


def summary(
    ds: xr.Dataset | str | os.PathLike[str], *, over: str | Sequence[str] = "seed"
) -> xr.Dataset:
    """Statistics over one or several axes of a sweep.

    Parameters
    ----------
    ds
        What `bwflow.sweep` returns, with the probes `loss` and `gap`, run with `until`; or the
        path of a stored study, finished or not, which is read block by block. Where there is a
        variable `done`, runs that are not done count nowhere.
    over
        Axis to summarise, or several, whose runs are pooled.

    Returns
    -------
    xarray.Dataset
        Over the axes that are left:

        - `runs`, `arrived` and `failed`: counts of the runs that are done.
        - `converged`: `arrived / runs`, with its 95 % Wilson interval from `converged_low` to
          `converged_high`.
        - `hit`: Kaplan-Meier quantiles 0.25, 0.5, 0.75 of the time or step of arrival, infinite if
          beyond the end.
        - `late_rate`: median of `-d log(gap) / dt` over the last three decades of the gap.
        - `late_slope`: median of `d log(gap) / d log(t)` over the last two octaves of time.
        - `steps`: median of the steps taken.
        - `algebraic`: whether the theory predicts a power law for any of the pooled points of the
          grid, done or not (see `algebraic_decay`).

        Failed runs are censored at the end and left out of the two fits. What no run tells is NaN.

    Raises
    ------
    ValueError
        If `ds` is no dataset, or lacks a variable or an axis; if there is no store at the path;
        if `over` is empty or repeats an axis, or would pool times of flows with steps of descents.

    Notes
    -----
    Memory: 35 bytes per run of the grid, about 90 more per run of the largest pool while that is
    sorted, and the records: of a dataset all, of a store those of one block.

    References
    ----------
    E. L. Kaplan and P. Meier (1958), Nonparametric estimation from incomplete observations.
    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([1.0, 0.5])))
    >>> def experiment(*, seed):
    ...     start = bw.initializers.gaussian()(jax.random.key(seed), (2, 2))
    ...     loss = bw.losses.BuresWasserstein(target, tau=0.0)
    ...     return bw.gradient_descent(loss, start, optax.sgd(0.25), num_steps=40,
    ...                                until=bw.until.gap(1e-4), throw=False)
    >>> ds = bw.sweep(experiment, traced={"seed": jnp.arange(5)}, progress=False)
    >>> table = bw.statistics.summary(ds)
    >>> int(table["arrived"]), float(table["hit"].sel(quantile=0.5))
    (5, 7.0)
    >>> round(float(table["converged_low"]), 3), float(table["converged_high"])
    (0.566, 1.0)
    """
    stored = isinstance(ds, (str, os.PathLike))
    whole = store.open(Path(ds)) if stored else ds
    _require(whole, _NEEDED, "a sweep with probes loss and gap", ", or the path of a stored one")
    blocks = None
    if stored and "done" in whole:
        blocks = _units.finished(Path(ds))
    elif stored:  # written whole
        whole = store.read(Path(ds))
    pooled = _pooled_axes(whole, over)
    runs = per_run(whole, whole["hit"].dims) if blocks is None else _streamed(whole, blocks)
    return _pool(whole, runs, pooled)


def algebraic_decay(ds: xr.Dataset) -> xr.DataArray:
    """Where the gap must end in a power law of time instead of an exponential.

    Under the Bures-Wasserstein loss a singular value whose target eigenvalue does not exceed
    `tau` has to die out. From `N >= 2` layers on the flow slows down with it, `s' ~ -s^{3-2/N}`,
    and the gap falls like `t^{-N/(N-1)}`. Where `tau` equals a positive eigenvalue the loss is
    flat to fourth order, and the gap falls like `t^{-2N/(2N-1)}`, for one layer too. Under the
    Frobenius loss one layer has such a law at `tau` equal to any eigenvalue, zero included.
    Needs the variable `target_eigenvalues`; where that is missing, the answer is `False`.

    Raises
    ------
    ValueError
        If `ds` is no dataset, or has `target_eigenvalues` and lacks another variable of a study.

    Examples
    --------
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2, tau=(0.0, 0.5))
    >>> bw.statistics.algebraic_decay(bw.study.run(spec, progress=False)).squeeze().values.tolist()
    [False, True]
    """
    _require(ds, (), "what bwflow.study.run returns")
    if "target_eigenvalues" not in ds:
        return xr.zeros_like(ds["tau"], dtype=bool) if "tau" in ds.dims else xr.DataArray(False)
    _require(ds, ("bottleneck", "depth", "tau"), "what bwflow.study.run returns")
    spectrum = ds["target_eigenvalues"]
    index = xr.DataArray(np.arange(spectrum.size), dims="eigenvalue")
    learnable = index < ds["bottleneck"]
    # An eigenvalue meant to be equal to tau is so up to its rounding.
    rounding = 10 * spectrum.size * np.finfo(spectrum.dtype).eps * float(spectrum.max())
    excess = spectrum - ds["tau"]
    dies = (learnable & (excess <= rounding)).any("eigenvalue")
    equal = learnable & (abs(excess) <= rounding)
    frobenius = json.loads(ds.attrs.get("experiment", "{}")).get("loss") == "frobenius"
    touches = (equal & (frobenius | (spectrum > rounding))).any("eigenvalue")
    return xr.where(ds["depth"] > 1, dies, touches)


def _require(ds: object, names: Sequence[str], expected: str, other: str = "") -> None:
    """Refuse what is no dataset or lacks one of the variables."""
    if not isinstance(ds, xr.Dataset):
        kind = type(ds).__name__
        raise ValueError(f"ds must be an xarray.Dataset, {expected}{other}; got {kind}.")
    missing = [name for name in names if name not in ds.variables]
    if missing:
        raise ValueError(f"ds must be {expected}; it lacks {', '.join(missing)}.")


def _pooled_axes(ds: xr.Dataset, over: str | Sequence[str]) -> tuple[str, ...]:
    """The axes to pool, refused where that makes no sense."""
    names = (over,) if isinstance(over, str) or not np.iterable(over) else tuple(over)
    axes = ds["hit"].dims
    for name in names:
        if not (isinstance(name, str) and name in axes):
            raise ValueError(
                f"over must name axes among {', '.join(map(str, axes)) or 'none'}: ds must be a "
                f"sweep over {name!r}; it lacks the axis {name!r}."
            )
    if not names or len(set(names)) != len(names):
        raise ValueError(f"over must name one axis or several, each once; got {list(names)}.")
    if len(_clocks(ds)) == 2:
        flows = ds["dynamics"] == "flow"
        if set(flows.dims) & set(names) and flows.any() and not flows.all():
            raise ValueError(
                "over must leave out dynamics: flows arrive at times and descents at steps, which "
                f"cannot be pooled; got {list(names)}."
            )
    return names


def _clocks(ds: xr.Dataset) -> list[str]:
    """Which clocks there are."""
    if "time" not in ds.variables:
        _require(ds, ("step",), "a sweep with times or steps")
    elif "step" in ds.variables:
        _require(ds, ("dynamics",), "a sweep of both dynamics")
    return [name for name in ("time", "step") if name in ds.variables]


def _clock(ds: xr.Dataset) -> xr.DataArray:
    """Times of flows and steps of descents as one array of floats."""
    clocks = [ds[name].astype(float).reset_coords(drop=True) for name in _clocks(ds)]
    if len(clocks) == 1:
        return clocks[0]
    return xr.where(ds["dynamics"] == "flow", *clocks)


def _streamed(whole: xr.Dataset, blocks: Iterable[xr.Dataset]) -> dict[str, np.ndarray]:
    """The numbers of all runs of a stored study; those in none of the blocks are not done."""
    axes = whole["hit"].dims
    shape = tuple(whole.sizes[axis] for axis in axes)
    runs = {name: np.zeros(shape, bool) for name in _FLAGS}
    runs |= {name: np.full(shape, np.nan) for name in _NUMBERS}
    for block in blocks:
        where = _units.located(block, whole)
        for name, values in per_run(block, axes).items():
            runs[name][where] = values
    return runs


def endings(ds: xr.Dataset, axes: Sequence[Hashable], clock: xr.DataArray) -> dict[str, np.ndarray]:
    """How every run of a dataset, with records at the times or steps `clock`, ended, by its axes.

    `duration` is the time or step of arrival, or of the end where a run did not arrive; NaN where
    one is not done.
    """
    hit = _grid(ds, axes, ds["hit"]).astype(float)
    done = ~np.isnan(hit)
    if "done" in ds:
        done &= _grid(ds, axes, ds["done"]).astype(bool)
    success = done & _grid(ds, axes, ds["success"]).astype(bool)
    arrived = success & (hit < np.inf)
    end = _grid(ds, axes, clock.max("save"))
    duration = np.where(done, np.where(arrived, hit, end), np.nan)
    return {"done": done, "arrived": arrived, "failed": done & ~success, "duration": duration}


def _grid(ds: xr.Dataset, axes: Sequence[Hashable], array: xr.DataArray, *last: str) -> np.ndarray:
    """A variable of a dataset along all its axes."""
    sizes = {axis: ds.sizes[axis] for axis in (*axes, *last)}
    return array.variable.set_dims(sizes).transpose(*sizes).values


def per_run(ds: xr.Dataset, axes: Sequence[Hashable]) -> dict[str, np.ndarray]:
    """What the statistics keep of every run of a dataset, by its axes; NaN where not done."""
    shape = tuple(ds.sizes[axis] for axis in axes)
    grid = functools.partial(_grid, ds, axes)
    clock = _clock(ds)
    ended = endings(ds, axes, clock)
    success = ended["done"] & ~ended["failed"]
    hit, start = grid(ds["hit"]).astype(float), ds["loss"].isel(save=0, drop=True)
    times, gap = grid(clock, "save"), grid(ds["gap"], "save")
    rounding = 100 * np.finfo(start.dtype).eps * grid(start).astype(float)
    fits = np.full((2, *shape), np.nan)
    size = max(1, _AT_ONCE // times.shape[-1])
    succeeded = np.flatnonzero(success)
    for first in range(0, succeeded.size, size):
        some = np.unravel_index(succeeded[first : first + size], shape)
        # Contiguous: the order in which numpy adds, and so the last bit, hangs on the layout.
        of_some = [np.ascontiguousarray(x[some], float) for x in (times, gap, hit, rounding)]
        fits[:, *some] = _late_decay(*of_some)
    steps = np.where(ended["done"], grid(ds["num_steps"]), np.nan)
    return ended | {"late_rate": fits[0], "late_slope": fits[1], "steps": steps}


def _late_decay(
    times: np.ndarray, gap: np.ndarray, hit: np.ndarray, rounding: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`-d log gap / dt` and `d log gap / d log t` by least squares at the end of each run.

    A row is a run. The answer for one does not depend on the others, to the last bit.
    """
    row = np.arange(len(gap))
    seen = np.isfinite(times) & np.isfinite(gap)
    met = np.isfinite(hit)
    # Without a tolerance runs go on at rounding level.
    sunk = np.logical_or.accumulate(seen & (gap <= rounding[:, None]), axis=1)
    used = seen & np.where(met[:, None], times < hit[:, None], ~sunk)
    # Rows after the hit repeat its state, so the last row has the gap at the hit.
    t = np.column_stack([times, hit])
    g = np.column_stack([gap, gap[row, _last(seen)]])
    used = np.column_stack([used, met & seen.any(1)]) & (g > 0)
    t, g = np.where(used, t, 1.0), np.where(used, g, 1.0)
    end = _last(used)
    with np.errstate(over="ignore"):
        late = used & (g <= 1e3 * g[row, end][:, None])
    octaves = used & (t > 0) & (t >= t[row, end][:, None] / 4)
    log_t, log_g = np.log(np.where(octaves, t, 1.0)), np.log(g)
    return -_slope(t, log_g, late), _slope(log_t, log_g, octaves)


def _last(used: np.ndarray) -> np.ndarray:
    """Index of the last true entry of each row; the last of all where there is none."""
    return used.shape[1] - 1 - np.argmax(used[:, ::-1], axis=1)


def _slope(x: np.ndarray, y: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Slope of the straight line through the used points of each row; NaN for less than three."""
    count = used.sum(1)
    spread = np.where(used, x, -np.inf).max(1) - np.where(used, x, np.inf).min(1)
    known = (count >= 3) & (spread > 0)
    dx, dy = (
        np.where(used, z - (np.where(used, z, 0.0).sum(1) / np.maximum(count, 1))[:, None], 0.0)
        for z in (x, y)
    )
    product, square = (dx * dy).sum(1), (dx * dx).sum(1)
    slope = np.full(len(x), np.nan)
    return np.divide(product, square, out=slope, where=known & (square > 0))


def _pool(ds: xr.Dataset, runs: dict[str, np.ndarray], over: tuple[str, ...]) -> xr.Dataset:
    """The numbers of runs over axes of a sweep, reduced over some of them."""
    axes = ds["hit"].dims
    kept = tuple(axis for axis in axes if axis not in over)
    order = [axes.index(axis) for axis in (*kept, *over)]
    shape = (1, *(ds.sizes[axis] for axis in kept))  # one cell at least
    cells, members = math.prod(shape), math.prod(ds.sizes[axis] for axis in over)
    size = max(1, _AT_ONCE // members)
    parts = []
    for first in range(0, cells, size):
        some = np.unravel_index(np.arange(first, min(first + size, cells)), shape)
        pools = {name: values.transpose(order)[None][some] for name, values in runs.items()}
        parts.append(_statistics(**{name: x.reshape(-1, members) for name, x in pools.items()}))
    result = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        dims = kept if values.ndim == 1 else (*kept, "quantile")
        result[name] = (dims, values.reshape((*shape[1:], *values.shape[1:])))
    predicted = algebraic_decay(ds)
    if pooled := set(predicted.dims) & set(over):
        predicted = predicted.any(pooled)
    coords = {
        name: coord for name, coord in ds["hit"].coords.items() if not set(coord.dims) & set(over)
    }
    return xr.Dataset(result, coords | {"quantile": list(_QUANTILES)}).assign(algebraic=predicted)


def _statistics(
    done: np.ndarray, arrived: np.ndarray, failed: np.ndarray, duration: np.ndarray, **numbers
) -> dict[str, np.ndarray]:
    """Those of pools of runs; a row is a pool."""
    runs, arrivals = done.sum(1), arrived.sum(1)
    converged, low, high = _wilson(arrivals, runs)
    return {
        "runs": runs,
        "arrived": arrivals,
        "failed": failed.sum(1),
        "converged": converged,
        "converged_low": low,
        "converged_high": high,
        "hit": _kaplan_meier(duration, arrived, done),
        **{name: _median(values) for name, values in numbers.items()},
    }


def _wilson(successes: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, ...]:
    """A proportion, and the ends of its 95 % score interval; NaN of no trials."""
    z = special.ndtri(0.975)
    n = np.where(trials > 0, trials, np.nan)
    p = successes / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # There middle and half of the interval are equal, or add up to one, but for rounding.
    low = np.where(p == 0, 0.0, middle - half)
    high = np.where(p == 1, 1.0, middle + half)
    return p, low, high


def _kaplan_meier(duration: np.ndarray, arrived: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Quantiles of the time of arrival; infinite where the estimate does not reach them.

    With `r` runs at risk out of `n`, the estimate of what is under way is `r / n` times
    `r_j / (r_j - 1)` for each run `j` censored before: it hands its share on to those that stay.
    That is exact up to the first run that is censored, however many there are.
    """
    order = np.lexsort((~arrived, duration, ~done), axis=-1)
    t, arrives = (np.take_along_axis(x, order, axis=1) for x in (duration, arrived))
    count = done.sum(1)[:, None]
    staying = count - np.arange(1, t.shape[1] + 1)
    share = np.where(arrives | (staying < 1), 1.0, (staying + 1) / np.maximum(staying, 1))
    under_way = staying / np.maximum(count, 1) * np.cumprod(share, axis=1)
    quantiles = np.full((len(t), len(_QUANTILES)), np.inf)
    for column, q in zip(quantiles.T, _QUANTILES, strict=True):
        reached = arrives & (1 - under_way >= q - 1e-12)
        first = reached.argmax(1)[:, None]
        column[:] = np.where(reached.any(1), np.take_along_axis(t, first, axis=1)[:, 0], np.inf)
    return np.where(count > 0, quantiles, np.nan)


def _median(values: np.ndarray) -> np.ndarray:
    """Of the finite numbers of each row; NaN of none."""
    known = np.isfinite(values)
    count = known.sum(1)[:, None]
    ordered = np.sort(np.where(known, values, np.nan), axis=1)
    low, high = (
        np.take_along_axis(ordered, i, axis=1) for i in (np.maximum(count - 1, 0) // 2, count // 2)
    )
    return (low[:, 0] + high[:, 0]) / 2
