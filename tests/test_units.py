"""The files of a store, unit by unit: what is written when, and what its readers see."""

import json
import os
import re
import socket
from pathlib import Path

import jax
import numpy as np
import pytest
import studies
import xarray as xr
import zarr
from studies import PRECISION, assert_same, contents, copied, damage, small, unit

import bwflow as bw
from bwflow import _compute, _units
from bwflow._units import Grid
from bwflow.store import DamagedStoreError

pytestmark = pytest.mark.once

RESULTS = {"loss", "gap", "hit", "num_steps", "num_accepted", "num_rejected", "success", "reason"}
AXES = ("dynamics", "depth", "bottleneck", "tau", "seed")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return studies.begun(small(), tmp_path_factory.mktemp("template") / "store")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return studies.finished(small(), tmp_path_factory.mktemp("reference") / "store")


@pytest.fixture
def store(template, tmp_path):
    return copied(template, tmp_path)


@pytest.fixture
def half(store):
    bw.jobs.work(store, part=1, parts=2, progress=False)
    return store


def chunks(path, name):
    """Files of the chunks of a variable, by their keys."""
    folder = path / name / "c"
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_unit_is_one_file_of_every_variable_and_of_done(template, half, reference):
    for name in RESULTS | {"done"}:
        own = "/0" if name in ("loss", "gap") else ""
        assert chunks(template, name) == set()
        assert chunks(half, name) == {f"0/0/0/0/0{own}"}
        assert chunks(reference, name) == {f"0/0/0/0/0{own}", f"0/0/0/0/1{own}"}


