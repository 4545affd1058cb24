"""Stores as files of other kinds: netCDF-4 with everything, Parquet with a row for each run.

Both are written one unit of the grid at a time, whole or not at all.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from bwflow import store
from bwflow._units import Grid, Unit

_ROWS = 2**13  # at least, in a row group of Parquet, which has a cost of its own


def to_netcdf(path: str | Path, file: str | Path) -> Path:
    """Write all that a store holds as one netCDF-4 file, for `xarray.open_dataset` and others.

    Parameters
    ----------
    path
        The store, finished or not.
    file
        The file. One that is there is replaced; its folder is made.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If there is no store of a study or it is damaged; if `file` is a folder or its folder
        cannot be made.
    ImportError
        If h5netcdf or h5py is not installed.
    OSError
        If the file cannot be written. As after every other error, what was there before stays.

    Notes
    -----
    Memory: the coordinates, the target, the results of one unit of the grid, and one variable of
    it again. Runs that are not done hold NaN, -1 or false, and `done` says which these are.
    NetCDF has no truth values: those among the attributes are 0 and 1.

    Examples
    --------
    >>> import tempfile
    >>> import xarray as xr
    >>> import bwflow as bw
    >>> from bwflow import export
    >>> folder = tempfile.mkdtemp()
    >>> mine = bw.stored.create(bw.Experiment(seeds=2), f"{folder}/mine")
    >>> with xr.open_dataset(export.to_netcdf(mine, f"{folder}/mine.nc"), engine="h5netcdf") as ds:
    ...     ds["hit"].dims, ds["dynamics"].values.tolist(), ds["done"].sum().item()
    (('dynamics', 'depth', 'bottleneck', 'tau', 'seed'), ['flow', 'descent'], 0)
    """
    grid, file = Grid.open(store.check_store(path)), _checked(file)
    try:
        import_module("h5py")  # by which h5netcdf writes, and which it does not require
        h5netcdf = import_module("h5netcdf")
    except ImportError as error:
        raise ImportError(
            f"netCDF files are written by {error.name}: pip install 'bwflow[export]'"
        ) from None
    with _replacing(file) as draft:
        _write_description(_description(grid), draft)
        ds = store.open(grid.path)
        with h5netcdf.File(draft, "a") as made:
            _declare(made, grid.done, ds["done"], records=False)
            for name, array in sorted(grid.results.items()):
                _declare(made, array, ds[name], records=array.ndim > grid.done.ndim)
            for unit, done in grid.flagged():
                for name, values in _filled(grid, unit, done):
                    made.variables[name][tuple(unit.values())] = values
    return file


def to_parquet(path: str | Path, file: str | Path) -> Path:
    """Write a table with one row for each run of a store that is done as a Parquet file.

    Columns: the coordinates; what has one value for each run, the reason as its text; of each
    quantity that is one number at every record the first and the last, `loss_start` and `loss_end`.
    The last record is that at the end of the run's dynamics; it repeats the state at which a run
    stopped before.

    Parameters
    ----------
    path
        The store, finished or not.
    file
        The file. One that is there is replaced; its folder is made.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If there is no store of a study or it is damaged; if `file` is a folder or its folder
        cannot be made.
    ImportError
        If pyarrow is not installed.
    OSError
        If the file cannot be written. As after every other error, what was there before stays.

    Notes
    -----
    Memory: the results of one unit of the grid, and the rows of some thousand runs.

    Rows come unit by unit in the order of the grid, the seed changing first. Where an extension
    added seeds to units of several smoothings, the new seeds follow after the old ones of all
    these.

    Metadata of a column are its units and long name, of the file the spec, `experiment`.

    Examples
    --------
    >>> import tempfile
    >>> import jax, pandas
    >>> import bwflow as bw
    >>> from bwflow import export
    >>> spec = bw.Experiment(
    ...     seeds=2, dynamics=("descent",), target=bw.experiment.TargetSpec(n=3),
    ...     descent=bw.experiment.DescentSpec(num_steps=50),
    ...     precision="float64" if jax.config.jax_enable_x64 else "float32")
    >>> folder = tempfile.mkdtemp()
    >>> mine = bw.stored.create(spec, f"{folder}/mine")
    >>> bw.jobs.run(mine, progress=False)
    >>> table = pandas.read_parquet(export.to_parquet(mine, f"{folder}/mine.parquet"))
    >>> table["reason"].tolist(), bool((table["loss_end"] < table["loss_start"]).all())
    (['successful', 'successful'], True)
    """
    grid, file = Grid.open(store.check_store(path)), _checked(file)
    try:
        parquet, pa = import_module("pyarrow.parquet"), import_module("pyarrow")
    except ImportError:
        raise ImportError(
            "Parquet files are written by pyarrow: pip install 'bwflow[export]'"
        ) from None
    table = _Table(pa, grid)
    with (
        _replacing(file) as draft,
        parquet.ParquetWriter(draft, table.schema, compression="zstd") as writer,
    ):
        waiting = []
        for unit, done in grid.flagged():
            if done.any():
                waiting.append(table.rows(unit, done, grid.read(unit)))
            if sum(map(len, waiting)) >= _ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return file


def _checked(file: str | Path) -> Path:
    if not isinstance(file, (str, os.PathLike)) or not str(file):
        raise ValueError(f"file must be a text or a pathlib.Path; got {file!r}.")
    if Path(file).is_dir():
        raise ValueError(f"file must be the name of a file; got the folder {file}.")
    return Path(file)


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A name beside a file for its draft, which gets the file's name at the end."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"file {file} cannot be made: {error.strerror}.") from None
    with store.scratch(file) as folder:
        draft = folder / file.name
        yield draft
        draft.replace(file)


def _description(grid: Grid) -> xr.Dataset:
    """What is no result: attributes, coordinates and the target."""
    with store.damage(grid.path):
        return store.open(grid.path).drop_vars([*grid.results, "done"]).load()


def _write_description(ds: xr.Dataset, file: Path) -> None:
    # A store's variables come in an order that differs from process to process.
    values, coords = (
        {n: ds.variables[n] for n in sorted(x, key=str)} for x in (ds.data_vars, ds.coords)
    )
    ds = xr.Dataset(values, coords, ds.attrs)
    # HDF5 has no numpy strings of variable length; it has Python's.
    texts = {name: v.astype(object) for name, v in ds.coords.items() if v.dtype.kind == "T"}
    ds = ds.drop_encoding().assign_coords(texts)
    ds.attrs = _plain(ds.attrs)
    ds.to_netcdf(file, engine="h5netcdf")


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(k): np.int8(v) if isinstance(v, bool) else v for k, v in attrs.items()}


def _declare(made: Any, array: zarr.Array, described: xr.DataArray, *, records: bool) -> None:
    """Add a variable without its values, in the way in which xarray encodes its kind.

    Records are compressed in the chunks of the store; what has one value for each run is not.
    """
    for dim, size in described.sizes.items():
        if dim not in made.dimensions:
            made.dimensions[dim] = size
    kind, attrs, layout = array.dtype.kind, _plain(described.attrs), {}
    if records and array.size:
        chunks = tuple(map(min, array.chunks, array.shape))
        layout = {"chunks": chunks, "compression": "gzip", "compression_opts": 1, "shuffle": True}
    variable = made.create_variable(
        described.name,
        described.dims,
        np.int8 if kind == "b" else array.dtype,
        fillvalue=array.dtype.type(np.nan) if kind == "f" else None,
        **layout,
    )
    for key, value in {**attrs, **({"dtype": "bool"} if kind == "b" else {})}.items():
        variable.attrs[key] = value


def _filled(grid: Grid, unit: Unit, done: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The values of a unit by variable, with fills where a run is not done."""
    yield "done", done
    results = grid.read(unit) if done.any() else {}
    for name, array in grid.results.items():
        values = np.full((*done.shape, *array.shape[done.ndim :]), array.fill_value, array.dtype)
        if results:
            values[done] = results[name][done]
        yield name, values


