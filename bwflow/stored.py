"""Studies on disk: made, continued, extended and repaired, one run made again.

The store is all there is: an `Experiment`, the target, and of every run its results or that they
are not there yet. `bwflow.jobs` has the processes that compute them.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bwflow import plan, progress, store, study, sweeps
from bwflow._compute import AXES, check_origin, digest, origin, root, target_file
from bwflow._process import in_precision
from bwflow._rerun import rerun
from bwflow._spec import flat
from bwflow._units import Grid, Unit, adopt, check_chunks, clear, constants
from bwflow._units import create as create_grid
from bwflow.covariances import Target
from bwflow.experiment import Experiment

__all__ = ["create", "experiment_of", "extend", "repair", "rerun"]

_BEGUN = ("versions", "x64", "platform", "target_file", "store_format")
_LISTS = ("dynamics", "network.depth", "network.bottleneck", "tau")


def create(
    experiment: Experiment,
    path: str | Path,
    *,
    overwrite: bool = False,
    platform: str | None = None,
) -> Path:
    """Make the store of a study, without results; one of the same study is kept as it is.

    Parameters
    ----------
    experiment
        The spec.
    path
        Folder of the store. Logs go to a folder of the same name with `-log` at the end.
    overwrite
        Whether a store that is there is replaced.
    platform
        `"cpu"`, `"gpu"` or `"tpu"`, where the runs will be computed; by default where this is.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ValueError
        If there is a store of another study, naming the keys that differ; if `path` is something
        else; if `experiment` is no `Experiment` or cannot run; if there is no such platform.

    Notes
    -----
    The chunk along `tau` and `seed` is fixed here (`bwflow.plan.chunk`): runs of a chunk advance
    together, and the bits of a result depend, to rounding, on how many they are.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> bw.store.open(folder)["done"].sum().item()
    0
    """
    study.check_experiment(experiment)
    if platform not in (None, "cpu", "gpu", "tpu"):
        raise ValueError(f"platform must be 'cpu', 'gpu' or 'tpu'; got {platform!r}.")
    path = store.place(path)
    store.check_place(path)
    if path.exists() and not overwrite:
        match(experiment, path)
        return path
    n = study.target_size(experiment.target)
    experiment.programs(n)  # refuses networks that do not fit
    with in_precision(experiment.precision):
        target = study.make_target(experiment.target, np.dtype(experiment.precision))
        chunks: dict[str, int] = dict(zip(AXES[3:], plan.chunk(experiment, n), strict=True))
        try:
            with store.draft(path, overwrite=overwrite) as draft:
                _write_template(
                    experiment,
                    target,
                    draft,
                    chunks,
                    origin(experiment, platform)
                    | {"target_file": target_file(experiment), "store_format": store.FORMAT},
                )
        except FileExistsError:  # by now
            match(experiment, path)
    return path


def match(experiment: Experiment, path: str | Path) -> None:
    """Refuse a store of another study.

    Raises
    ------
    ValueError
        If there is no store of a study, or one of another; the message names what differs.
    """
    old, new = (flat(spec.to_dict()) for spec in (experiment_of(path), experiment))
    differing = [(key, (old[key], new[key])) for key in new if old[key] != new[key]]
    if not differing:
        file, kept = target_file(experiment), root(path).get("target_file", "")
        if experiment.target.kind == "file" and file and kept not in ("", file):
            raise ValueError(
                f"store {path} holds another study: what {experiment.target.path} holds has "
                "changed; choose another store, or ask for overwrite to replace it."
            )
        return
    shown = "; ".join(f"{key} is {old!r} there and {new!r} here" for key, (old, new) in differing)
    advice = "choose another store, or ask for overwrite to replace it."
    if {key for key, _ in differing} <= {"seeds", *_LISTS}:
        if _grows(old, new):
            advice = "bwflow extend adds runs to a store."
        elif _grows(new, old):
            advice = "it was extended; bwflow work goes on with it."
    raise ValueError(f"store {path} holds another study: {shown}; {advice}")


def _grows(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the axes of one study are part of those of another."""
    return old["seeds"] <= new["seeds"] and all(set(old[key]) <= set(new[key]) for key in _LISTS)


def experiment_of(path: str | Path) -> Experiment:
    """The spec of the study in a store.

    Raises
    ------
    ValueError
        If there is no store of a study, or its description is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> bw.stored.experiment_of(folder) == bw.Experiment(seeds=2)
    True
    """
    return Experiment.from_json(root(path)["experiment"])


def _write_template(
    experiment: Experiment,
    target: Target,
    path: Path,
    chunks: Mapping[str, int],
    begun: Mapping[str, Any],
) -> None:
    static, traced = study.axes(experiment, target.dim)
    outline = study.outline(experiment, target)
    attrs = {"experiment_hash": digest(experiment.to_json()), **begun}
    flags = outline["reason"].attrs
    outline["reason"].attrs |= {
        "flag_values": [-1, *flags["flag_values"]],
        "flag_meanings": f"not_run {flags['flag_meanings']}",
    }
    values = {name: sweeps.coordinate(listed) for name, listed in static.items()} | traced
    units = {name: chunks.get(name, 1) for name in values}
    create_grid(outline.assign_attrs(attrs), path, values, {**chunks, **units})


@contextlib.contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[None]:
    """One process at a time that changes what a store's grid is; others are refused, or wait."""
    import fcntl

    folder = progress.log_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ValueError(f"store {path} is being extended or repaired already.") from None
        yield