def writes(monkeypatch, fail_at=None):
    """The variables that zarr writes to from here on; the write `fail_at`, from 1, fails."""
    seen, write = [], zarr.Array.__setitem__

    def setitem(array, selection, value):
        seen.append(array.basename)
        if len(seen) == fail_at:
            raise OSError(28, "No space left on device")
        write(array, selection, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", setitem)
    return seen


def test_done_is_written_last(store, monkeypatch):
    seen = writes(monkeypatch)
    bw.jobs.work(store, part=1, parts=2, progress=False)
    assert seen[-1] == "done"
    assert set(seen[:-1]) == RESULTS
    assert len(seen) == len(RESULTS) + 1


@pytest.mark.parametrize("fail_at", range(1, len(RESULTS) + 2))
def test_a_unit_whose_writing_fails_is_not_done_and_is_done_again(
    half, reference, fail_at, monkeypatch
):
    with monkeypatch.context() as patch:
        writes(patch, fail_at)
        with pytest.raises(OSError, match="No space left on device"):
            bw.jobs.run(half, progress=False)
    done = zarr.open_array(half / "done", mode="r")[...]
    assert done.ravel().tolist() == [True, True, False]
    computed = studies.counted(monkeypatch)
    bw.jobs.run(half, progress=False)
    assert computed == [unit(slice(2, 3))]
    assert_same(half, reference)


def test_what_is_written_twice_is_the_same_bytes(reference, tmp_path):
    store = copied(reference, tmp_path)
    for box in [*studies.units(store), *reversed(studies.units(store))]:
        _compute.compute(store, [box])
    assert_same(store, reference)


def test_units_in_reverse_order_are_the_same_bytes(store, reference):
    for box in reversed(studies.units(store)):
        _compute.compute(store, [box])
    assert_same(store, reference)


def results(runs, value=np.nan, **others):
    """Results of a unit without a computation."""
    shape = (1, 1, 1, 1, runs)
    floats = {name: np.full((*shape, 3), value) for name in ("loss", "gap")}
    counts = {name: np.full(shape, -1) for name in RESULTS if name.startswith("num")}
    rest = {"hit": np.full(shape, value), "reason": np.full(shape, -1)}
    return floats | counts | rest | {"success": np.zeros(shape, bool)} | others


def test_a_unit_of_nothing_but_fill_values_has_its_files_and_is_done(store):
    grid = Grid.open(store)
    grid.put(unit(slice(0, 2)), results(2))
    assert grid.is_done(unit(slice(0, 2)))
    assert grid.pending() == [unit(slice(2, 3))]
    for name in RESULTS | {"done"}:
        assert len(chunks(store, name)) == 1, name
    assert grid.damaged() == []
    (store / "loss/c/0/0/0/0/0/0").unlink()
    assert len(grid.damaged()) == 1


def test_runs_that_diverge_are_done(tmp_path):
    spec = small(descent={"learning_rate": 1e30, "num_steps": 20}, seeds=2)
    store = studies.finished(spec, tmp_path / "store")
    found = studies.arrays(store)
    assert found["done"].all()
    assert not found["success"].any()
    assert (found["reason"] == 1).all()
    assert not np.isfinite(found["loss"][..., 1:]).any()
    assert [len(chunks(store, name)) for name in ("loss", "reason", "done")] == [1, 1, 1]
    before = contents(store)
    bw.jobs.run(store, progress=False)
    assert contents(store) == before


def test_a_store_says_nothing_of_who_made_it_where_and_when(reference):
    for name, data in contents(reference).items():
        assert str(reference.parent).encode() not in data, name
        if name.endswith("zarr.json"):
            text = data.decode()
            assert socket.gethostname() not in json.dumps(list(values(json.loads(text)))), name
            assert os.getpid() not in values(json.loads(text)), name
            assert not re.search(r"\b(19|20)\d\d-[01]\d-[0-3]\d", text), name
            assert str(Path.home()) not in text


def values(data):
    """All values in JSON, also in the JSON texts within."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            yield from values(value)
    elif isinstance(data, str) and data.startswith("{"):
        yield from values(json.loads(data))
    else:
        yield data


def test_a_store_made_elsewhere_and_later_is_the_same_bytes(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr(os, "getpid", lambda: 987654321)
    monkeypatch.setattr("time.time", lambda: 4e9)
    store = studies.finished(small(), tmp_path / "another place" / "other name")
    assert_same(store, reference)


def test_the_root_says_what_the_results_depend_on(reference):
    attrs = json.loads((reference / "zarr.json").read_text())["attributes"]
    spec = small()
    canonical = json.dumps(spec.to_dict(), sort_keys=True, separators=(",", ":"))
    assert attrs["experiment"] == canonical
    assert re.fullmatch("[0-9a-f]{32}", attrs["experiment_hash"])
    packages = {"bwflow", "jax", "jaxlib", "diffrax", "optax", "equinox", "lineax", "optimistix"}
    assert set(json.loads(attrs["versions"])) == packages
    assert json.loads(attrs["versions"])["jax"] == jax.__version__
    assert attrs["x64"] is (PRECISION == "float64")
    assert attrs["platform"] == jax.devices()[0].platform
    sizes = json.loads(attrs["chunks"])
    for name, array in zarr.open_group(reference, mode="r").arrays():
        if name in RESULTS | {"done"}:
            assert array.chunks == tuple(sizes[dim] for dim in array.metadata.dimension_names)


def test_other_studies_have_other_hashes(reference, tmp_path):
    other = studies.begun(small(seeds=4), tmp_path / "store")
    hashes = {
        zarr.open_group(path, mode="r").attrs["experiment_hash"] for path in (reference, other)
    }
    assert len(hashes) == 2


def test_xarray_alone_reads_a_store_in_the_making(half, reference):
    with xr.open_zarr(half, consolidated=False) as ds:
        ds = ds.load()
    assert ds["loss"].dims == (*AXES, "save")
    assert ds["seed"].values.tolist() == [0, 1, 2]
    assert ds["dynamics"].values.tolist() == ["descent"]
    assert ds["step"].values.tolist() == [0, 5, 10]
    for name, variable in ds.variables.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs or name in ("dynamics", "reason"), name
    done = ds["done"].values.ravel()
    assert done.tolist() == [True, True, False]
    missing = ds.isel(seed=2)
    meanings = dict(zip(ds["reason"].flag_values, ds["reason"].flag_meanings.split(), strict=True))
    assert meanings[int(missing["reason"].item())] == "not_run"
    assert meanings[0] == "successful"
    assert list(meanings) == [-1, 0, 1, 2, 3, 4]
    assert np.isnan(missing["loss"]).all()
    assert np.isnan(missing["hit"]).all()
    assert (missing["num_steps"] == -1).all()
    assert not missing["success"].any()
    there = ds.isel(seed=slice(2))
    with xr.open_zarr(reference, consolidated=False) as whole:
        xr.testing.assert_identical(there, whole.load().isel(seed=slice(2)))


def test_variables_have_their_types(template):
    group = zarr.open_group(template, mode="r")
    kinds = {name: array.dtype for name, array in group.arrays()}
    assert {kinds[name] for name in ("loss", "gap", "hit", "tau")} == {np.dtype(PRECISION)}
    counts = ("num_steps", "num_accepted", "num_rejected", "reason")
    assert {kinds[name] for name in counts} == {np.dtype(np.int32)}
    assert {kinds[name] for name in ("done", "success")} == {np.dtype(bool)}
    fills = {name: group[name].fill_value for name in ("loss", "reason", "done")}
    assert np.isnan(fills["loss"])
    assert (fills["reason"], fills["done"]) == (-1, False)


@pytest.mark.parametrize(
    "box",
    [
        unit(slice(1, 3)),
        unit(slice(0, 1)),
        unit(slice(0, 3)),
        unit(slice(2, 4)),
        unit(slice(4, 6)),
        unit(slice(-2, 0)),
        unit(slice(0, 2), tau=slice(0, 2)),
    ],
)
def test_a_box_that_is_no_unit_is_refused(store, box):
    before = contents(store)
    with pytest.raises(ValueError, match="unit must be a chunk of the store"):
        Grid.open(store).put(box, results(2))
    assert contents(store) == before


def test_results_that_are_not_those_of_the_store_are_refused(store):
    grid, box, before = Grid.open(store), unit(slice(0, 2)), contents(store)
    less = results(2)
    del less["gap"]
    for wrong in (less, results(2, more=np.zeros((1, 1, 1, 1, 2)))):
        with pytest.raises(ValueError, match="results must be gap, hit, loss"):
            grid.put(box, wrong)
    for shape in [(1, 1, 1, 1, 3, 3), (1, 1, 1, 1, 2, 4), (1, 1, 1, 1, 2)]:
        with pytest.raises(ValueError, match="results of loss must fit"):
            grid.put(box, results(2, loss=np.zeros(shape)))
    assert contents(store) == before


def test_shorter_records_are_filled_up(store):
    """As those of a shallower network, or of the dynamics with fewer records."""
    shorter = np.arange(4.0).reshape(1, 1, 1, 1, 2, 2)
    Grid.open(store).put(unit(slice(0, 2)), results(2, 0.0, loss=shorter))
    found = studies.arrays(store)["loss"][0, 0, 0, 0, :2]
    assert np.array_equal(found[:, :2], shorter[0, 0, 0, 0])
    assert np.isnan(found[:, 2]).all()


def test_what_a_network_lacks_is_nan(tmp_path):
    """The couplings of layers of the shallower one, the spectrum of the narrower one."""
    probe = ("loss", "gap", "imbalance", "singular_values")
    spec = small(seeds=2, network={"depth": (1, 2, 4), "bottleneck": (0, 1)}, probe=probe)
    store = studies.finished(spec, tmp_path / "store")
    with xr.open_zarr(store, consolidated=False) as ds:
        ds = ds.load()
    assert ds.sizes["layer"] == 3
    for depth in (1, 2, 4):
        found = ds["imbalance"].sel(depth=depth)
        assert np.isnan(found.isel(layer=slice(depth - 1, None))).all()
        assert np.isfinite(found.isel(layer=slice(depth - 1))).all()
    narrow, wide = (ds["singular_values"].sel(bottleneck=k) for k in (1, 2))
    assert np.isfinite(wide).all()
    assert np.isfinite(narrow.isel(rank=0)).all()
    assert np.isnan(narrow.isel(rank=1)).all()


def test_what_is_finished_is_read_unit_by_unit(half, reference):
    (block,) = _units.finished(half)
    assert block.sizes["seed"] == 2
    assert block.attrs["experiment"] == small().to_json()
    blocks = list(_units.finished(reference))
    assert [list(found["seed"].values) for found in blocks] == [[0, 1], [2]]
    for found in (block, *blocks):
        for name in RESULTS:
            expected = studies.arrays(reference)[name][:, :, :, :, found["seed"].values]
            assert np.array_equal(found[name].values, expected), name
            assert found[name].dims[:5] == AXES


def test_of_a_unit_that_has_grown_the_old_runs_are_read(reference, tmp_path):
    store = copied(reference, tmp_path)
    bw.stored.extend(store, seeds=4)
    blocks = list(_units.finished(store))
    assert [list(found["seed"].values) for found in blocks] == [[0, 1], [2]]


@pytest.mark.parametrize("how", ["cut", "flip", "delete"])
@pytest.mark.parametrize("name", sorted(RESULTS))
def test_damaged_results_are_not_read(reference, tmp_path, name, how):
    """The variable and the place are named."""
    store = copied(reference, tmp_path)
    damage(store / name / ("c/0/0/0/0/1/0" if name in ("loss", "gap") else "c/0/0/0/0/1"), how)
    with pytest.raises(DamagedStoreError, match=rf"variable {name} at .*seed 2:3.*bwflow repair"):
        list(_units.finished(store))
    ((message, box),) = Grid.open(store).damaged()
    assert f"variable {name} at" in message
    assert box == unit(slice(2, 3))


@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_flag_is_not_read(reference, tmp_path, how):
    store = copied(reference, tmp_path)
    damage(store / "done/c/0/0/0/0/1", how)
    with pytest.raises(DamagedStoreError, match="cannot be read"):
        list(_units.finished(store))
    assert [box for _, box in Grid.open(store).damaged()] == [unit(slice(2, 3))]
