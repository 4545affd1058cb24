"""Computing units of a store."""

import contextlib
import functools
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from bwflow import progress, store, study, sweeps
from bwflow._lockstep import in_groups
from bwflow._process import in_precision
from bwflow._units import Grid, Unit, constants
from bwflow.experiment import Experiment

AXES = ("dynamics", "depth", "bottleneck", "tau", "seed")
# Two programs at once, from two threads, have been seen to deadlock XLA on a CPU.
_ONE_AT_A_TIME = threading.Lock()


def root(path: str | Path) -> dict[str, Any]:
    """The attributes of a store, from its root alone: the rest may be damaged."""
    path = store.check_store(path)
    try:
        attrs = dict(json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"])
        if "experiment_hash" in attrs:  # the mark of a store that is filled unit by unit
            json.loads(attrs["chunks"]), json.loads(attrs["versions"])
            expected = {"x64", "platform", *(["target_file"] if "store_format" in attrs else [])}
            if missing := expected - attrs.keys():
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            if attrs["experiment_hash"] != digest(attrs["experiment"]):
                raise ValueError("its spec is not what its hash tells")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise store.DamagedStoreError(
            f"store {path} cannot be read: zarr.json, by which it is known, is damaged: {error}."
        ) from error
    if not isinstance(attrs.get("experiment"), str):
        raise ValueError(
            f"store {path} holds no study: it lacks the attribute 'experiment'; "
            "choose another store, or ask for overwrite to replace it."
        )
    return attrs


def digest(text: str) -> str:
    """A hash by which a change is seen."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def origin(experiment: Experiment, platform: str | None = None) -> dict[str, Any]:
    """What decides the bits of a result beside the spec and the chunk."""
    return {
        "versions": json.dumps(store.versions()),
        "x64": experiment.precision == "float64",
        "platform": platform or jax.default_backend(),
    }


def target_file(experiment: Experiment) -> str:
    """A hash of the file that a spec names as its target; empty if there is none."""
    try:
        with open(experiment.target.path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError:
        return ""


def check_origin(path: Path, attrs: Mapping[str, Any]) -> None:
    """Refuse to add to results of other versions or another platform, which differ in rounding."""
    differing = []
    for key, here in origin(Experiment.from_json(attrs["experiment"])).items():
        there = attrs.get(key)
        if key == "versions":
            old, new = json.loads(there or "{}"), json.loads(here)
            differing += [(name, old.get(name), v) for name, v in new.items() if old.get(name) != v]
        elif there != here:
            differing.append((key, there, here))
    if differing:
        shown = "; ".join(f"{key} is {old} there and {new} here" for key, old, new in differing)
        raise ValueError(
            f"store {path} was begun elsewhere: {shown}. Its other runs would differ in rounding; "
            "continue with what it was begun with."
        )


class _Study:
    """A store made ready to compute: its spec, target and programs."""

    def __init__(self, path: Path, attrs: Mapping[str, Any]):
        self.experiment = Experiment.from_json(attrs["experiment"])
        check_origin(path, attrs)
        self.target = study.kept_target(constants(path, study.TARGET))
        self.run = study.cell(self.experiment, self.target)
        self.axes = study.axes(self.experiment, self.target.dim)
        self.program = functools.cache(self._program)

    def _program(self, devices: int, **fixed: Any) -> Callable[..., dict[str, Array]]:
        """All runs of a chunk, on each device those of another one.

        With groups it takes, beside the axes, which of the runs are no padding.
        """

        def run(tau: Array, seed: Array) -> dict[str, Array]:
            return sweeps.record(self.run(tau=tau, seed=seed, **fixed))

        def keys(tau: Array, seed: Array) -> tuple[Array, Array]:
            return study.difficulty(self.experiment, self.target)(tau=tau, seed=seed, **fixed)

        size = self.experiment.group_size
        chunk = in_groups(run, keys, size) if size else jax.vmap(run)
        return jax.jit(over_devices(chunk, devices))


def over_devices(function: Callable, devices: int) -> Callable:
    """A function of arrays of runs with the runs shared out to that many devices.

    Each device has a loop of its own: nothing is exchanged, so none waits for a slower one.
    """
    if devices == 1:
        return function
    mesh = jax.make_mesh(
        (devices,), ("runs",), (AxisType.Auto,), devices=jax.local_devices()[:devices]
    )
    split = PartitionSpec("runs")
    return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)


@functools.lru_cache(maxsize=2)
def _study(path: Path, attrs: str) -> _Study:
    return _Study(path, json.loads(attrs))


def compute(path: Path, units: Sequence[Unit], *, devices: int = 1) -> None:
    """Compute units of one program, one on each device, and write them.

    Units that another process has done by now, or an extension has made larger, are left out.

    Raises
    ------
    ValueError
        If the store was begun with other versions or on another platform, or is another by now.
    OSError
        If the results cannot be written.
    """
    began, grid = progress.now(), Grid.open(path)
    units = [unit for unit in units if grid.has(unit) and not grid.is_done(unit)]
    if not units:
        return
    with _same(path):
        blocks = results(path, units, devices=devices)
    computed, grid = progress.now(), Grid.open(path)
    for unit, block in zip(units, blocks, strict=True):
        if grid.has(unit):
            grid.put(unit, block)
            where = {axis: unit[axis].start for axis in grid.chunks}
            progress.record(path, where, block["reason"].size, began, computed)


@contextlib.contextmanager
def _same(path: Path) -> Iterator[None]:
    """Refuse a store that another has replaced meanwhile, to which the results do not belong."""
    folder = os.open(path, os.O_RDONLY)
    try:
        yield
        if not os.path.samestat(os.fstat(folder), os.stat(path)):
            raise ValueError(f"store {path} was replaced while its runs were computed.")
    finally:
        os.close(folder)


def results(path: Path, units: Sequence[Unit], *, devices: int = 1) -> list[dict[str, np.ndarray]]:
    """The results of units of one program, not written."""
    attrs = root(path)
    with _ONE_AT_A_TIME, in_precision(Experiment.from_json(attrs["experiment"]).precision):
        ready = _study(path.resolve(), json.dumps(attrs))
        static, traced = ready.axes
        chunks = json.loads(attrs["chunks"])
        fixed = {name: static[name][units[0][name].start] for name in static}
        # The program is that of all devices, even if there are fewer units left.
        taken = [*units, *(devices - len(units)) * [units[-1]]]
        columns = [_padded_runs(unit, chunks, traced) for unit in taken]
        *axes, real = (np.concatenate(column) for column in zip(*columns, strict=True))
        told = (real,) if ready.experiment.group_size else ()
        found = jax.device_get(ready.program(devices, **fixed)(*axes, *told))
    sizes = [chunks[name] for name in traced]
    return [_block(found, index, sizes, unit) for index, unit in enumerate(units)]


def _padded_runs(
    unit: Unit, chunks: Mapping[str, int], traced: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Coordinates of the runs of a whole chunk, and which of them are in the unit.

    The last is repeated where the unit ends before.
    """
    sides, inside = [], []
    for name, values in traced.items():
        index = np.arange(unit[name].start, unit[name].start + chunks[name])
        sides.append(values[np.minimum(index, unit[name].stop - 1)])
        inside.append(index < unit[name].stop)
    real = np.logical_and(*np.meshgrid(*inside, indexing="ij"))
    return [side.ravel() for side in (*np.meshgrid(*sides, indexing="ij"), real)]


def _block(
    results: Mapping[str, np.ndarray], index: int, sizes: Sequence[int], unit: Unit
) -> dict[str, np.ndarray]:
    """The results of one unit, without its padding."""
    count = math.prod(sizes)
    kept = tuple(slice(unit[name].stop - unit[name].start) for name in ("tau", "seed"))
    block = {}
    for name, array in results.items():
        if name not in ("time", "step"):
            runs = array[index * count : (index + 1) * count]
            block[name] = runs.reshape(*sizes, *array.shape[1:])[kept][None, None, None]
    return block | {"success": block["reason"] == 0}
