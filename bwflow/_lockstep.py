"""Runs that advance together: groups of like difficulty, and how long runs wait for each other."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax import lax
from jaxtyping import Array

from bwflow import store

Run = Callable[..., dict[str, Array]]

_LAYOUT = "lockstep"  # attribute of a sweep in memory: axes, runs of a chunk by program, of a group


def in_groups(run: Run, difficulty: Callable[..., tuple[Array, ...]], group_size: int) -> Run:
    """All runs of a chunk, a group of them after the other, those of like difficulty in one.

    What is returned takes the axes of the runs, as `run` does, and which of them are no padding; it
    adds `group`, by which it is known what advanced together.
    """

    def chunk(*columns: Array) -> dict[str, Array]:
        *axes, real = columns
        size = min(group_size, real.size)
        order = jnp.lexsort((*reversed(jax.vmap(difficulty)(*axes)), ~real))
        last = jnp.sum(real, dtype=jnp.int32) - 1
        places = size * -(-real.size // size)
        # Where a group is not full its last run is computed again, which nothing has to wait for.
        taken = order[jnp.minimum(jnp.arange(places, dtype=jnp.int32), last)]

        def advance(index: Array, found: dict[str, Array]) -> dict[str, Array]:
            chosen = lax.dynamic_slice_in_dim(taken, index * size, size)
            rows = jax.vmap(run)(*(axis[chosen] for axis in axes))
            return {
                name: lax.dynamic_update_slice_in_dim(found[name], row, index * size, 0)
                for name, row in rows.items()
            }

        shapes = jax.eval_shape(jax.vmap(run), *(axis[taken] for axis in axes))
        empty = {name: jnp.zeros(row.shape, row.dtype) for name, row in shapes.items()}
        # Groups of nothing but padding, which are the last, are left out.
        found = lax.fori_loop(0, last // size + 1, advance, empty)
        place = jnp.argsort(order)
        rows = {name: row[place] for name, row in found.items()}
        return rows | {"group": (place // size).astype(jnp.int32)}

    return chunk


def layout(
    static: Mapping[str, list],
    traced: Mapping[str, np.ndarray],
    batch_sizes: list[int],
    group_size: int | None,
) -> dict[str, str]:
    """The attribute of a sweep in memory by which `lockstep` knows what advanced together."""
    sizes = {name: len(values) for name, values in {**static, **traced}.items()}
    told = {
        "sizes": sizes,
        "traced": list(traced),
        "batch_sizes": batch_sizes,
        "group_size": group_size or 0,
    }
    return {_LAYOUT: json.dumps(told)}


def lockstep(ds: xr.Dataset | str | os.PathLike[str]) -> xr.Dataset:
    """Share of the steps in which runs only waited for others, `1 - steps / lane_steps`.

    Runs that advance together, a chunk or a group of it, do so until the last of them has ended.

    Parameters
    ----------
    ds
        What `bwflow.sweep` or `bwflow.study.run` returns, whole; or a stored study, as it is opened
        or by its path, finished or not.

    Returns
    -------
    xarray.Dataset
        Over the axes with a program for each value (static ones; dynamics, depth, bottleneck):

        - `steps`: the sum of the steps of the runs that are done.
        - `lane_steps`: the sum of what they took in lockstep: over groups, or chunks where there
          are none, their size, padding included, times the most steps that a run of them took.
        - `wasted`: the share `1 - steps / lane_steps`; NaN where nothing is done.

    Raises
    ------
    ValueError
        If `ds` is no sweep, it is a part of one, or it does not tell what advanced together; if
        there is no store at the path.

    Notes
    -----
    A step is one of a solver or an update. Time follows lane steps as long as a step costs in
    proportion to the runs that advance together: on a CPU it does, nearly, from 16 runs on.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.eye(2))
    >>> def experiment(*, scale):
    ...     loss = bw.losses.BuresWasserstein(target, tau=0.0)
    ...     return bw.gradient_descent(loss, (scale * jnp.eye(2),), optax.sgd(0.25), num_steps=40,
    ...                                until=bw.until.gap(1e-3, absolute=True), throw=False)
    >>> ds = bw.sweep(experiment, traced={"scale": [0.1, 1.0]}, progress=False)
    >>> ds["num_steps"].values, float(bw.statistics.lockstep(ds)["wasted"])
    (array([6, 0], dtype=int32), 0.5)
    """
    stored = isinstance(ds, (str, os.PathLike))
    whole = store.open(Path(ds)) if stored else ds
    if not isinstance(whole, xr.Dataset) or "num_steps" not in whole.variables:
        kind = type(whole).__name__
        lacks = "num_steps" if isinstance(whole, xr.Dataset) else f"all of that: it is a {kind}"
        raise ValueError(f"ds must be a sweep or the path of a stored one; it lacks {lacks}.")
    told = _layout(whole)
    # `done` first, since it is written last: of what is done then all is there.
    names = [name for name in ("done", "num_steps", "group") if name in whole.variables]
    with store.damage(Path(ds)) if stored else contextlib.nullcontext():
        read = {name: whole[name].load() for name in names}
    return _counted(whole, read, *told)


def is_told(ds: xr.Dataset) -> bool:
    """Whether a dataset tells what advanced together."""
    try:
        _layout(ds)
    except ValueError:
        return False
    return True


def _counted(
    ds: xr.Dataset,
    read: Mapping[str, xr.DataArray],
    static: Mapping[str, int],
    traced: list[str],
    lanes: list[int],
    chunks: list[np.ndarray],
) -> xr.Dataset:
    columns = {
        name: array.transpose(*static, *traced).values.reshape(len(chunks), -1)
        for name, array in read.items()
    }
    steps = columns["num_steps"]
    done, groups = columns.get("done", np.ones(steps.shape, bool)), columns.get("group", 0 * steps)
    totals = np.zeros((2, len(chunks)))
    for k, chunk in enumerate(chunks):
        # Of each run the number of what it advances with, counted over all that are done.
        _, which = np.unique(np.stack([chunk, groups[k]])[:, done[k]], axis=1, return_inverse=True)
        most = np.zeros(which.max(initial=-1) + 1)
        np.maximum.at(most, which.ravel(), steps[k, done[k]])
        totals[:, k] = steps[k, done[k]].sum(), lanes[k] * most.sum()
    taken, in_lockstep = totals.reshape(2, *static.values())
    share = 1 - np.divide(
        taken, in_lockstep, out=np.full_like(taken, np.nan), where=in_lockstep > 0
    )
    dims = tuple(static)
    return xr.Dataset(
        {"steps": (dims, taken), "lane_steps": (dims, in_lockstep), "wasted": (dims, share)},
        {name: ds[name] for name in static},
    )


def _layout(
    ds: xr.Dataset,
) -> tuple[dict[str, int], list[str], list[int], list[np.ndarray]]:
    """Static axes with their sizes, the others, and by program lanes and each run's chunk."""
    if isinstance(ds.attrs.get("chunks"), str):  # a store
        spec, sizes = json.loads(ds.attrs["experiment"]), json.loads(ds.attrs["chunks"])
        box = {name: int(sizes[name]) for name in ("tau", "seed")}
        whole = {
            "dynamics": len(spec["dynamics"]),
            "depth": len(spec["network"]["depth"]),
            "bottleneck": len(spec["network"]["bottleneck"]),
            "tau": len(spec["tau"]),
            "seed": spec["seeds"],
        }
        corners = [np.arange(whole[name]) // size for name, size in box.items()]
        chunk = (corners[0][:, None] * whole["seed"] + corners[1][None]).ravel()
        programs = int(np.prod([size for name, size in whole.items() if name not in box]))
        traced, group = [*box], spec.get("group_size", 0)
        batches, chunks = programs * [box["tau"] * box["seed"]], programs * [chunk]
    elif isinstance(ds.attrs.get(_LAYOUT), str):
        told = json.loads(ds.attrs[_LAYOUT])
        whole, traced, group = told["sizes"], told["traced"], told["group_size"]
        batches = told["batch_sizes"]
        runs = np.arange(int(np.prod([whole[name] for name in traced])))
        chunks = [runs // size for size in batches]
    else:
        raise ValueError(
            "ds must tell what advanced together, as bwflow.sweep, bwflow.study.run and stored "
            f"studies do; it lacks the attribute {_LAYOUT!r}."
        )
    for name, size in whole.items():
        if ds.sizes.get(name) != size:
            raise ValueError(
                f"ds must be a whole sweep, with {size} values of {name}; "
                f"got {ds.sizes.get(name, 'one')}."
            )
    static = {name: size for name, size in whole.items() if name not in traced}
    return static, traced, [min(group or size, size) for size in batches], chunks