class _Table:
    """The runs of a store as rows."""

    def __init__(self, pa: Any, grid: Grid):
        self.pa, self.described, ds = pa, _description(grid), store.open(grid.path)
        own = {name: ds[name].dims[grid.done.ndim :] for name in sorted(grid.results)}
        self.single = [name for name, dims in own.items() if not dims]
        self.records = [name for name, dims in own.items() if dims == ("save",)]
        self.attrs = {name: ds[name].attrs for name in own}
        self.last = np.array([_last_record(self.described, str(x)) for x in ds["dynamics"].values])
        fields = [self._field(name, ds[name]) for name in (*grid.chunks, *self.single)]
        for name in self.records:
            fields.append(self._field(f"{name}_start", ds[name], ", first record"))
            fields.append(self._field(f"{name}_end", ds[name], ", last record"))
        self.schema = pa.schema(fields, metadata={"experiment": ds.attrs["experiment"]})

    def _field(self, name: str, variable: xr.DataArray, which: str = "") -> Any:
        text = variable.dtype.kind == "T" or "flag_meanings" in variable.attrs
        metadata = {
            key: variable.attrs[key] for key in ("units", "long_name") if key in variable.attrs
        }
        metadata["long_name"] = metadata.get("long_name", variable.name) + which
        type_ = self.pa.string() if text else self.pa.from_numpy_dtype(variable.dtype)
        return self.pa.field(name, type_, metadata=metadata)

    def rows(self, unit: Unit, done: np.ndarray, results: Mapping[str, np.ndarray]) -> Any:
        """Those of a unit's runs that are done."""
        runs = np.nonzero(done)
        columns: list[Any] = [
            self.described[axis].values[side][index]
            for (axis, side), index in zip(unit.items(), runs, strict=True)
        ]
        columns += [_meant(results[name][runs], self.attrs[name]) for name in self.single]
        last = self.last[unit["dynamics"]][runs[0]]
        for name in self.records:
            columns += [results[name][(*runs, 0)], results[name][(*runs, last)]]
        arrays = [
            self.pa.array(column.tolist() if column.dtype.kind == "T" else column, type=field.type)
            for column, field in zip(columns, self.schema, strict=True)
        ]
        return self.pa.table(arrays, schema=self.schema)


def _last_record(ds: xr.Dataset, dynamics: str) -> int:
    """Index of the last record of a flow or a descent; the other may have more."""
    clock = ds["time" if dynamics == "flow" else "step"].values.astype(float)
    return int(np.flatnonzero(np.isfinite(clock))[-1])


def _meant(values: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """Flags as their text, all else as it is."""
    if "flag_meanings" not in attrs:
        return values
    meanings = dict(zip(attrs["flag_values"], attrs["flag_meanings"].split(), strict=True))
    return np.array([meanings[value] for value in values.tolist()], np.dtypes.StringDType())
