"""The grid of runs of a store, unit by unit.

A unit is a box of the grid that fills one Zarr chunk of every variable; `done` says of each run
whether its results are there. Writing a unit replaces files one by one, `done` last, so a process
may die at any moment, and several may write at once, the same unit too. Nothing here is locked.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from bwflow import store
from bwflow.store import DamagedStoreError

Unit = dict[str, slice]
"""A box of the grid, by axis."""

_CHUNKS = "chunks"  # attribute of a store: sizes of Zarr's chunks by dimension, as JSON
_ATTEMPTS = 5
_STRAY = "*.partial"


def create(
    outline: xr.Dataset, path: Path, axes: Mapping[str, np.ndarray], chunks: Mapping[str, int]
) -> None:
    """Write a store without results.

    Parameters
    ----------
    outline
        The dataset of one point of the grid: what has the axes (first, and of length 1) tells
        names, types and further dimensions of the results; everything else is kept as it is.
    path
        Where nothing is yet.
    axes
        The coordinates of the grid.
    chunks
        Sizes of a unit, one for each axis, and of the chunks along further dimensions, which are
        otherwise those of the outline.
    """
    results = [name for name, v in outline.data_vars.items() if set(axes) & set(v.dims)]
    done = xr.DataArray(
        np.zeros((1,) * len(axes), bool),
        dims=[*axes],
        attrs={"long_name": "whether the results of the run are there", "units": "1"},
    )
    arrays = {name: outline[name] for name in results} | {"done": done}
    kept = outline.drop_vars([*results, *axes]).assign_coords(
        {name: (name, values, outline[name].attrs) for name, values in axes.items()}
    )
    sizes = {str(dim): n for name in results for dim, n in outline[name].sizes.items()}
    chunks = {dim: chunks.get(dim, n) for dim, n in sizes.items()}
    store.write_into(kept.assign_attrs({_CHUNKS: json.dumps(chunks)}), path)
    group = zarr.open_group(LocalStore(path), mode="r+")
    for name, array in arrays.items():
        own = array.shape[len(axes) :]
        group.create_array(
            str(name),
            shape=(*map(len, axes.values()), *own),
            chunks=tuple(max(1, chunks[str(dim)]) for dim in array.dims),
            dtype=array.dtype,
            fill_value={"f": np.nan, "i": -1, "b": False}[array.dtype.kind],
            compressors=(ZstdCodec(), Crc32cCodec()),
            dimension_names=[str(dim) for dim in array.dims],
            attributes=array.attrs,
        )


@dataclass(frozen=True)
class Grid:
    """The grid of an open store."""

    path: Path
    chunks: dict[str, int]
    """Size of a unit along each axis."""
    done: zarr.Array
    results: dict[str, zarr.Array]
    whole: set[str]
    """Results that every unit has a file of. Others had no size before an extension."""

    @classmethod
    def open(cls, path: Path) -> "Grid":
        """The grid as the store has it now.

        Raises
        ------
        ValueError
            If there is no store, it has no grid, or its description is damaged.
        """
        store.check_store(path)
        names = store.array_names(path)
        # Chunks of NaN get a file too, by which it is seen that they were written.
        with store.damage(path), zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group(LocalStore(path), mode="r+")
            arrays: dict[str, Any] = {name: group[name] for name in names}
            chunks: Any = group.attrs.get(_CHUNKS)
            if chunks is not None:
                chunks = {axis: int(size) for axis, size in json.loads(chunks).items()}
                if [chunks[axis] for axis in _dims(arrays["done"])] != [*arrays["done"].chunks]:
                    raise ValueError("the chunks of done are not those that zarr.json tells")
        if chunks is None:
            raise ValueError(
                f"store {path} was written whole and has no runs to add; bwflow sweep makes one "
                "that has."
            )
        done = arrays.pop("done")
        own = _dims(done)
        results = {name: array for name, array in arrays.items() if _dims(array)[: len(own)] == own}
        first = {dim for dim, size in chunks.items() if size}
        whole = {name for name, array in results.items() if first >= {*_dims(array)}}
        return cls(path, {axis: chunks[axis] for axis in own}, done, results, whole)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of runs along each axis."""
        return self.done.shape

    def units(self) -> list[Unit]:
        """All units, in the order of the grid."""
        return [self._unit(corner) for corner in itertools.product(*self._starts())]

    def _starts(self) -> list[range]:
        return [range(0, n, k) for n, k in zip(self.shape, self.chunks.values(), strict=True)]

    def _unit(self, corner: tuple[int, ...]) -> Unit:
        return {
            axis: slice(start, min(start + size, n))
            for (axis, size), start, n in zip(self.chunks.items(), corner, self.shape, strict=True)
        }

    def flagged(self) -> Iterator[tuple[Unit, np.ndarray]]:
        """All units, and which of their runs are done, as the store is now."""
        with store.damage(self.path, "done"):
            flags = np.asarray(self.done[...])
        for unit in self.units():
            yield unit, flags[tuple(unit.values())]

    def flags(self) -> list[bool]:
        """Of each unit, whether all its runs are done."""
        return [bool(done.all()) for _, done in self.flagged()]

    def pending(self) -> list[Unit]:
        """The units that are not done, as the store is now."""
        return [unit for unit, done in self.flagged() if not done.all()]

    def has(self, unit: Unit) -> bool:
        """Whether a box is a unit; an extension makes larger ones of those at the end."""
        corner = tuple(unit[axis].start for axis in self.chunks)
        aligned = all(i in starts for i, starts in zip(corner, self._starts(), strict=True))
        return aligned and unit == self._unit(corner)

    def is_done(self, unit: Unit) -> bool:
        """Whether all runs of a unit are done."""
        return bool(self._flags(unit).all())

    def _flags(self, unit: Unit) -> np.ndarray:
        with store.damage(self.path, "done", unit):
            return np.asarray(self.done[tuple(unit.values())])

    def put(self, unit: Unit, results: Mapping[str, np.ndarray]) -> None:
        """Write the results of a unit, and then that it is done.

        Raises
        ------
        ValueError
            If the box is not a unit of the grid, or the results are not its variables.
        OSError
            If they cannot be written; the unit is not done then.
        """
        if not self.has(unit):
            raise ValueError(
                f"unit must be a chunk of the store, {self.chunks} of {self.shape}; got {unit}."
            )
        if set(results) != set(self.results):
            expected = ", ".join(sorted(self.results))
            raise ValueError(f"results must be {expected}; got {', '.join(sorted(results))}.")
        box = tuple(unit[axis] for axis in self.chunks)
        runs = tuple(side.stop - side.start for side in box)
        fitted = {name: _fitted(name, results[name], self.results[name], runs) for name in results}
        for name, values in fitted.items():
            _replace(self.results[name], box, values)
        _replace(self.done, box, np.ones(runs, bool))

    def read(self, unit: Unit) -> dict[str, np.ndarray]:
        """The results of a unit.

        Raises
        ------
        DamagedStoreError
            If a file is cut short or altered, or one that every unit has is missing.
        """
        found = {}
        for name, array in self.results.items():
            with store.damage(self.path, name, unit):
                if name in self.whole:
                    # Only an extension makes further chunks, which older units have no files of.
                    _check_file(next(self._files(name, array, unit)))
                found[name] = np.asarray(array[tuple(unit.values())])
        return found

    def damaged(self) -> list[tuple[str, Unit]]:
        """The units that cannot be read although they should be there, each with the reason."""
        found = []
        for unit in self.units():
            try:
                if self._flags(unit).any():
                    self.read(unit)
            except DamagedStoreError as error:
                found.append((str(error), unit))
        return found

    def forget(self, unit: Unit) -> None:
        """Remove the files of a unit: it is not done, first of all."""
        for name, array in {"done": self.done, **self.results}.items():
            for file in self._files(name, array, unit):
                file.unlink(missing_ok=True)

    def _files(self, name: str, array: zarr.Array, unit: Unit) -> Iterator[Path]:
        corner = [unit[axis].start // size for axis, size in self.chunks.items()]
        own = [range(-(-n // k)) for n, k in zip(array.shape, array.chunks, strict=True)]
        for rest in itertools.product(*own[len(corner) :]):
            yield self.path / name / "c" / "/".join(map(str, (*corner, *rest)))


def _dims(array: zarr.Array) -> tuple[str, ...]:
    names: Any = getattr(array.metadata, "dimension_names", None)
    return tuple(names or ())


def _fitted(name: str, result: np.ndarray, array: zarr.Array, runs: tuple[int, ...]) -> np.ndarray:
    """A result in the type and size of its variable, which other networks may need larger."""
    full = (*runs, *array.shape[len(runs) :])
    fits = result.ndim == len(full) and result.shape[: len(runs)] == runs
    if not fits or any(n > most for n, most in zip(result.shape, full, strict=True)):
        raise ValueError(f"results of {name} must fit into {full}; got shape {result.shape}.")
    whole = np.full(full, array.fill_value, array.dtype)
    whole[tuple(map(slice, result.shape))] = result
    return whole


def _replace(array: zarr.Array, box: tuple[slice, ...], values: np.ndarray) -> None:
    for _ in range(_ATTEMPTS):
        try:
            array[box] = values
            return
        except FileNotFoundError:  # `clear`, by a process that saw the store completed
            pass
    array[box] = values


def finished(path: Path, *, seeds: int | None = None) -> Iterator[xr.Dataset]:
    """What is done, unit by unit, as labelled datasets in memory; of the first seeds if so asked.

    Of a unit that has grown, by an extension, these are the runs that were done before.

    Raises
    ------
    DamagedStoreError
        If a file is missing, cut short or altered.
    """
    grid, ds = Grid.open(path), store.open(path)
    described = ds.drop_vars([*grid.results, "done"])
    constants(path, [str(name) for name in described.variables])  # refuses, before anything is read

    def blocks() -> Iterator[xr.Dataset]:
        for unit, done in grid.flagged():
            wanted = done if seeds is None else done[..., : max(0, seeds - unit["seed"].start)]
            if wanted.any():
                block = {name: (ds[name].dims, values) for name, values in grid.read(unit).items()}
                kept = {axis: slice(n) for axis, n in zip(unit, _extent(wanted), strict=True)}
                yield described.isel(unit).assign(block).isel(kept).load()

    return blocks()


def located(block: xr.Dataset, whole: xr.Dataset) -> tuple[np.ndarray, ...]:
    """Where the runs of a block are in the grid of the whole, as an index of numpy."""
    axes = (str(axis) for axis in whole["hit"].dims)
    return np.ix_(*(whole.indexes[axis].get_indexer(block.indexes[axis]) for axis in axes))


def _extent(done: np.ndarray) -> list[int]:
    """Sizes of the box of runs that are done, which begins where the unit does."""
    return [int(index.max()) + 1 for index in np.nonzero(done)]


def check_chunks(path: Path, axes: Sequence[str], told: Mapping[str, int]) -> None:
    """Refuse a root by which all results would be unreadable, for they have other chunks."""
    seen: dict[str, Counter[int]] = {}
    for file in path.glob("*/zarr.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged
            array = json.loads(file.read_text(encoding="utf-8"))
            names, sizes = array["dimension_names"], array["chunk_grid"]["configuration"]
            if names[: len(axes)] == [*axes]:
                for name, size in zip(names, sizes["chunk_shape"], strict=True):
                    seen.setdefault(name, Counter())[size] += 1
    for name, sizes in seen.items():
        [(size, _)] = sizes.most_common(1)
        if max(1, told.get(name, 0)) != size:
            raise DamagedStoreError(
                f"store {path} cannot be repaired: zarr.json, by which it is known, tells of "
                f"chunks of {told.get(name)} along {name}, and its results have those of {size}."
            )


def constants(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a store that are no results, each read by itself.

    Raises
    ------
    DamagedStoreError
        If a file is missing, cut short or altered.
    """
    found = {}
    for name in names:
        with store.damage(path, name):
            array = zarr.open_array(LocalStore(path / name), mode="r")
            for chunk in itertools.product(*map(range, array.cdata_shape)):
                _check_file(path / name / "c" / "/".join(map(str, chunk)))
            found[name] = np.asarray(array[...])
    return found


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing")


def clear(path: Path) -> None:
    """Remove what killed processes have left in a store, files not yet renamed, and beside it."""
    store.clear_scratch(path)
    for stray in path.rglob(_STRAY):
        stray.unlink(missing_ok=True)


def adopt(template: Path, path: Path) -> list[str]:
    """Give a store the description, coordinates and constants of another; returns what changed.

    The root, which tells everything else, is replaced first and `done` last: while the sizes of
    `done` are not those that the root tells, this has to be done again.
    """
    names = [str(file.relative_to(template)) for file in template.rglob("*") if file.is_file()]
    changed = []
    for name in sorted(
        names, key=lambda name: (name != "zarr.json", name.startswith("done"), name)
    ):
        new, old = template / name, path / name
        if not old.is_file() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            new.replace(old)
            changed.append(name)
    return changed
