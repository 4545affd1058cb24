"""A disk that is full and one that may not be written to: what is said, and nothing is lost."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import kills
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.once]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return kills.lab(tmp_path_factory.getbasetemp())


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(*arguments):
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a file system is mounted with mount, which is not here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def _refusal(process):
    """The one line of a command that fails."""
    code, _, err = kills.end(process)
    assert code == 1, (code, err)
    assert err.startswith("bwflow: ")
    assert err.count("\n") == 1, err
    return err


def _kept(store):
    """The files of the units that are done, with the bytes in them."""
    found = [path for unit in kills.units_done(store) for path in store.glob(f"*/c/{unit}")]
    files = [file for path in found for file in (path, *path.rglob("*")) if file.is_file()]
    return {file: file.read_bytes() for file in files}


def _fill(folder, left):
    """Fill a disk with one file until that many bytes are left."""
    free = shutil.disk_usage(folder).free
    filler = folder / "filler"
    filler.write_bytes(bytes(free - left))
    return filler


@pytest.mark.parametrize("processes", [0, 2])
def test_a_full_disk_stops_a_sweep_that_goes_on_when_there_is_space(lab, disk, processes):
    store = lab.begun(disk)
    filler = _fill(disk, 2**20)
    command = ("--processes", processes)
    assert "No space left on device" in _refusal(lab.sweep(store, *command))
    kept, done = _kept(store), kills.units_done(store)
    assert 0 < len(done) < kills.UNITS
    assert len(kept) > 5 * len(done)
    assert "No space left on device" in _refusal(lab.start("work", store, "--no-progress"))
    assert "of 60 done" in lab.run("status", store)
    filler.unlink()
    logged = len(_log_lines(store))
    process = lab.sweep(store, *command)
    code, _, err = kills.end(process)
    assert code == 0, err
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(_log_lines(store)) - logged == kills.UNITS - len(done)
    lab.check(store)


def _log_lines(store):
    """What was computed, as far as there was space for a log."""
    logs = store.with_name(f"{store.name}-log").glob("*.jsonl")
    return [line for log in logs for line in log.read_text().splitlines()]


def test_a_full_disk_at_the_start_leaves_no_store(lab, disk):
    store = disk / "store"
    filler = _fill(disk, 40_000)
    assert "No space left on device" in _refusal(lab.sweep(store))
    assert {path.name for path in disk.iterdir()} == {"filler"}
    filler.unlink()
    lab.finish(store)


@contextlib.contextmanager
def _mounted_read_only(lab, stores):
    """Stores on a file system that is read-only, which stops the administrator too."""
    with tempfile.TemporaryDirectory() as folder:
        _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder)
        try:
            for name, store in stores.items():
                shutil.copytree(store, Path(folder, name))
            _mount("-o", "remount,ro", folder)
            yield Path(folder), {}
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def _without_permission(lab, stores):
    """Stores whose permission bits say that they are read-only."""
    # The administrator is stopped by them without the capabilities to pass them over.
    passing = "-dac_override,-dac_read_search"
    prefix = ("setpriv", f"--bounding-set={passing}", f"--inh-caps={passing}")
    if not os.getuid() and shutil.which("setpriv") is None:
        pytest.skip("capabilities are dropped with setpriv, which is not here")
    with tempfile.TemporaryDirectory() as folder:
        for name, store in stores.items():
            shutil.copytree(store, Path(folder, name))
        subprocess.run(["chmod", "-R", "a-w", folder], check=True)
        try:
            yield Path(folder), {"prefix": () if os.getuid() else prefix}
        finally:
            subprocess.run(["chmod", "-R", "u+w", folder], check=True)


@pytest.mark.parametrize("read_only", [_mounted_read_only, _without_permission])
def test_a_read_only_store_can_be_read_and_says_why_it_cannot_be_written(lab, read_only, tmp_path):
    half = lab.begun(tmp_path)
    lab.run("work", half, "--part", "1/2", "--no-progress")
    stores = {"half": half, "whole": lab.reference}
    with read_only(lab, stores) as (folder, options):
        for name, done in (("half", 30), ("whole", 60)):
            store = folder / name
            out = tmp_path / name
            assert f"{done} of 60 done" in lab.run("status", store, **options)
            assert "seed" in lab.run("show", store, **options)
            lab.run("report", store, "--out", out, **options)
            assert {path.name for path in out.iterdir()} == {"table.txt", "figure.png"}
        for process in (
            lab.sweep(folder / "half", **options),
            lab.sweep(folder / "half", "--processes", 2, **options),
            lab.start("work", folder / "half", "--part", "2/2", "--no-progress", **options),
        ):
            said = _refusal(process)
            assert str(folder / "half") in said
            assert re.search("Read-only file system|Permission denied|cannot be written", said)
        code, _, err = kills.end(lab.sweep(folder / "whole", **options))
        assert (code, err) == (0, f"{folder / 'whole'} holds this study already\n")
        lab.run("work", folder / "whole", "--no-progress", **options)
        assert kills.same_tree(folder / "whole", lab.reference)
        assert kills.same_tree(folder / "half", half)
