"""Drawn bytes as a spec, drawn arguments of every command, drawn damage: never more than a line."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
import studies
from commands import SPEC, enter
from drawn import CHECKS, EXAMPLES, Large, called, drawn_figures, hostile, words
from hypothesis import Phase, event, example, given, settings
from hypothesis import strategies as st

import bwflow as bw
from bwflow import _compute, _rerun, cli, jobs, store

pytestmark = pytest.mark.once

EXPLAINED = (resources.files("bwflow") / "specs" / "example.toml").read_bytes()
READING = ("status", "show", "report", "export", "slurm")
STORES = ("finished", "unfinished", "whole", "plain")
PLACES = """none|new/x|empty|file|finished/zarr.json|finished/loss|finished/|./whole|../x|.|..|/|~
-x|é|a b|spec.toml|spec.toml/x|//|finished-log|plain/x|%s|*|$HOME"""
places = st.sampled_from(
    [*STORES, *STORES, *PLACES.replace("\n", "|").split("|"), "", "a\nb", "x" * 300]
)
numbers = words | st.sampled_from(
    ["0", "1", "2", "3", "4", "-1", "1.5", "1e3", "nan", "inf", "9" * 20, "0x1"]
)
choices = st.sampled_from(["flow", "descent", "flo", "FLOW", "adam"]) | words
# Of each command what follows the store: names of options, and what they take.
FLAGS = {"--no-progress": None, "--progress": None, "--processes": numbers, "--no-run": None}
AXES = {"--seeds": numbers, "--tau": numbers, "--depth": numbers, "--bottleneck": numbers}
AXES |= {"--dynamics": choices}
OPTIONS = {
    "status": {},
    "show": {"--spec": None},
    "report": {"--out": places},
    "work": FLAGS | {"--part": st.sampled_from(["1/2", "2/2", "3/2", "1/", "/", "0/0"]) | words},
    "extend": FLAGS | AXES,
    "repair": FLAGS,
    "rerun": {**AXES, "--seed": numbers, "--out": places},
    "export": {"--netcdf": places, "--parquet": places},
    "slurm": {"--array": numbers, "--dry-run": None, "--sbatch": words},
    "completion": {},
    "demo": {"--dry-run": None, "--full": None, "--tau": numbers, "--seeds": numbers},
    "sweep": {"--store": places, "--overwrite": None, "--example": None} | FLAGS | AXES,
}


@st.composite
def spec_files(draw):
    """Bytes that are no spec, or one that was altered as files are."""
    data = draw(st.sampled_from([SPEC.encode(), EXPLAINED]) | st.binary(max_size=60))
    for _ in range(draw(st.integers(0, 4))):
        i, j = sorted(draw(st.lists(st.integers(0, len(data)), min_size=2, max_size=2)))
        j = min(j, i + draw(st.sampled_from([1, 4, 30, 10**4])))
        kind = draw(st.sampled_from(["drop", "double", "insert", "flip", "lines", "value"]))
        if kind == "lines":
            data = b"\n".join(draw(st.permutations(data.split(b"\n")[:9])))
        elif kind == "value":
            some = draw(hostile.map(str) | st.sampled_from(["'x'", "[[", "1979-05-27", "{a=1}"]))
            data = re.sub(rb"= .*", lambda _, some=some: b"= " + some.encode(), data, count=1)
        else:
            middle = {
                "drop": b"",
                "double": 2 * data[i:j],
                "insert": draw(st.binary(max_size=6) | words.map(str.encode)) + data[i:j],
                "flip": bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[i : i + 1]),
            }[kind]
            data = data[:i] + middle + data[max(j, i + 1) if kind == "flip" else j :]
    return data


