"""What happens to a store while another process works on it or reads it."""

import errno
import json
import shutil
import threading
import time

import numpy as np
import pytest
import studies
import xarray as xr
from studies import assert_same, contents, copied, small, unit

import bwflow as bw
from bwflow import _compute, cli, progress, report, stored
from bwflow._units import Grid

pytestmark = pytest.mark.once
FIRST, LAST = unit(slice(0, 2)), unit(slice(2, 3))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return studies.begun(small(), tmp_path_factory.mktemp("begun") / "store")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return studies.finished(small(), tmp_path_factory.mktemp("finished") / "store")


def meanwhile(monkeypatch, event):
    """Something happens between the computation of results and their writing."""
    results = _compute.results

    def interrupted(*arguments, **keywords):
        found = results(*arguments, **keywords)
        event()
        return found

    monkeypatch.setattr(_compute, "results", interrupted)


@pytest.mark.parametrize("how", ["overwritten", "removed and made again"])
def test_results_of_one_study_are_not_written_to_another(begun, tmp_path, monkeypatch, how):
    store = copied(begun, tmp_path)
    other = small(descent={"learning_rate": 0.01})

    def replace():
        if how != "overwritten":
            shutil.rmtree(store)
        bw.stored.create(other, store, overwrite=True)

    meanwhile(monkeypatch, replace)
    with pytest.raises(ValueError, match="was replaced while its runs were computed"):
        bw.jobs.run(store, progress=False)
    assert stored.experiment_of(store) == other
    assert not bw.store.open(store)["done"].any()


def test_a_unit_that_an_extension_made_larger_is_left_to_the_extender(begun, tmp_path, monkeypatch):
    store = copied(begun, tmp_path)
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: bw.stored.extend(store, seeds=4))
        bw.jobs.run(store, progress=False)
    assert bw.store.open(store)["done"].values.ravel().tolist() == [True, True, False, False]
    bw.jobs.run(store, progress=False)
    assert_same(store, studies.finished(small(seeds=4), tmp_path / "whole"))


def test_what_another_process_has_done_is_not_computed(finished, tmp_path, monkeypatch):
    store = copied(finished, tmp_path)
    Grid.open(store).forget(LAST)
    taken, results = [], _compute.results

    def noting(path, units, **keywords):
        taken.extend(units)
        return results(path, units, **keywords)

    monkeypatch.setattr(_compute, "results", noting)
    for box in (FIRST, LAST, LAST, unit(slice(2, 4))):  # the last was one before an extension
        _compute.compute(store, [box])
    assert taken == [LAST]
    assert_same(store, finished)


def test_a_worker_waits_for_who_completes_an_extension(finished, tmp_path):
    store, later = copied(finished, tmp_path), copied(finished, tmp_path / "later")
    bw.stored.extend(later, seeds=4)
    shutil.copy(later / "zarr.json", store / "zarr.json")  # all that was written of it
    found, entered = [], threading.Event()

    def work():
        entered.set()
        found.append(bw.stored.settle(store).shape)

    with bw.stored.alone(store):
        worker = threading.Thread(target=work)
        worker.start()
        entered.wait()
        time.sleep(0.2)
        assert not found
    worker.join()
    assert found == [(1, 1, 1, 1, 4)]
    assert_same(store, later)


def test_an_extension_is_not_undone_by_who_saw_it_begun(finished, tmp_path, monkeypatch):
    """And waited for the lock meanwhile, with the older root in mind."""
    store, later = copied(finished, tmp_path), copied(finished, tmp_path / "later")
    bw.stored.extend(later, seeds=5)
    shutil.copy(later / "zarr.json", store / "zarr.json")
    alone = stored.alone

    def late(path, **keywords):
        monkeypatch.undo()
        bw.stored.extend(store, seeds=7)  # which completes the other one first
        return alone(path, **keywords)

    monkeypatch.setattr(stored, "alone", late)
    assert bw.stored.settle(store).shape[-1] == 7
    assert stored.experiment_of(store).seeds == 7