def extend(
    path: str | Path,
    *,
    seeds: int | None = None,
    tau: Sequence[float] = (),
    depth: Sequence[int] = (),
    bottleneck: Sequence[int] = (),
    dynamics: Sequence[str] = (),
) -> Experiment:
    """Add runs to a store: further seeds, or new values at the end of an axis.

    Nothing is computed. What is there stays; where the last chunk of an axis was not full, it is
    computed again, and its old runs get the same bits.

    Parameters
    ----------
    path
        The store.
    seeds
        New number of seeds.
    tau, depth, bottleneck, dynamics
        Values to add; those that are there already are left out.

    Returns
    -------
    Experiment
        The spec of the extended study.

    Raises
    ------
    ValueError
        If there is no store of a study, the seeds are fewer than there are, a value breaks a rule
        of the spec, the store was begun with other versions, or another process is extending it.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> bw.stored.extend(folder, seeds=3, tau=(0.1,)).seeds
    3
    >>> bw.store.open(folder)["tau"].values.tolist()
    [0.0, 0.1]
    """
    path = store.check_store(path)
    values = {"tau": tau, "depth": depth, "bottleneck": bottleneck, "dynamics": dynamics}
    settle(path)
    _extended(path, root(path), seeds, values)  # refuses, before anything is written
    with alone(path):
        attrs = root(path)
        asked = _extended(path, attrs, seeds, values)
        _renew(path, asked, attrs)
    return asked


def _extended(
    path: Path, attrs: Mapping[str, Any], seeds: int | None, values: Mapping[str, Any]
) -> Experiment:
    held = Experiment.from_json(attrs["experiment"])
    if seeds is None:
        seeds = held.seeds
    if seeds < held.seeds:
        raise ValueError(f"seeds must be at least the store's {held.seeds}; got {seeds}.")
    check_origin(path, attrs)
    network = {
        name: _joined(getattr(held.network, name), values[name]) for name in ("depth", "bottleneck")
    }
    asked = dataclasses.replace(
        held,
        network=dataclasses.replace(held.network, **network),
        seeds=seeds,
        tau=_joined(held.tau, values["tau"]),
        dynamics=_joined(held.dynamics, values["dynamics"]),
    )
    asked.programs(
        study.kept_target(constants(path, study.TARGET)).dim
    )  # refuses networks that do not fit
    return asked


def _joined(held: tuple, more: Any) -> tuple:
    values = [more] if isinstance(more, str) or not np.iterable(more) else list(more)
    return held + tuple(value for value in dict.fromkeys(values) if value not in held)


def _renew(path: Path, experiment: Experiment, attrs: Mapping[str, Any]) -> list[str]:
    """Bring description, coordinates and constants of a store to a spec."""
    with in_precision(experiment.precision):
        try:
            target = study.kept_target(constants(path, study.TARGET))
        except (ValueError, KeyError):  # damaged: from the spec then
            check_origin(path, attrs)
            file = experiment.target.kind == "file"
            if file and target_file(experiment) != attrs.get("target_file", ""):
                raise ValueError(
                    f"store {path} has lost its target, and {experiment.target.path} is not there "
                    "or not what it was; bring that back to repair the store."
                ) from None
            target = study.make_target(experiment.target, np.dtype(experiment.precision))
        kept = {key: attrs[key] for key in _BEGUN if key in attrs}  # the first stores lack some
        with store.scratch(path) as folder:
            template = folder / "template"
            _write_template(experiment, target, template, json.loads(attrs["chunks"]), kept)
            return adopt(template, path)


def settle(path: str | Path) -> Grid:
    """The grid of a store, after completing an extension that was interrupted."""
    path = store.check_store(path)
    with store.reading(path):
        if (grid := _settled(path)) is None:
            with alone(path, wait=True):
                if (grid := _settled(path)) is None:
                    _renew(path, experiment_of(path), root(path))
                    grid = Grid.open(path)
    return grid


def _settled(path: Path) -> Grid | None:
    """The grid, if it is that of the spec."""
    experiment, grid = experiment_of(path), Grid.open(path)
    lengths = (
        len(experiment.dynamics),
        len(experiment.network.depth),
        len(experiment.network.bottleneck),
        len(experiment.tau),
        experiment.seeds,
    )
    return grid if grid.shape == lengths else None


def repair(path: str | Path) -> tuple[list[str], list[Unit]]:
    """Find what is damaged in a store, and make it anew or forget it, to be computed again.

    Every file is read. What describes the store is compared with what its spec says; results that
    are missing, cut short or altered are removed, with those of the same chunk, which is then not
    done; files that a killed process left behind are removed.

    Returns
    -------
    tuple
        What was found, a line each, and the units to be computed again.

    Raises
    ------
    ValueError
        If there is no store of a study, or the root of its description is damaged; if its target is
        damaged and cannot be made again as it was.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> bw.stored.repair(folder)
    ([], [])
    """
    path = store.check_store(path)
    if "chunks" not in root(path):  # refuses, before anything is written
        raise ValueError(
            f"store {path} was written whole and cannot be made anew in parts; a sweep's can."
        )
    with alone(path):
        attrs = root(path)
        check_chunks(path, AXES, json.loads(attrs["chunks"]))
        found = [f"{name}: made anew" for name in _renew(path, experiment_of(path), attrs)]
        grid = Grid.open(path)
        damaged = grid.damaged()
        for reason, unit in damaged:
            grid.forget(unit)
            found.append(reason)
    clear(path)
    return found, [unit for _, unit in damaged]