@st.composite
def command_lines(draw):
    """A command with some of its options, or others, in an order of its own."""
    command = draw(st.sampled_from([*OPTIONS, *OPTIONS, "show"]) | words)
    options = []
    known = OPTIONS.get(command, {})
    for name in draw(st.lists(st.sampled_from([*known, "--out", "-h"]), max_size=4)):
        taken = known.get(name, words)
        count = 0 if taken is None else draw(st.sampled_from([1, 1, 1, 1, 0, 2]))
        options.append([name, *(draw(taken) for _ in range(count))])
    if draw(st.integers(0, 6)) == 0:
        options.append([draw(words | st.sampled_from(["--help", "--version", "--", "--ou"]))])
    own = {"completion": st.sampled_from(["bash", "zsh", "fish"]), "sweep": st.just("spec.toml")}
    if command != "demo" and draw(st.integers(0, 9)):
        options.insert(0, [draw(own.get(command, places))])
    if draw(st.integers(0, 3)) == 0:
        options = draw(st.permutations(options))
    dry = ["--dry-run"] * (command in ("sweep", "demo"))
    return [command, *(word for option in options for word in option), *dry]


def leaves(data, path=()):
    """Paths of all that stands in a JSON value."""
    yield path
    if isinstance(data, dict):
        items = data.items()
    else:
        items = enumerate(data if isinstance(data, list) else ())
    for key, value in items:
        yield from leaves(value, (*path, key))


# No large sizes: what an array of them takes is no question of this test.
others = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 9), words, st.just([]), st.just({}), st.floats(0, 2)
)


@st.composite
def damages(draw):
    """What is done to a store: some functions of its folder."""
    kinds = ["cut", "flip", "garbled", "gone", "folder", "loop", "json", "json", "json", "stray"]
    kind = draw(st.sampled_from([*kinds, "whole"]))
    place, at = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    if kind == "whole":
        return kind, draw(st.sampled_from(["file", "empty", "gone", "root alone", "loop"])), 0, 0
    new = draw(others if kind == "json" else st.binary(max_size=20))
    return kind, new, place, at


def damage(path, kind, new, place, at):
    """Do it."""
    if kind == "whole":
        _replace(path, new)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if kind == "json":
        files = [file for file in files if file.suffix == ".json"]
    if not files:
        return
    # The root is one file of many, and the most important one.
    file = path / "zarr.json" if place % 4 == 0 else files[place % len(files)]
    if not file.is_file():  # what stood there was damaged before
        return
    data = file.read_bytes()
    at %= max(1, len(data))
    if kind in ("gone", "folder", "loop"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
        if kind == "loop":
            file.symlink_to(file)
    elif kind == "stray":
        stray = path / new.hex() / "zarr.json"
        with contextlib.suppress(FileExistsError):
            stray.parent.mkdir()
        stray.write_bytes(new)
    elif kind == "json":
        with contextlib.suppress(ValueError, OSError):
            file.write_text(json.dumps(_changed(json.loads(data), new, at)), encoding="utf-8")
    else:
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] if data else b""
        file.write_bytes({"cut": data[:at], "flip": flipped, "garbled": new}[kind])


def _changed(data, new, at):
    """A JSON value in which one thing is another, or missing."""
    paths = [path for path in leaves(data) if path]
    if not paths:
        return new
    *above, key = paths[at % len(paths)]
    held = data
    for name in above:
        held = held[name]
    if at % 3 == 0:
        del held[key]
    else:
        held[key] = new
    return data


def _replace(path, kind):
    if kind == "root alone":
        for folder in [folder for folder in path.iterdir() if folder.is_dir()]:
            shutil.rmtree(folder)
        return
    shutil.rmtree(path)
    if kind == "file":
        path.write_bytes(b"no store")
    elif kind == "empty":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)


ON_STORES = [
    "status S",
    "show S",
    "show S --spec",
    "report S --out out",
    "export S --netcdf out.nc",
    "export S --parquet out.parquet",
    "slurm S --array 2 --dry-run",
    "rerun S --seed 0 --out out",
    "repair S --no-run",
    "repair S --no-progress",
    "work S --no-progress",
    "work S --part 2/2 --no-progress",
    "extend S --seeds 4 --no-run",
    "extend S --tau 0.3 --no-progress",
    "sweep small.toml --store S --no-progress",
    "sweep small.toml --store S --dry-run",
]


