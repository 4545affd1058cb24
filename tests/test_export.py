"""Stores as netCDF and Parquet files: what comes back, from unfinished stores too, or nothing."""

import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import xarray as xr
from helpers import by_precision

import bwflow as bw
from bwflow import export, store
from bwflow._units import Grid

pytestmark = pytest.mark.once

AXES = ["dynamics", "depth", "bottleneck", "tau", "seed"]
SINGLE = ["hit", "num_accepted", "num_rejected", "num_steps", "reason", "success"]
WRITERS = {"netcdf": export.to_netcdf, "parquet": export.to_parquet}
BOTH = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
STATES = pytest.mark.parametrize("state", ["empty", "unfinished", "finished"])


def spec(**changes):
    small = {
        "seeds": 3,
        "batch_size": 2,
        "probe": ("loss", "gap", "singular_values"),
        "target": bw.experiment.TargetSpec(n=3),
        "flow": bw.experiment.FlowSpec(end_time=1.0, num_saves=8),
        "descent": bw.experiment.DescentSpec(num_steps=30),
        "precision": by_precision("float64", "float32"),
    }
    return bw.Experiment(**small | changes)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One study in three states."""
    folder = tmp_path_factory.mktemp("stores")
    finished = bw.stored.create(spec(tau=(0.0, 0.1)), folder / "finished")
    shutil.copytree(finished, folder / "empty")
    bw.jobs.work(finished, part=1, parts=2, progress=False)
    shutil.copytree(finished, folder / "unfinished")
    bw.jobs.run(finished, progress=False)
    return folder


@pytest.fixture
def copy(stores, tmp_path):
    """A finished store to alter."""
    return shutil.copytree(stores / "finished", tmp_path / "copy")


def netcdf(path, file):
    with xr.open_dataset(export.to_netcdf(path, file), engine="h5netcdf") as ds:
        return ds.load()


def frame(ds):
    """The runs of a dataset that are done, by pandas alone."""
    table = ds[[*SINGLE, "done"]].to_dataframe(dim_order=AXES).reset_index()
    return table[table.pop("done").to_numpy()].reset_index(drop=True)


def same_attributes(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


@STATES
def test_a_netcdf_file_holds_all_that_the_store_holds(stores, state, tmp_path):
    expected = store.read(stores / state)
    found = netcdf(stores / state, tmp_path / "file.nc")
    assert found.sizes == expected.sizes
    assert set(found.variables) == set(expected.variables)
    assert set(found.coords) == set(expected.coords)
    same_attributes(found.attrs, expected.attrs)
    for name, variable in expected.variables.items():
        assert found[name].dims == variable.dims
        same_attributes(found[name].attrs, variable.attrs)
        np.testing.assert_array_equal(found[name].values, variable.values)
        if name != "dynamics":
            assert found[name].dtype == variable.dtype, name


def test_names_and_flags_come_back_from_netcdf(stores, tmp_path):
    found = netcdf(stores / "unfinished", tmp_path / "file.nc")
    assert found["dynamics"].values.tolist() == ["flow", "descent"]
    assert found.sel(dynamics="descent")["done"].values.ravel().tolist() == 2 * [True, True, False]
    assert found["success"].dtype == found["done"].dtype == bool
    assert (found["num_steps"].values[~found["done"].values] == -1).all()
    assert found["reason"].attrs["flag_values"].tolist() == [-1, 0, 1, 2, 3, 4]
    assert bw.Experiment.from_json(found.attrs["experiment"]) == spec(tau=(0.0, 0.1))


def test_netcdf_holds_no_records_where_a_dimension_is_empty(tmp_path):
    network = bw.experiment.NetworkSpec(depth=(1,))
    path = bw.stored.create(
        spec(network=network, probe=("loss", "gap", "imbalance")), tmp_path / "store"
    )
    found = netcdf(path, tmp_path / "file.nc")
    assert found["imbalance"].shape == store.open(path)["imbalance"].shape
    assert found["imbalance"].size == 0


def test_netcdf_takes_attributes_of_any_length(tmp_path):
    many = spec(tau=tuple(np.arange(9000) / 7), seeds=1, batch_size=9000)
    path = bw.stored.create(many, tmp_path / "store")
    found = netcdf(path, tmp_path / "file.nc")
    assert len(found.attrs["experiment"]) > 2**16
    assert found.attrs["experiment"] == store.open(path).attrs["experiment"]


@STATES
def test_a_table_has_one_row_for_each_run_that_is_done(stores, state, tmp_path):
    ds = store.read(stores / state)
    expected = frame(ds)
    found = pandas.read_parquet(export.to_parquet(stores / state, tmp_path / "file.parquet"))
    ends = [f"{name}_{end}" for name in ("gap", "loss") for end in ("start", "end")]
    assert found.columns.tolist() == AXES + SINGLE + ends
    assert (
        len(found) == int(ds["done"].sum()) == {"empty": 0, "unfinished": 8, "finished": 12}[state]
    )
    names = dict(zip(ds["reason"].flag_values, ds["reason"].flag_meanings.split(), strict=True))
    assert found.pop("reason").tolist() == [names[code] for code in expected.pop("reason")]
    assert found.pop("dynamics").tolist() == expected.pop("dynamics").astype(str).tolist()
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].tolist() == expected[name].tolist(), name


@pytest.mark.parametrize("name", ["loss", "gap"])
def test_a_table_has_the_first_and_the_last_record_of_each_run(stores, name, tmp_path):
    ds = store.read(stores / "finished")
    records = ds[name].to_series().dropna().groupby(level=AXES, sort=False)
    assert len(set(records.size())) == 2  # descents have fewer records than flows
    found = pandas.read_parquet(export.to_parquet(stores / "finished", tmp_path / "file.parquet"))
    assert found[f"{name}_start"].tolist() == records.first().tolist()
    assert found[f"{name}_end"].tolist() == records.last().tolist()
    assert found[f"{name}_end"].dtype == ds[name].dtype


def test_a_table_tells_how_runs_failed(copy, tmp_path):
    grid = Grid.open(copy)
    unit = grid.units()[0]
    results = grid.read(unit)
    results["reason"][..., 1], results["success"][..., 1] = 1, False
    results["hit"][..., 1], results["loss"][..., 1, 3:] = np.inf, np.nan
    grid.put(unit, results)
    found = pandas.read_parquet(export.to_parquet(copy, tmp_path / "file.parquet"))
    assert found["reason"].tolist()[:3] == ["successful", "nonfinite", "successful"]
    assert found["success"].tolist()[:3] == [True, False, True]
    assert found["hit"][1] == np.inf
    assert np.isnan(found["loss_end"][1])
    assert found["loss_start"].notna().all()


@STATES
def test_a_table_carries_labels_and_the_spec(stores, state, tmp_path):
    ds = store.open(stores / state)
    schema = pyarrow.parquet.read_schema(export.to_parquet(stores / state, tmp_path / "file"))
    assert schema.metadata[b"experiment"].decode() == ds.attrs["experiment"]
    for name in [*AXES, *SINGLE]:
        labels = {k: v for k, v in ds[name].attrs.items() if k in ("units", "long_name")}
        metadata = schema.field(name).metadata
        assert {k: metadata[k.encode()].decode() for k in labels} == labels
    assert schema.field("gap_end").metadata[b"units"] == b"loss"
    assert schema.field("gap_end").metadata[b"long_name"].endswith(b", last record")
    assert schema.field("dynamics").type == schema.field("reason").type == pyarrow.string()


@BOTH
def test_runs_of_a_unit_that_are_not_done_are_left_out(copy, write, tmp_path):
    Grid.open(copy).done[0, 0, 0, 0, 1] = False
    file = write(copy, tmp_path / "file")
    if write is export.to_parquet:
        found = pandas.read_parquet(file)
        assert len(found) == 11
        assert found["seed"].tolist()[:3] == [0, 2, 0]
    else:
        with xr.open_dataset(file, engine="h5netcdf") as ds:
            seeds = ds.isel(dynamics=0, depth=0, bottleneck=0, tau=0)
            assert seeds["done"].values.tolist() == [True, False, True]
            assert seeds["loss"].isel(save=0).isnull().values.tolist() == [False, True, False]
            assert seeds["num_steps"].values[1] == seeds["reason"].values[1] == -1


def test_an_extended_store_gives_the_runs_that_it_had(copy, tmp_path):
    before = pandas.read_parquet(export.to_parquet(copy, tmp_path / "before"))
    bw.stored.extend(copy, seeds=5, tau=(0.2,))
    after = pandas.read_parquet(export.to_parquet(copy, tmp_path / "after"))
    pandas.testing.assert_frame_equal(after, before)
    found = netcdf(copy, tmp_path / "file.nc")
    assert (found.sizes["tau"], found.sizes["seed"]) == (3, 5)
    assert int(found["done"].sum()) == len(before)
    assert frame(found)["hit"].tolist() == before["hit"].tolist()


def test_one_store_gives_one_table(stores, tmp_path):
    first, second = (export.to_parquet(stores / "finished", tmp_path / name) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_one_store_gives_one_netcdf_file_in_every_process(stores, tmp_path):
    """Whatever the order of Python's sets."""
    made = []
    for seed in "12":
        made.append(tmp_path / f"{seed}.nc")
        command = ("-m", "bwflow", "export", stores / "finished", "--netcdf", made[-1])
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, *command], env=environment, check=True)
    first, second = (file.read_bytes() for file in made)
    assert first == second


