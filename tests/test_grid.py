"""The files of a store: written unit by unit, damaged, found damaged, and made anew."""

import itertools
import re
import shutil

import numpy as np
import pytest
import studies
import zarr
from studies import arrays, assert_same, contents, copied, small, unit

import bwflow as bw
from bwflow import _units
from bwflow._units import Grid
from bwflow.experiment import TargetSpec
from bwflow.store import DamagedStoreError

pytestmark = pytest.mark.once

OWN = {"loss", "gap", "hit", "num_steps", "num_accepted", "num_rejected", "success", "reason"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Two chunks, the last of them padded."""
    return studies.finished(small(), tmp_path_factory.mktemp("reference") / "store")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return studies.begun(small(), tmp_path_factory.mktemp("template") / "store")


# Writing


@pytest.mark.slow
def test_a_unit_whose_writing_was_interrupted_anywhere_is_done_again(
    template, reference, tmp_path, monkeypatch
):
    """At every replacement of a file; the unit before it stays done."""
    store, replace = copied(template, tmp_path), _units._replace
    for failing in itertools.count(1):
        calls = itertools.count(1)

        def replacing(*args, calls=calls, failing=failing):
            if next(calls) == failing:
                raise OSError(5, "Input/output error")
            replace(*args)

        with monkeypatch.context() as patch:
            patch.setattr(_units, "_replace", replacing)
            try:
                bw.jobs.run(store, progress=False)
                break
            except OSError:
                pass
        written = (failing - 1) // (len(OWN) + 1)
        assert Grid.open(store).flags() == [i < written for i in range(2)]
        bw.jobs.run(store, progress=False)
        assert_same(store, reference)
        shutil.rmtree(store)
        shutil.copytree(template, store)
    assert failing == 2 * (len(OWN) + 1) + 1


def test_reports_and_status_are_of_what_is_done(template, reference, tmp_path):
    """A unit with all its results but without its flag is not there."""
    store = copied(template, tmp_path)
    bw.jobs.work(store, part=1, parts=2, progress=False)
    for name in OWN:
        shutil.copytree(reference / name, store / name, dirs_exist_ok=True)
    assert bw.progress.status(store).done == 2
    assert "UNFINISHED: 2 of 3 runs" in bw.report.table(store)
    (block,) = _units.finished(store)
    assert block["seed"].values.tolist() == [0, 1]
    assert Grid.open(store).pending() == [unit(slice(2, 3))]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": 5, "batch_size": 2}, (1, 2)),
        ({"seeds": 2, "batch_size": 5, "tau": (0.0, 0.1, 0.2)}, (2, 2)),
        ({"seeds": 3, "batch_size": 0}, (1, 3)),
    ],
)
def test_units_part_the_grid(tmp_path, changes, expected):
    """Every run is in exactly one, and that is one Zarr chunk."""
    spec = small(**changes, network={"depth": (1, 2)})
    store = studies.begun(spec, tmp_path / "store")
    grid, done = Grid.open(store), zarr.open_array(store / "done", mode="r")
    assert done.chunks == (1, 1, 1, *expected)
    counts = np.zeros(done.shape, int)
    for box in grid.units():
        index = tuple(box.values())
        assert counts[index].size > 0
        counts[index] += 1
        assert [side.start % k for side, k in zip(index, done.chunks, strict=True)] == 5 * [0]
    assert (counts == 1).all()
    assert len(grid.units()) == done.nchunks
    assert grid.flags() == [False] * done.nchunks


def test_several_programs_in_any_order_and_twice_are_the_same_bytes(tmp_path):
    spec = small(seeds=3, network={"depth": (1, 2)}, tau=(0.0, 0.1))
    whole = studies.finished(spec, tmp_path / "whole")
    store = studies.begun(spec, tmp_path / "store")
    boxes = studies.units(store)
    for index in [5, 0, 7, 2, 5, 1, 6, 3, 4, 0]:
        bw._compute.compute(store, [boxes[index]])
    assert_same(store, whole)


# Repairs


def kinds(reference):
    """Files of a store by what they are, but for the root."""
    found = {"results": [], "flags": [], "constants": [], "descriptions": []}
    for name in sorted(set(contents(reference)) - {"zarr.json"}):
        variable = name.split("/")[0]
        kind = "results" if variable in OWN else "flags" if variable == "done" else "constants"
        found["descriptions" if name.endswith("zarr.json") else kind].append(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "flip", "delete"])
@pytest.mark.parametrize("kind", ["results", "flags", "constants", "descriptions"])
def test_every_file_is_repaired(reference, tmp_path, monkeypatch, kind, how):
    """To the bytes it had; whole chunks are computed again, and no others."""
    store = copied(reference, tmp_path)
    computed, failures = studies.counted(monkeypatch), []
    for name in kinds(reference)[kind]:
        studies.damage(store / name, how)
        if kind == "results":
            with pytest.raises(DamagedStoreError, match=f"variable {name.split('/')[0]} at "):
                list(_units.finished(store))
        found, left = bw.stored.repair(store)
        bw.jobs.run(store, units=left, progress=False)
        lost = kind == "flags" and how == "delete"  # as if they had never been done
        if lost:
            bw.jobs.run(store, progress=False)
        last = 2 * int(name.split("/c/")[-1].split("/")[4]) if kind in ("results", "flags") else 0
        expected = [unit(slice(last, min(last + 2, 3)))] if kind in ("results", "flags") else []
        same = contents(store) == contents(reference)
        if not (same and computed == expected and (found or lost)):
            failures.append((name, found, computed[:], same))
            shutil.rmtree(store)
            shutil.copytree(reference, store)
        computed.clear()
    assert failures == []


@pytest.mark.parametrize("name", ["target_factor", "target_eigenvalues", "target_eigenvectors"])
def test_no_altered_number_in_a_description_of_the_target_is_believed(reference, tmp_path, name):
    """Such as a size, which still is JSON."""
    store = copied(reference, tmp_path)
    file = store / name / "zarr.json"
    text = file.read_text()
    changed = [
        text[: hit.start()] + str(int(hit[0]) ^ 1) + text[hit.end() :]
        for hit in re.finditer(r"(?<![\w.])[0-9](?![\w.])", text)
    ]
    assert len(changed) > 2
    for altered in changed:
        file.write_text(altered)
        found, left = bw.stored.repair(store)
        assert found, altered
        assert left == []
        assert_same(store, reference)


@pytest.mark.parametrize("how", ["cut", "flip", "delete"])
@pytest.mark.parametrize("name", ["target_factor/c/0/0", "target_eigenvalues/c/0"])
def test_nothing_is_computed_for_a_damaged_target(template, tmp_path, name, how):
    """A missing chunk, too, is no target of zeros."""
    store = copied(template, tmp_path)
    studies.damage(store / name, how)
    with pytest.raises(DamagedStoreError, match="cannot be read"):
        bw.jobs.run(store, progress=False)
    assert not zarr.open_array(store / "done", mode="r")[...].any()


@pytest.mark.parametrize("name", ["loss/c/0/0/0/0/0/0", "reason/c/0/0/0/0/1", "done/c/0/0/0/0/0"])
def test_a_flipped_bit_anywhere_in_a_chunk_is_found(reference, tmp_path, name):
    store = copied(reference, tmp_path)
    whole = (store / name).read_bytes()
    missed = []
    for index in range(len(whole)):
        data = bytearray(whole)
        data[index] ^= 1 << index % 8
        (store / name).write_bytes(data)
        if len(Grid.open(store).damaged()) != 1:
            missed.append(index)
    assert missed == []


def test_a_target_in_a_file_is_kept_in_the_store(tmp_path):
    """The file may be gone then, whether runs are computed, added or made again."""
    rng = np.random.default_rng(0)
    file = tmp_path / "samples.npy"
    np.save(file, rng.normal(size=(9, 2)))
    spec = small(target=TargetSpec(kind="file", path=str(file)), seeds=4)
    whole = studies.finished(spec, tmp_path / "whole")
    store = studies.begun(small(target=spec.target, seeds=3), tmp_path / "store")
    file.unlink()
    bw.jobs.run(store, progress=False)
    assert np.isfinite(arrays(store)["loss"]).all()
    bw.stored.extend(store, seeds=4)
    bw.jobs.run(store, progress=False)
    assert_same(store, whole)
    assert bw.stored.repair(store) == ([], [])
    bw.stored.rerun(store, seed=1)


def test_a_store_made_anew_at_the_same_place_has_its_own_target(tmp_path):
    """Although its spec, with the name of a file, is the same."""
    file, rng = tmp_path / "samples.npy", np.random.default_rng(0)
    spec = small(target=TargetSpec(kind="file", path=str(file)), seeds=2)
    np.save(file, rng.normal(size=(9, 2)))
    studies.finished(spec, tmp_path / "store")
    np.save(file, rng.normal(size=(9, 2)))
    bw.stored.create(spec, tmp_path / "store", overwrite=True)
    bw.jobs.run(tmp_path / "store", progress=False)
    assert_same(tmp_path / "store", studies.finished(spec, tmp_path / "other"))


def test_damage_is_found_in_a_chunk_that_has_grown(reference, tmp_path):
    """The old runs of it are done, the new ones are not yet."""
    store = copied(reference, tmp_path)
    bw.stored.extend(store, seeds=5)
    studies.damage(store / "loss/c/0/0/0/0/1/0", "delete")
    with pytest.raises(DamagedStoreError, match="variable loss at"):
        list(_units.finished(store))
    found, left = bw.stored.repair(store)
    assert len(found) == 1
    assert left == [unit(slice(2, 4))]
    bw.jobs.run(store, progress=False)
    assert_same(store, studies.finished(small(seeds=5), tmp_path / "whole"))


def test_what_killed_processes_left_behind_is_removed(reference, tmp_path):
    store = copied(reference, tmp_path)
    for name in (
        "loss/c/0/0/0/0/0/0.12ab.partial",
        "loss/c/7.34cd.partial",
        "done/c/0/0/0/0/1.5.partial",
    ):
        (store / name).write_bytes(b"half")
    bw.stored.repair(store)
    assert_same(store, reference)


ROOTS = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "not JSON": lambda text: "\0" * 99,
    "a list": lambda text: "[]",
    "no attributes": lambda text: '{"attributes": null}',
    "no study": lambda text: '{"attributes": {}}',
    "no chunks": lambda text: text.replace('"chunks":', '"chunkr":'),
    "no versions": lambda text: text.replace('"versions":', '"versionr":'),
    "fewer seeds": lambda text: text.replace(r"\"seeds\":3", r"\"seeds\":2"),
    "more steps": lambda text: text.replace(r"\"num_steps\":10", r"\"num_steps\":11"),
}
"""Ways in which what the root says may be lost or, the spec against its hash, altered."""


@pytest.mark.parametrize("how", ROOTS)
def test_a_damaged_root_is_refused(reference, tmp_path, how):
    """By a line that says what is damaged, and nothing is changed."""
    store = copied(reference, tmp_path)
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(ROOTS[how](text))
    before = contents(store)
    assert before != contents(reference)
    for change in (bw.stored.repair, bw.stored.experiment_of, bw.stored.settle):
        with pytest.raises(ValueError, match=r"store .*(zarr\.json.* is damaged|holds no study)"):
            change(store)
        assert contents(store) == before


def test_a_store_without_a_root_is_none(reference, tmp_path):
    store = copied(reference, tmp_path)
    (store / "zarr.json").unlink()
    for change in (bw.stored.repair, bw.stored.experiment_of, bw.stored.settle, bw.jobs.run):
        with pytest.raises(ValueError, match=r"store .* is not a Zarr store"):
            change(store)


def test_an_undamaged_store_is_not_touched(reference, tmp_path):
    store = copied(reference, tmp_path)
    files = [file for file in store.rglob("*") if file.is_file()]
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    assert bw.stored.repair(store) == ([], [])
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files} == before
    assert contents(store) == contents(reference)
