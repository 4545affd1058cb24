"""Stores on disk: what comes back, what is refused, and what a store must not contain."""

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from bwflow import store


@pytest.fixture
def ds():
    """What a sweep may hold: names, integers, flags, NaN, ragged and empty records, attributes."""
    rng = np.random.default_rng(0)
    loss = rng.normal(size=(2, 3, 4))
    loss[0, :, 2:] = np.nan
    return xr.Dataset(
        {
            "loss": (("dynamics", "seed", "save"), loss, {"units": "loss"}),
            "single": ("seed", rng.normal(size=3).astype(np.float32)),
            "imbalance": (("seed", "layer"), np.zeros((3, 0))),
            "hit": ("seed", [1.0, np.inf, 3.5]),
            "success": ("seed", [True, False, True]),
            "reason": ("seed", np.array([0, 1, 0], np.int32), {"flag_values": [0, 1]}),
        },
        {
            "dynamics": np.array(["flow", "descent"], dtype=np.dtypes.StringDType()),
            "seed": [0, 1, 2],
            "time": ("save", [0.0, 0.5, np.nan, np.nan], {"long_name": "time"}),
        },
        {"experiment": '{"name":"demo"}', "tolerance": 1e-6},
    )


def contents(folder):
    """Bytes of every file below a folder, by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_versions(ds):
    own = {name: x for name, x in ds.attrs.items() if name not in ("versions", "store_format")}
    return ds.drop_attrs(deep=False).assign_attrs(own)


def test_what_is_written_is_read(ds, tmp_path):
    store.write(ds, tmp_path / "new" / "store")
    found = store.read(tmp_path / "new" / "store")
    xr.testing.assert_identical(without_versions(found), ds)
    for name, variable in ds.variables.items():
        assert found[name].dtype == variable.dtype, name
    assert found["dynamics"].values.tolist() == ["flow", "descent"]
    assert (
        found["loss"]
        .sel(dynamics="descent", seed=2)
        .equals(ds["loss"].sel(dynamics="descent", seed=2))
    )


def test_xarray_alone_reads_a_store(ds, tmp_path):
    store.write(ds, tmp_path / "store")
    with xr.open_zarr(tmp_path / "store", consolidated=False) as found:
        xr.testing.assert_identical(without_versions(found.load()), ds)
    metadata = json.loads((tmp_path / "store" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3


def test_a_store_says_which_versions_made_its_numbers(ds, tmp_path):
    import diffrax
    import equinox
    import jax
    import jaxlib
    import lineax
    import optax
    import optimistix

    import bwflow

    store.write(ds, tmp_path / "store")
    packages = (bwflow, jax, jaxlib, diffrax, optax, equinox, lineax, optimistix)
    expected = {package.__name__: package.__version__ for package in packages}
    assert json.loads(store.read(tmp_path / "store").attrs["versions"]) == expected
    assert "versions" not in ds.attrs


def test_a_store_is_not_replaced_unasked(ds, tmp_path):
    store.write(ds, tmp_path / "store")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"store .*store exists; ask for overwrite"):
        store.write(2 * ds[["loss"]], tmp_path / "store")
    assert contents(tmp_path) == before


def test_a_store_is_replaced_whole(ds, tmp_path):
    """Variables of the old one are gone, and nothing else is left in the folder."""
    store.write(ds, tmp_path / "store")
    store.write(2 * ds[["loss"]], tmp_path / "store", overwrite=True)
    found = store.read(tmp_path / "store")
    assert set(found.data_vars) == {"loss"}
    assert np.array_equal(found["loss"], 2 * ds["loss"], equal_nan=True)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["~", "~/new", "a::b", "s3://a", "a b", "$HOME"])
def test_a_path_is_taken_as_it_stands(ds, tmp_path, monkeypatch, name):
    """As the shell has left it: nothing is written elsewhere, such as to the home folder."""
    monkeypatch.chdir(tmp_path)
    store.write(ds, name)
    assert (tmp_path / name / "zarr.json").is_file()
    xr.testing.assert_identical(without_versions(store.read(name)), ds)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_only_stores_are_replaced(ds, tmp_path, kind):
    """A slip of the path must not cost a folder of other things."""
    path = tmp_path / "precious"
    if kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("chapter one")
    else:
        path.write_text("chapter one")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="precious is not a Zarr store and is not replaced"):
        store.write(ds, path, overwrite=True)
    assert contents(tmp_path) == before


def break_halfway(monkeypatch):
    """Let xarray write the store and fail then."""
    complete = xr.Dataset.to_zarr

    def to_zarr(self, *args, **kwargs):
        complete(self, *args, **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", to_zarr)


def test_a_failure_leaves_nothing_behind(ds, tmp_path, monkeypatch):
    break_halfway(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        store.write(ds, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_to_replace_a_store_leaves_it_as_it_was(ds, tmp_path, monkeypatch):
    store.write(ds, tmp_path / "store")
    before = contents(tmp_path)
    break_halfway(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        store.write(2 * ds[["loss"]], tmp_path / "store", overwrite=True)
    assert contents(tmp_path) == before


def test_one_dataset_is_always_the_same_bytes(ds, tmp_path):
    store.write(ds, tmp_path / "one" / "store")
    store.write(ds.copy(deep=True), tmp_path / "two" / "other")
    one, two = contents(tmp_path / "one" / "store"), contents(tmp_path / "two" / "other")
    assert len(one) > len(ds.variables)
    assert one == two


def test_a_store_says_nothing_of_where_and_when_it_was_made(ds, tmp_path):
    store.write(ds, tmp_path / "store")
    for name, data in contents(tmp_path / "store").items():
        assert str(tmp_path).encode() not in data, name
        if name.endswith("zarr.json"):
            text = data.decode()
            assert not re.search(r"\b(19|20)\d\d-[01]\d-[0-3]\d", text), name
            assert f'"{socket.gethostname()}"' not in text
            assert str(Path.home()) not in text


def test_what_is_no_store_is_not_read(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "folder"):
        with pytest.raises(ValueError, match=f"store {re.escape(str(path))} is not a Zarr store"):
            store.read(path)