@BOTH
def test_an_export_holds_one_unit_in_memory(tmp_path, write):
    flow = bw.experiment.FlowSpec(num_saves=1000)
    study = spec(seeds=64, batch_size=4, dynamics=("flow",), flow=flow)
    path = bw.stored.create(study, tmp_path / "store")
    grid = Grid.open(path)
    for unit in grid.units():
        runs = (1, 1, 1, 1, 4)
        grid.put(
            unit, {k: np.zeros((*runs, *a.shape[5:]), a.dtype) for k, a in grid.results.items()}
        )
    write(path, tmp_path / "once")  # imports are no part of it
    tracemalloc.start()
    write(path, tmp_path / "file")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < store.open(path).nbytes / 3


@BOTH
def test_a_file_is_replaced_and_its_folder_made(stores, write, tmp_path):
    file = tmp_path / "new" / "folder" / "file"
    assert write(str(stores / "empty"), str(file)) == file
    first = file.stat().st_size
    write(stores / "finished", file)
    assert file.stat().st_size > first
    assert list(file.parent.iterdir()) == [file]


@BOTH
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()], ids=type)
def test_an_interrupted_export_leaves_what_was_there(stores, write, error, tmp_path, monkeypatch):
    read, units = Grid.read, []

    def interrupted(grid, unit):
        units.append(unit)
        if len(units) == 3:
            raise error
        return read(grid, unit)

    monkeypatch.setattr(Grid, "read", interrupted)
    (tmp_path / "file").write_text("before")
    with pytest.raises(type(error)):
        write(stores / "finished", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


@BOTH
def test_a_damaged_store_gives_no_file(copy, write, tmp_path):
    chunk = next(path for path in (copy / "loss" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(store.DamagedStoreError, match="loss"):
        write(copy, tmp_path / "out" / "file")
    assert list((tmp_path / "out").iterdir()) == []


@BOTH
def test_refusals_name_the_argument(stores, write, tmp_path, as_installed):
    with pytest.raises(ValueError, match=f"store {tmp_path} is not a Zarr store"):
        write(tmp_path, tmp_path / "out" / "file")
    with pytest.raises(ValueError, match="file must be the name of a file; got the folder"):
        write(stores / "finished", tmp_path)
    with pytest.raises(ValueError, match="file must be a text"):
        write(stores / "finished", 3)
    with pytest.raises(ValueError, match="file must be a text"):
        write(stores / "finished", "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file .* cannot be made"):
        write(stores / "finished", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("write", "package"),
    [(export.to_netcdf, "h5netcdf"), (export.to_netcdf, "h5py"), (export.to_parquet, "pyarrow")],
)
def test_what_is_not_installed_is_named(stores, write, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'bwflow\[export\]'"):
        write(stores / "finished", tmp_path / "out" / "file")
    assert list(tmp_path.iterdir()) == []
