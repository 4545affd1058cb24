"""Sweeps: an experiment mapped over labelled axes, as an `xarray.Dataset`."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from tqdm.auto import tqdm

from bwflow import _checks
from bwflow._lockstep import in_groups, layout
from bwflow._quantities import ALL as QUANTITIES
from bwflow._trajectory import OUTCOMES, Trajectory

LARGEST_CHUNK = 256  # runs, where only the memory bounds a chunk
_LARGEST_OF_GROUPS = 4096  # likewise, of runs that do not all wait for each other
COUNTS = ("num_steps", "num_accepted", "num_rejected", "reason")  # of every run
_RESERVED = ("hit", *COUNTS, "success", "done", "group", "time", "step", "save")
_STATIC = (
    "What sets shapes or is decided in Python, such as a depth, goes under static, not traced."
)
_LABELS = {
    "time": {"long_name": "time of the gradient flow", "units": "1 / covariance^((N-1)/N)"},
    "step": {"long_name": "number of updates", "units": "1"},
    "hit": {"long_name": "time or step at which the criterion first held", "units": "clock"},
    "num_steps": {"long_name": "steps taken (solver steps or updates)", "units": "1"},
    "num_accepted": {"long_name": "steps accepted", "units": "1"},
    "num_rejected": {"long_name": "steps rejected, their error being too large", "units": "1"},
    "success": {"long_name": "whether the run ended as it should", "units": "1"},
    "reason": {
        "long_name": "how the run ended",
        "flag_values": list(range(len(OUTCOMES))),
        "flag_meanings": " ".join(OUTCOMES),
    },
    "group": {"long_name": "group of its chunk that the run advanced in", "units": "1"},
    "dynamics": {"long_name": "gradient flow or gradient descent"},
    "depth": {"long_name": "number of layers N", "units": "1"},
    "bottleneck": {"long_name": "smallest width", "units": "1"},
    "tau": {"long_name": "smoothing", "units": "covariance"},
    "seed": {"long_name": "seed of the random start", "units": "1"},
    "save": {"long_name": "index of the record", "units": "1"},
    "layer": {"long_name": "layer j, one-based", "units": "1"},
    "rank": {"long_name": "index of the singular value, one-based", "units": "1"},
    "eigenvector": {"long_name": "index of the target's eigenvector, one-based", "units": "1"},
}


def sweep(
    experiment: Callable[..., Trajectory],
    *,
    static: Mapping[str, Sequence[Any]] | None = None,
    traced: Mapping[str, Any],
    batch_size: int | None = None,
    group_size: int | None = None,
    difficulty: Callable[..., Any] | None = None,
    memory_limit: float = 2.0**30,
    progress: bool = True,
) -> xr.Dataset:
    """Run an experiment on every point of a grid.

    For each combination of the static axes the experiment is compiled once, mapped by `jax.vmap`
    over the traced axes, chunk by chunk.

    Parameters
    ----------
    experiment
        Function of one keyword per axis that returns a `Trajectory`, with `throw=False` so that
        one failure does not end the sweep.
    static
        Axes that change the structure of the program (depth, widths, solver): name to values.
        Those that are no numbers become coordinates by their text.
    traced
        Axes of numbers (smoothing, seeds, scales): name to one-dimensional array.
    batch_size
        Runs of a chunk, which advance together. The bits of a result depend on it, to rounding.
    group_size
        Runs that advance together in its stead: the groups of a chunk do so one after another.
    difficulty
        Function of the same keywords as the experiment that returns a number, or several of which
        the first counts most: runs of a chunk are grouped in that order. Without it they are in the
        order of the grid.
    memory_limit
        Bytes that one chunk may use; from it the batch size, 256 at most, or 4096 with groups, is
        chosen if that is not given.
    progress
        Whether to show a bar with chunks done, elapsed and remaining time.

    Returns
    -------
    xarray.Dataset
        Dimensions: the axes, then `save` and those of the probes. Variables: the probes, `hit`,
        `num_steps`, `num_accepted`, `num_rejected`, `success` and `reason`, the last with its
        meanings in the attributes; with groups also `group`.
        Coordinates `time(save)` for flows, `step(save)` for descents.

    Raises
    ------
    ValueError
        If there is no traced axis; if an axis is empty, repeats a value, holds NaN, stands in both
        groups or has the name of a variable; if the experiment does not take the axes as keywords
        or does not return a `Trajectory`; if a size or memory limit is not positive; if there is a
        difficulty and no group size, or it is not made of real numbers; or if a probe has the name
        of an axis, a dimension or another variable.

    Notes
    -----
    Under `vmap` the runs of a chunk advance in lockstep, so one slow run holds up its chunk; one
    that diverges changes no bit of the others. `bwflow.statistics.lockstep` tells how much of the
    work that was. Groups of 32 with a difficulty that tells slow runs from fast ones, such as
    `(tau, -s)` with the least singular value `s` of the start's end-to-end matrix, can halve the
    time on a CPU. Where a step costs as much for few runs as for many, groups lose.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> def experiment(*, depth, tau, seed):
    ...     start = bw.initializers.gaussian()(jax.random.key(seed), (2,) * (depth + 1))
    ...     loss = bw.losses.BuresWasserstein(target, tau)
    ...     return bw.gradient_descent(loss, start, optax.sgd(0.05), num_steps=20, throw=False)
    >>> ds = bw.sweep(experiment, static={"depth": (1, 2)},
    ...               traced={"tau": jnp.array([0.0, 0.1]), "seed": jnp.arange(3)}, progress=False)
    >>> dict(ds["loss"].sizes)
    {'depth': 2, 'tau': 2, 'seed': 3, 'save': 21}
    """
    for group, axes in (("static", static or {}), ("traced", traced)):
        _checks.instance(group, axes, Mapping, "a dict of axes")
    static = {name: _listed(name, values) for name, values in (static or {}).items()}
    traced = {name: _numbers(name, values) for name, values in traced.items()}
    _check_axes(static, traced)
    axes = dict.fromkeys([*static, *traced])
    keywords = f"the keywords {', '.join(axes)}"
    _checks.function("experiment", experiment, keywords)
    _checks.takes("experiment", experiment, keywords, **axes)
    _check_memory(memory_limit)
    batch_size = None if batch_size is None else _checks.positive_int("batch_size", batch_size)
    group_size = _checked_groups(group_size, difficulty, axes)
    grid = [axis.ravel() for axis in np.meshgrid(*traced.values(), indexing="ij")]
    combinations = list(itertools.product(*static.values()))
    results, sizes, largest = [], [], _LARGEST_OF_GROUPS if group_size else LARGEST_CHUNK
    chunks = math.ceil(grid[0].size / (batch_size or largest)) * len(combinations)
    with tqdm(total=chunks, unit="chunk", disable=not progress) as bar:
        for values in combinations:
            fixed = dict(zip(static, values, strict=True))
            bar.set_description(", ".join(f"{k}={v}" for k, v in fixed.items()) or "sweep")

            def run(*numbers, fixed=fixed):
                try:
                    trajectory = experiment(**fixed, **dict(zip(traced, numbers, strict=True)))
                except TypeError as error:
                    error.add_note(_STATIC)
                    raise
                if not isinstance(trajectory, Trajectory):
                    kind = type(trajectory).__name__
                    raise ValueError(f"experiment must return a bwflow.Trajectory; got {kind}.")
                return record(trajectory)

            def keys(*numbers, fixed=fixed):
                return _keys(difficulty, **fixed, **dict(zip(traced, numbers, strict=True)))

            mapped = in_groups(run, keys, group_size) if group_size else jax.vmap(run)
            bounds = batch_size, largest, memory_limit
            found, size = _map_chunks(mapped, grid, bool(group_size), *bounds, bar)
            results.append(found)
            sizes.append(size)
    return label(results, static, traced).assign_attrs(layout(static, traced, sizes, group_size))


def _checked_groups(group_size: Any, difficulty: Any, axes: Mapping[str, Any]) -> int | None:
    if difficulty is not None:
        _checks.function("difficulty", difficulty, f"the keywords {', '.join(axes)}")
        _checks.takes("difficulty", difficulty, f"the keywords {', '.join(axes)}", **axes)
        if group_size is None:
            raise ValueError("group_size must be given with a difficulty to group runs by.")
    return None if group_size is None else _checks.positive_int("group_size", group_size)


def _keys(difficulty: Callable | None, **point: Any) -> tuple[Array, ...]:
    """The numbers by which a run is grouped."""
    if difficulty is None:
        return ()
    found = difficulty(**point)
    keys = found if isinstance(found, (tuple, list)) and found else (found,)
    arrays = [_checks.seen("difficulty", key) for key in keys]
    for key in arrays:
        if np.ndim(key) or not (_checks.is_real(key.dtype) or key.dtype == bool):
            raise ValueError(
                "difficulty must return a real number, or a tuple of them; "
                f"got {_checks.shown(found)}."
            )
    return tuple(jnp.asarray(key) for key in arrays)


def _listed(name: str, values: Any) -> list:
    """The values of a static axis; text is one value, not its letters."""
    if isinstance(values, (str, bytes)) or not np.iterable(values):
        raise ValueError(
            f"axis {name} must be a non-empty list of values; got {_checks.shown(values)}."
        )
    return list(values)


def _numbers(name: str, values: Any) -> np.ndarray:
    """The values of a traced axis, in the dtype that jax gives them."""
    array = _checks.seen(f"axis {name}", values)
    if not _checks.is_concrete(array):
        raise ValueError(f"axis {name} must hold its values: a sweep cannot be traced.")
    if array.ndim != 1 or not (array.dtype == bool or _checks.is_real(array.dtype)):
        raise ValueError(
            f"axis {name} must be a non-empty list of values, real numbers; "
            f"got {_checks.shown(values)}."
        )
    return np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))


def _check_memory(limit: Any) -> None:
    number = isinstance(limit, (int, float, np.integer, np.floating))
    if isinstance(limit, bool) or not number or not limit > 0:
        raise ValueError(
            f"memory_limit must be a positive number of bytes; got {_checks.shown(limit)}."
        )


def _check_axes(static: Mapping[str, list], traced: Mapping[str, np.ndarray]) -> None:
    both = set(static) & set(traced)
    if both:
        raise ValueError(f"axes must be static or traced, not both: {', '.join(sorted(both))}.")
    if not traced:
        raise ValueError("traced must name at least one axis, such as seed.")
    for name, values in {**static, **traced}.items():
        if not isinstance(name, str) or name in _RESERVED:
            raise ValueError(
                f"an axis must be named by a text other than {', '.join(_RESERVED)}, which the "
                f"dataset has already; got {name!r}."
            )
        if len(values) == 0:
            raise ValueError(f"axis {name} must be a non-empty list of values; got {values!r}.")
        listed = coordinate(values).tolist() if name in static else np.asarray(values).tolist()
        if any(x != x for x in listed):
            raise ValueError(f"axis {name} must not hold NaN; got {listed}.")
        if len(set(listed)) != len(listed):
            raise ValueError(f"axis {name} must not repeat a value; got {listed}.")


def record(trajectory: Trajectory) -> dict[str, Array]:
    """What a sweep keeps of a run."""
    kept = {
        "hit": trajectory.hit,
        "num_steps": trajectory.num_steps,
        "num_accepted": trajectory.num_steps - trajectory.num_rejected,
        "num_rejected": trajectory.num_rejected,
        "reason": trajectory.outcome,
        trajectory.clock: trajectory.times,
    }
    _check_probes(trajectory.probes, {*kept, *_RESERVED} - {"save"})
    return trajectory.probes | kept


def _check_probes(names: Iterable[str], taken: set[str]) -> None:
    for name in names:
        if name in taken:
            raise ValueError(f"a probe must not be named {name!r}: the dataset has that already.")


def _map_chunks(
    chunk: Callable,
    grid: list[np.ndarray],
    told: bool,
    batch_size: int | None,
    largest: int,
    memory_limit: float,
    bar: tqdm,
) -> tuple[dict[str, np.ndarray], int]:
    """The records of all runs of a grid, chunks of one size, the last one padded; and that size.

    The program of a chunk is `told`, or not, which of its runs are no padding.
    """
    count = grid[0].size
    mapped = jax.jit(chunk)

    def columns(places: np.ndarray) -> list[np.ndarray]:
        taken = [axis[np.minimum(places, count - 1)] for axis in grid]
        return [*taken, places < count] if told else taken

    if batch_size is None:
        size, compiled = _fitted(mapped, columns, min(count, largest), memory_limit)
        # The bound may have made the chunks smaller, and more, than was foreseen.
        bar.total += math.ceil(count / size) - math.ceil(count / largest)
        bar.refresh()
    else:
        size = batch_size
        compiled = mapped.lower(*columns(np.arange(size))).compile()
    parts = []
    for start in range(0, count, size):
        parts.append(jax.device_get(compiled(*columns(np.arange(start, start + size)))))
        bar.update()
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}, size


def _fitted(mapped: Any, columns: Callable, largest: int, memory_limit: float) -> tuple[int, Any]:
    """The largest chunk within the memory bound, and its program."""
    size = largest
    while True:
        compiled = mapped.lower(*columns(np.arange(size))).compile()
        usage = compiled.memory_analysis()
        used = 0
        if usage is not None:
            used = usage.temp_size_in_bytes + usage.output_size_in_bytes
        if used <= memory_limit or size == 1:
            return size, compiled
        size = max(1, min(size // 2, int(size * memory_limit / used)))


def label(
    results: list[dict[str, np.ndarray]],
    static: Mapping[str, list],
    traced: Mapping[str, np.ndarray],
) -> xr.Dataset:
    """Records of all combinations as one dense, labelled grid; NaN where a record is shorter."""
    outer = tuple(len(values) for values in static.values())
    inner = tuple(len(values) for values in traced.values())
    axes = (*static, *traced)
    ranks = {name: array.ndim - 1 for result in results for name, array in result.items()}
    dims = {name: _dims(name, rank) for name, rank in ranks.items()}
    _check_probes(dims, {*axes, *(dim for of_one in dims.values() for dim in of_one)})
    sizes: dict[str, int] = {}
    for result in results:
        for name, array in result.items():
            for dim, n in zip(dims[name], array.shape[1:], strict=True):
                sizes[dim] = max(n, sizes.get(dim, 0))
    variables = {}
    for name in dims:
        full = _padded(
            [result.get(name) for result in results],
            (math.prod(inner), *(sizes[dim] for dim in dims[name])),
        )
        variables[name] = ((*axes, *dims[name]), full.reshape(*outer, *inner, *full.shape[2:]))
    clocks = {
        name: _shared_clock(*variables.pop(name)) for name in ("time", "step") if name in variables
    }
    variables["success"] = (axes, variables["reason"][1] == 0)
    coords = {name: coordinate(values) for name, values in static.items()}
    coords |= {name: np.asarray(values) for name, values in traced.items()}
    coords |= {name: np.arange(n) + (name != "save") for name, n in sizes.items()}
    ds = xr.Dataset(variables, coords | clocks)
    for name, variable in ds.variables.items():
        variable.attrs.update(_attributes(str(name)))
    return ds


def _padded(arrays: list[np.ndarray | None], shape: tuple[int, ...]) -> np.ndarray:
    """The arrays stacked at a common shape, NaN where one is missing or short."""
    known = [array for array in arrays if array is not None]
    integral = known[0].dtype.kind in "iu" and all(
        array is not None and array.shape == shape for array in arrays
    )
    dtype = known[0].dtype if integral else np.result_type(known[0].dtype, np.float32)
    full = np.full((len(arrays), *shape), 0 if integral else np.nan, dtype)
    for row, array in zip(full, arrays, strict=True):
        if array is not None:
            row[tuple(map(slice, array.shape))] = array
    return full


def _dims(name: str, rank: int) -> tuple[str, ...]:
    if rank == 0:
        return ()
    if name in QUANTITIES:
        return ("save", *QUANTITIES[name].dims)
    return ("save", *(f"{name}_{axis}" for axis in range(1, rank)))


def _shared_clock(dims: tuple[str, ...], values: np.ndarray) -> tuple[Any, np.ndarray]:
    """Save times along `save` alone where all runs have the same."""
    rows = values.reshape(-1, values.shape[-1])
    rows = rows[~np.all(np.isnan(rows), axis=1)] if rows.dtype.kind == "f" else rows
    if np.array_equal(rows, np.broadcast_to(rows[:1], rows.shape), equal_nan=True):
        return "save", rows[0]
    return dims, values


def coordinate(values: list) -> np.ndarray:
    """Numbers as they are, anything else (names, widths, solvers) by its text."""
    if all(isinstance(x, (bool, int, float, np.number, Array)) for x in values):
        return np.asarray(values)
    # Zarr v3 has no fixed-length unicode; numpy's variable-length strings are stored as such.
    return np.array([str(value) for value in values], dtype=np.dtypes.StringDType())


def _attributes(name: str) -> dict[str, Any]:
    if name in QUANTITIES:
        quantity = QUANTITIES[name]
        return {"long_name": quantity.long_name, "units": quantity.units}
    return _LABELS.get(name, {})
