"""What a page shows of a store, as plain numbers for JSON.

Of every combination of dynamics, depth, bottleneck and smoothing there are the statistics over all
its runs. Of single runs, by which a page makes its pictures anew when something else is chosen,
there are those of the first seeds, as many as keep the page small: seeds are drawn independently,
so the first of them are a sample like any other.
"""

import base64
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bwflow import _units, report, statistics, store
from bwflow._lockstep import is_told
from bwflow._trajectory import OUTCOMES, RESULTS
from bwflow.experiment import Experiment

AXES = ("dynamics", "depth", "bottleneck", "tau")
RUNS = 20_000  # of which there is more than their combination's statistics
RECORDS = 60
_LISTED, _LISTED_EACH = 2000, 10  # failures by name: at most, and of one combination and reason
_DIGITS = 6  # of the numbers of a single run
# Gaps are whole thousandths of a decade, in two bytes.
_PER_DECADE = 1000
_MISSING, _LEAST, _MOST = -(2**15), 1e-32, 1e30
_NOT_DONE = "."


def gathered(path: Path, *, runs: int = RUNS, records: int = RECORDS) -> dict[str, Any]:
    """The numbers of a page; nothing in them is NaN or infinite, for JSON has no such numbers."""
    ds = store.open(path)
    experiment = report.experiment_of(ds)
    _check(ds, path, runs)
    axes = {name: _listed(ds[name].values) for name in AXES}
    cells = int(np.prod([len(values) for values in axes.values()]))
    seeds = ds.sizes["seed"]
    sampled = max(1, min(seeds, runs // cells))
    stats = statistics.summary(path).transpose(*AXES, "quantile")
    clocks = {name: _clock(ds, name) for name in axes["dynamics"]}
    kept = {name: _thinned(clock, records) for name, clock in clocks.items()}
    return {
        "slug": experiment.slug,
        "store": str(path),
        "rerun": f"bwflow rerun {_quoted(path)}" if "done" in ds else None,
        "target": f"{experiment.target.kind}, n = {ds.sizes['eigenvalue']}",
        "minimised": f"{experiment.loss}, in {experiment.precision}",
        "versions": json.loads(ds.attrs.get("versions", "{}")),
        "tolerance": float(ds.attrs.get("tolerance", 0)),
        "axes": axes,
        "seeds": seeds,
        "sampled": sampled,
        "runs": ds["hit"].size,
        "outcomes": [[name, _advice(name)] for name in OUTCOMES],
        "ends": {name: float(np.nanmax(clock)) for name, clock in clocks.items()},
        "records": {name: _rounded(clocks[name][index]) for name, index in kept.items()},
        "all_records": {name: int((clock > 0).sum()) for name, clock in clocks.items()},
        "cells": _cells(ds, stats),
        "sample": _sample(path, ds, sampled, kept),
        **_failures(path, ds),
    }


def spec(path: Path) -> Experiment:
    """The spec of the study in a store."""
    return report.experiment_of(store.open(path))


def _check(ds: xr.Dataset, path: Path, runs: int) -> None:
    cells = ds["hit"].size // ds.sizes["seed"]
    if cells > runs:
        raise ValueError(
            f"store {path} has {cells} combinations of dynamics, depth, bottleneck and tau, and a "
            f"page shows at most {runs}; bwflow export --parquet makes a table of any size."
        )
    for clock in {"time", "step"} & set(ds.variables):
        if ds[clock].dims != ("save",):
            raise ValueError(f"store {path} must have one {clock} for all runs.")


def _listed(values: np.ndarray) -> list:
    """The values of an axis; floats by the shortest text that is read back as the same number."""
    if values.dtype.kind == "f":
        return [float(str(value)) for value in values]
    return values.tolist()


def _quoted(path: Path) -> str:
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _advice(name: str) -> str:
    return RESULTS[getattr(RESULTS, name)]


def _clock(ds: xr.Dataset, dynamics: str) -> np.ndarray:
    return ds["time" if dynamics == "flow" else "step"].values.astype(float)


def _thinned(clock: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most so many records after the start, spread evenly in the logarithm."""
    index = np.flatnonzero(clock > 0)
    if index.size <= most:
        return index
    wanted = np.linspace(np.log(clock[index[0]]), np.log(clock[index[-1]]), most)
    return index[np.unique(np.abs(np.log(clock[index])[:, None] - wanted).argmin(0))]


def _rounded(values: np.ndarray, digits: int = _DIGITS) -> list:
    """Numbers to some significant digits; whole ones as such, and None for what is not finite."""
    return [_number(value, digits) for value in np.asarray(values, float).ravel().tolist()]


def _number(value: float, digits: int) -> float | int | None:
    if not np.isfinite(value):
        return None
    value = float(f"{value:.{digits}g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _cells(ds: xr.Dataset, stats: xr.Dataset) -> dict[str, Any]:
    """The statistics of every combination, in the order of the grid."""
    told: dict[str, Any] = {
        name: stats[name].values.ravel().tolist() for name in ("runs", "arrived", "failed")
    }
    for name in ("late_rate", "late_slope", "steps"):
        told[name] = _rounded(stats[name].values, 9)
    told["algebraic"] = [
        int(flag)
        for flag in stats["algebraic"].broadcast_like(stats["runs"]).transpose(*AXES).values.ravel()
    ]
    low, middle, high = np.moveaxis(stats["hit"].values, -1, 0)
    for name, values in (("hit", middle), ("hit_low", low), ("hit_high", high)):
        told[name] = _rounded(values, 9)
    if is_told(ds):
        wasted = statistics.lockstep(ds)["wasted"].broadcast_like(stats["runs"])
        told["waiting"] = _rounded(wasted.transpose(*AXES).values, 9)
    else:
        told["waiting"] = [None] * stats["runs"].size
    return told


def _sample(path: Path, ds: xr.Dataset, seeds: int, kept: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is told of single runs, those of the first seeds, the seeds of a combination in a row.

    `state` has a character for each run: how it ended, as its place among the outcomes, or a dot.
    """
    axes = (*AXES, "seed")
    whole = ds.isel(seed=slice(seeds)).transpose(*axes, ...)
    shape = tuple(whole.sizes[axis] for axis in axes)
    state = np.full(shape, -1, np.int8)
    numbers = {name: np.full(shape, np.nan) for name in ("hit", "late_rate", "late_slope", "steps")}
    gap = np.full((*shape, max(map(len, kept.values()))), _MISSING, np.int16)
    blocks = _units.finished(path, seeds=seeds) if "done" in ds else [store.read(path)]
    for block in blocks:
        block = block.isel(seed=block["seed"].values < seeds).transpose(*axes, ...)
        where = _units.located(block, whole)
        found = statistics.per_run(block, axes)
        state[where] = np.where(found["done"], block["reason"].values, -1)
        numbers["hit"][where] = np.where(found["arrived"], found["duration"], np.nan)
        for name in ("late_rate", "late_slope", "steps"):
            numbers[name][where] = found[name]
        gap[where] = _gaps(block, kept, gap.shape[-1], found["done"] & ~found["failed"])
    codes = np.array([*map(str, range(len(OUTCOMES))), _NOT_DONE])
    return {
        "state": "".join(codes[state.ravel()]),
        **{name: _rounded(values) for name, values in numbers.items()},
        "gap": base64.b64encode(gap.astype("<i2").tobytes()).decode(),
        "gap_records": gap.shape[-1],
        "gap_per_decade": _PER_DECADE,
        "gap_missing": _MISSING,
    }


def _gaps(
    block: xr.Dataset, kept: dict[str, np.ndarray], records: int, shown: np.ndarray
) -> np.ndarray:
    """`gap / L(0)` of a block of runs in thousandths of a decade, at the records that are kept."""
    gaps = np.full((*shown.shape, records), _MISSING, np.int16)
    start = block["loss"].isel(save=0).transpose(*AXES, "seed").values.astype(float)
    floor = max(
        float(block.attrs.get("tolerance", 0)) or float(np.finfo(block["gap"].dtype).eps), _LEAST
    )
    for i, dynamics in enumerate(block["dynamics"].values.tolist()):
        index = kept[dynamics]
        gap = block["gap"].isel(dynamics=i, save=index).values.astype(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = gap / np.where(start[i] > 0, start[i], np.nan)[..., None]
            levels = np.rint(_PER_DECADE * np.log10(np.clip(share, floor, _MOST)))
        known = np.isfinite(levels) & shown[i][..., None]
        gaps[i][..., : index.size] = np.where(known, levels, _MISSING)
    return gaps


def _failures(path: Path, ds: xr.Dataset) -> dict[str, Any]:
    """How many runs of each combination failed for which reason, and some of them by name."""
    with store.damage(path):
        # First, since it is written last: of what is done then all is there.
        done = ds["done"].values if "done" in ds else np.ones(ds["hit"].shape, bool)
        reason = ds["reason"].transpose(*AXES, "seed").values
    order = [ds["hit"].dims.index(axis) for axis in (*AXES, "seed")]
    failed = np.flatnonzero(done.transpose(order) & (reason > 0))
    cell, seed = np.divmod(failed, ds.sizes["seed"])
    code = reason.ravel()[failed]
    kinds, inverse, counts = np.unique(
        np.stack([cell, code]), axis=1, return_inverse=True, return_counts=True
    )
    # The first of every combination and reason come before the second of any.
    by_kind = np.argsort(inverse.ravel(), kind="stable")
    rank = np.empty_like(by_kind)
    rank[by_kind] = np.arange(by_kind.size) - np.repeat(np.cumsum(counts) - counts, counts)
    few = np.flatnonzero(rank < _LISTED_EACH)
    few = np.sort(few[np.argsort(rank[few], kind="stable")][:_LISTED])
    return {
        "failures": np.vstack([kinds, counts]).T.tolist(),
        "failed": np.stack([cell[few], code[few], seed[few]], axis=1).tolist(),
    }