def check(arguments):
    """Call a command: it does what it does, or says in one line why it does not."""
    code, out, err = called(arguments)
    event(f"{arguments[0] if arguments[0] in OPTIONS else 'other'} {code}")
    assert code in (0, 1, 2, None), err
    if code in (1, 2):
        assert re.fullmatch(r"bwflow: [^\r\n]+\n", err), err
    if code == 0:
        assert err == "" or err.endswith("holds this study already\n"), err
    assert "Traceback" not in out + err


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Stores of a small study: finished, in the middle, written whole; and of other data."""
    place = tmp_path_factory.mktemp("library")
    finished = studies.finished(studies.SMALL, place / "finished")
    half = studies.begun(studies.SMALL, place / "unfinished")
    jobs.work(half, part=1, parts=2, progress=False)
    store.write(bw.study.run(studies.SMALL, progress=False), place / "whole")
    store.write(store.read(finished)[["loss"]].drop_attrs(), place / "plain")
    for log in place.glob("*-log"):
        shutil.rmtree(log)
    (place / "empty").mkdir()
    (place / "file").write_bytes(b"no store")
    (place / "spec.toml").write_text(SPEC, encoding="utf-8")
    (place / "small.toml").write_text(studies.SMALL.to_toml(), encoding="utf-8")
    return place


@contextlib.contextmanager
def desk(library, names):
    """A new working directory with some things of the library."""
    there = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        here = Path(name).resolve() / "desk"
        here.mkdir()
        for item in library.iterdir():
            if item.is_file():
                shutil.copy(item, here)
            elif any(item.name in word for word in names):
                shutil.copytree(item, here / item.name)
        try:
            os.chdir(here)
            yield here
        finally:
            os.chdir(there)


def _stop(*_, **__):
    raise Large


def _no_sbatch(*_, **__):
    raise FileNotFoundError


@pytest.fixture(autouse=True)
def _nothing_is_computed(library, tmp_path, monkeypatch, as_installed):
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(_compute, "compute", _stop)
    monkeypatch.setattr(jobs, "_run_locally", _stop)
    monkeypatch.setattr(jobs, "subprocess", SimpleNamespace(run=_no_sbatch))
    monkeypatch.setattr(_rerun, "sweeps", SimpleNamespace(sweep=_stop))


@pytest.fixture(autouse=True)
def _figures(request):
    with drawn_figures(request.node.name):
        yield


def tried(few):
    """As many examples as are asked for, or a few."""
    return settings(
        max_examples=EXAMPLES or few,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        deadline=None,
        derandomize=True,
        suppress_health_check=CHECKS,
    )


@pytest.mark.slow
@tried(60)
@given(data=spec_files())
@example(data=b"\xff\xfe")
@example(data=b"a = " + b"[" * 10**4)
@example(data=b"\xef\xbb\xbf" + SPEC.encode())
def test_any_bytes_are_a_spec_or_are_refused(library, data):
    with desk(library, ()) as here:
        (here / "spec.toml").write_bytes(data)
        check(["sweep", "spec.toml", "--dry-run"])


@pytest.mark.slow
@tried(60)
@given(arguments=command_lines())
def test_any_arguments_are_heeded_or_refused(library, arguments):
    with desk(library, arguments):
        check(arguments)


@pytest.mark.slow
@tried(60)
@given(
    name=st.sampled_from(["finished", "finished", "finished", "unfinished", "whole", "plain"]),
    done=st.lists(damages(), min_size=1, max_size=3),
    command=st.sampled_from(ON_STORES),
)
def test_any_damage_of_a_store_is_told_in_one_line(library, name, done, command):
    with desk(library, [name]) as here:
        for damaging in done:
            if (here / name).is_dir():
                damage(here / name, *damaging)
        before = _sizes(here / name)
        check([name if word == "S" else word for word in command.split()])
        if command.startswith(READING):
            assert _sizes(here / name) == before


def _sizes(path):
    """Sizes and times of the files of a store."""
    found = {}
    for file in path.rglob("*") if path.is_dir() else ():
        info = file.lstat()
        found[file] = info.st_size, info.st_mtime_ns
    return found


def test_the_commands_that_are_drawn_are_all_there_are():
    assert {*cli._commands([])} == {*OPTIONS}