def test_a_unit_that_ends_while_a_status_is_read_is_no_failure(begun, finished, tmp_path):
    """Results are read after the flags, so what the flags tell is there."""
    store = copied(begun, tmp_path)
    opened = bw.store.open(store)
    order = []

    class Watched(xr.Dataset):
        __slots__ = ()

        def __getitem__(self, name):
            order.append(name)
            return opened[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            bw.store, "open", lambda path: Watched(opened.data_vars, opened.coords, opened.attrs)
        )
        progress.status(store)
    assert order.index("done") < order.index("reason")


def test_runs_without_a_flag_yet_are_not_counted_as_failures(finished):
    ds = bw.store.read(finished)
    ds["done"][..., 1:] = False
    assert "3, 1 done: 0 arrived, 0 failed" in report.describe(ds)


def test_errors_of_the_file_system_are_not_called_damage(tmp_path):
    for number in (errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES):
        with pytest.raises(OSError, match="trouble") as caught, bw.store.damage(tmp_path):
            raise OSError(number, "trouble")
        assert caught.value.errno == number
    with pytest.raises(bw.store.DamagedStoreError), bw.store.damage(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "trouble")


@pytest.mark.parametrize("dim", ["seed", "tau", "save"])
def test_a_root_that_tells_of_other_chunks_costs_no_results(finished, tmp_path, dim):
    store = copied(finished, tmp_path)
    root = json.loads((store / "zarr.json").read_text())
    chunks = json.loads(root["attributes"]["chunks"])
    root["attributes"]["chunks"] = json.dumps(chunks | {dim: chunks[dim] + 1})
    (store / "zarr.json").write_text(json.dumps(root))
    before = contents(store)
    with pytest.raises(bw.store.DamagedStoreError, match=f"tells of chunks of .* along {dim}"):
        bw.stored.repair(store)
    assert contents(store) == before


@pytest.mark.parametrize("how", ["changed", "gone", "still there"])
def test_a_lost_target_is_made_again_only_as_it_was(tmp_path, how):
    file, rng = tmp_path / "samples.npy", np.random.default_rng(0)
    np.save(file, rng.normal(size=(9, 2)))
    target = bw.experiment.TargetSpec(kind="file", path=str(file))
    store = studies.finished(small(target=target, seeds=2), tmp_path / "store")
    whole = contents(store)
    studies.damage(store / "target_factor/c/0/0", "flip")
    before = contents(store)
    if how == "still there":
        assert bw.stored.repair(store)[1] == []
        assert contents(store) == whole
        return
    file.unlink()
    if how == "changed":
        np.save(file, rng.normal(size=(9, 2)))
    with pytest.raises(ValueError, match=r"has lost its target, and .* is not there or not what"):
        bw.stored.repair(store)
    assert contents(store) == before


@pytest.mark.parametrize("how", ["cut", "flip", "delete"])
@pytest.mark.parametrize("name", ["step/c/0/0", "seed/c/0", "target_eigenvalues/c/0"])
def test_statistics_are_not_made_of_damaged_coordinates(finished, tmp_path, name, how):
    store = copied(finished, tmp_path)
    file = next(file for file in (store / name, (store / name).parent) if file.is_file())
    studies.damage(file, how)
    with pytest.raises(bw.store.DamagedStoreError, match="bwflow repair"):
        bw.statistics.summary(store)


def test_a_run_made_again_does_not_replace_a_sweep(finished, tmp_path, monkeypatch, capsys):
    store, other = copied(finished, tmp_path), copied(finished, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    for out in (store, other):
        assert cli.main(["rerun", str(store), "--seed", "1", "--out", str(out)]) == 2
        assert "is the store of a sweep and is not replaced" in capsys.readouterr().err
        assert_same(out, finished)


def test_a_store_written_whole_is_reported_and_is_there(finished, tmp_path, capsys):
    spec = small()
    ds = bw.study.run(spec, progress=False)
    bw.store.write(ds, tmp_path / "store")
    whole = bw.statistics.summary(tmp_path / "store")
    assert whole.drop_attrs().equals(bw.statistics.summary(ds).drop_attrs())
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    sweep = ["sweep", str(tmp_path / "spec.toml"), "--store", str(tmp_path / "store")]
    for command in (sweep, ["report", str(tmp_path / "store")]):
        assert cli.main(command) == 0, capsys.readouterr().err
    assert "UNFINISHED" not in capsys.readouterr().out
