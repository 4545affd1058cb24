"""Stores of earlier states of the library open, and those of a later one are refused in one line.

The stores in `tests/stores` were written by this library before stores had the number of a format:
`whole` when studies were written at their end, `first_in_chunks` when they were first filled chunk
by chunk. Both are the study `OLD`.
"""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import studies
from commands import enter, refusal
from studies import contents

import bwflow as bw
from bwflow import cli, store, stored

pytestmark = pytest.mark.once

STORES = Path(__file__).parent / "stores"
OLD = bw.Experiment(
    name="old",
    seeds=3,
    tau=(0.0, 0.1),
    target=bw.experiment.TargetSpec(n=2),
    flow=bw.experiment.FlowSpec(end_time=1.0, num_saves=3),
    descent=bw.experiment.DescentSpec(num_steps=6, save_every=2),
)
READING = [
    ("status",),
    ("show",),
    ("show", "--spec"),
    ("report", "--out", "there"),
    ("export", "--netcdf", "all.nc", "--parquet", "runs.parquet"),
]
WRITING = [
    ("work", "--no-progress"),
    ("extend", "--seeds", "9", "--no-progress"),
    ("repair", "--no-progress"),
    ("rerun", "--seed", "0", "--tau", "0", "--dynamics", "flow"),
    ("slurm", "--array", "2", "--dry-run"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)


def unpacked(name, folder):
    """A store of an earlier state."""
    with zipfile.ZipFile(STORES / f"{name}.zip") as packed:
        packed.extractall(folder)
    return folder / "store"


def edited(path, change):
    """A store with other attributes at its root."""
    data = json.loads((path / "zarr.json").read_text())
    change(data["attributes"])
    (path / "zarr.json").write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", ["whole", "first_in_chunks"])
def test_an_older_store_opens(name, tmp_path, capsys):
    path = unpacked(name, tmp_path)
    before = contents(path)
    ds = store.open(path)
    assert ds.sizes["tau"] == 2
    assert ds["success"].all()
    assert np.isfinite(ds["loss"].isel(save=-1)).all()
    held = stored.experiment_of(path)
    assert (held.seeds, held.tau, held.flow.num_saves) == (3, (0.0, 0.1), 3)
    for command, *options in READING[: 5 if name == "first_in_chunks" else 4]:
        assert cli.main([command, str(path), *options]) == 0, capsys.readouterr().err
    assert contents(path) == before


def test_the_first_stores_hold_the_study_of_their_spec(tmp_path, capsys):
    """So that a sweep of the same spec keeps them."""
    path = unpacked("first_in_chunks", tmp_path)
    stored.match(OLD, path)
    assert cli.main(["sweep", "spec.toml", "--store", str(path)]) == 2
    assert "holds another study: name is 'old' there" in capsys.readouterr().err


def test_an_older_store_is_repaired_as_it_was(tmp_path, capsys):
    path = unpacked("first_in_chunks", tmp_path)
    assert "store_format" not in json.loads((path / "zarr.json").read_text())["attributes"]
    stored.repair(path)  # its spec is written as it is now
    before = contents(path)
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert not {"store_format", "target_file"} & set(attributes)
    (path / "target_factor" / "c" / "0" / "0").unlink()
    assert cli.main(["repair", str(path), "--no-run"]) == 2  # rounding may be other by now
    assert "was begun elsewhere" in capsys.readouterr().err
    chunk = path / "loss" / "c" / "0" / "0" / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    shutil.copyfile(
        unpacked("first_in_chunks", tmp_path / "new") / "target_factor/c/0/0",
        path / "target_factor/c/0/0",
    )
    assert cli.main(["repair", str(path), "--no-run"]) == 0
    assert "variable loss" in capsys.readouterr().out
    assert contents(path) != before
    assert int(store.open(path)["done"].sum()) == 6


@pytest.mark.parametrize("command", WRITING, ids=lambda command: command[0])
def test_a_store_that_was_written_whole_is_not_added_to(command, tmp_path, capsys):
    path = unpacked("whole", tmp_path)
    before = contents(path)
    said = refusal(capsys, command[0], str(path), *command[1:])
    assert "written whole" in said or "begun elsewhere" in said
    assert contents(path) == before


@pytest.mark.parametrize("name", ["sweep", "dataset"])
def test_stores_have_the_number_of_their_format(name, tmp_path):
    path = tmp_path / "store"
    if name == "sweep":
        studies.begun(studies.small(seeds=1), path)
    else:
        store.write(bw.store.read(unpacked("whole", tmp_path / "old")), path)
    assert store.open(path).attrs["store_format"] == store.FORMAT


@pytest.mark.parametrize("command", [*READING, *WRITING], ids=" ".join)
def test_the_format_of_a_later_bwflow_is_refused(command, tmp_path, capsys):
    path = edited(
        unpacked("first_in_chunks", tmp_path), lambda attrs: attrs.update(store_format=999)
    )
    before = contents(path)
    said = refusal(capsys, command[0], str(path), *command[1:])
    assert f"store {path} has format 999, and bwflow {bw.__version__} reads formats up to" in said
    assert contents(path) == before
    with pytest.raises(ValueError, match="has format 999"):
        store.open(path)


@pytest.mark.parametrize("missing", ["versions", "platform", "x64", "chunks", "target_file"])
def test_a_root_without_what_a_sweep_needs_is_damaged(missing, tmp_path, capsys):
    path = studies.begun(studies.small(seeds=1), tmp_path / "store")
    edited(path, lambda attrs: attrs.pop(missing))
    said = refusal(capsys, "repair", str(path))
    assert "zarr.json, by which it is known, is damaged" in said
    assert missing in said
