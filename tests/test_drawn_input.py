"""Drawn specs and command lines: each runs, or is refused in one line, and nothing else happens."""

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
import tomli_w
from commands import SPEC, enter
from drawn import CHECKS, EXAMPLES, Large, called, drawn_figures, hostile, words
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from bwflow import jobs, plan, store, stored, study
from bwflow.experiment import DescentSpec, Experiment, FlowSpec, NetworkSpec, TargetSpec

pytestmark = pytest.mark.once

TABLES = {"": Experiment, "target": TargetSpec, "network": NetworkSpec}
TABLES |= {"flow": FlowSpec, "descent": DescentSpec}
HINTS = {
    f"{table}.{name}".lstrip("."): hint
    for table, kind in TABLES.items()
    for name, hint in get_type_hints(kind).items()
    if name in {field.name for field in dataclasses.fields(kind)} and name not in TABLES
}
KEYS = sorted(HINTS)
# What changes the numbers of a study and not how many they are.
SIZES = {"target.n", "dynamics", "precision", "seeds", "network.depth", "descent.num_steps"}
NUMERIC = sorted(set(KEYS) - SIZES - {"network.width", "network.latent", "target.num_samples"})
# What a run may take of everything, so that those that are not refused end soon.
TINY = tomllib.loads(SPEC) | {
    "seeds": 1,
    "tau": [0.1],
    "flow": {"end_time": 1.0, "num_saves": 3, "rtol": 1e-2, "atol": 1e-3, "max_steps": 99},
    "descent": {"num_steps": 4, "save_every": 2},
}

PLACES = """new|new/|a b/c|../new|x/../new|./new|results|é|.|..||/|spec.toml|spec.toml/x
-new|../stores|../stores/plain|../stores/study|../shelf/good.npy|results/../../new|~|n.toml|%s"""
paths = st.sampled_from([*PLACES.replace("\n", "|").split("|"), "a\nb", "x" * 300])
files = st.sampled_from(["good", "samples", "nan", "flat", "none"]).map("../shelf/{}.npy".format)


def plausible(key):
    """Values of the right type, many of them in range."""
    hint = HINTS[key]
    if key == "target.path":
        return files
    if get_origin(hint) is tuple:
        of = choice(get_args(hint)[0])
        return st.lists(of, min_size=1, max_size=3, unique=True)
    return choice(hint)


def choice(hint):
    if get_args(hint):
        return st.sampled_from(get_args(hint))
    return {
        bool: st.booleans(),
        int: st.integers(0, 5) | st.integers(0, 2**31),
        float: st.sampled_from([0.0, 1e-30, 1e-9, 1e-3, 0.1, 0.5, 1.0, 2.0, 7.5, 1e3, 1e9, 1e30]),
        str: words,
    }[hint]


@st.composite
def misspelt(draw, key):
    """A key as people type it."""
    i = draw(st.integers(0, len(key) - 1))
    kind = draw(st.sampled_from(["keep", "keep", "keep", "drop", "double", "case", "tail", "word"]))
    return {
        "keep": key,
        "drop": key[:i] + key[i + 1 :],
        "double": key[:i] + key[i] + key[i:],
        "case": key[:i] + key[i].upper() + key[i + 1 :],
        "tail": key.rpartition(".")[2],
        "word": draw(words),
    }[kind]


@st.composite
def changes(draw, most):
    """Keys with values: mostly known ones with what they may take, else hostile."""
    found = []
    for _ in range(draw(st.integers(0, most))):
        key = draw(st.sampled_from(KEYS))
        good = draw(st.integers(0, 2)) > 0
        value = draw(plausible(key) if good else hostile)
        found.append((key if good else draw(misspelt(key)), value))
    return found


@st.composite
def texts(draw):
    """The text of a spec file, or None for no file."""
    data = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
    for key, value in draw(changes(3)):
        table, _, name = key.rpartition(".")
        place = data.setdefault(table, {}) if table else data
        if isinstance(place, dict):
            place[name] = value
    text = tomli_w.dumps(data)
    kind = draw(st.sampled_from(["whole"] * 12 + ["cut", "inserted", "bytes", "none"]))
    i = draw(st.integers(0, len(text)))
    return {
        "whole": text.encode(),
        "cut": text[:i].encode(),
        "inserted": (text[:i] + draw(words) + text[i:]).encode(),
        "bytes": draw(st.binary(max_size=20)),
        "none": None,
    }[kind]


def as_words(value):
    values = value if isinstance(value, list) else [value]
    return [str(v) for v in values]


@st.composite
def studies(draw):
    """The text of a spec file that is mostly valid, and whose study is mostly small."""
    data = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
    for key in draw(st.lists(st.sampled_from(NUMERIC), min_size=1, max_size=4, unique=True)):
        table, _, name = key.rpartition(".")
        place = data[table] if table else data
        place[name] = draw(plausible(key))
    return tomli_w.dumps(data).encode()


@st.composite
def command_lines(draw):
    """Arguments: mostly sweeps, dry but for a few."""
    options = []
    for key, value in draw(changes(3)):
        key = draw(st.sampled_from([key, key.replace("_", "-")]))
        joined = draw(st.integers(0, 3)) == 0
        given = as_words(value)[: draw(st.sampled_from([3, 3, 3, 0]))]
        options.append([f"--{key}={' '.join(given)}"] if joined else [f"--{key}", *given])
    if draw(st.booleans()):
        options.append(["--store", draw(paths)])
    extra = ["--overwrite", "--help", "--example", "--progress", "--full", "--out", "--spec", "-x"]
    if draw(st.integers(0, 5)) == 0:
        options.append([draw(st.sampled_from(extra) | words)])
    options = [word for option in draw(st.permutations(options)) for word in option]
    spec = draw(st.sampled_from([["spec.toml"]] * 9 + [[], ["none.toml"], ["spec.toml"] * 2]))
    first = draw(st.integers(0, 9)) > 0
    dry = ["--dry-run"] * (draw(st.integers(0, 7)) != 3)
    kind = draw(st.sampled_from(["sweep"] * 16 + ["demo", "report", "show", "other"]))
    if kind in ("sweep", "demo"):
        given = spec if kind == "sweep" else []
        return [kind, *(given + options if first else options + given), *dry, "--no-progress"]
    if kind in ("report", "show"):
        into = ["--out", draw(paths)] if draw(st.booleans()) else []
        return [kind, draw(paths), *into, *(options if draw(st.booleans()) else [])]
    return [draw(words | st.sampled_from(["swep", "completion", "--version"])), *options]


def only_small(run):
    """`jobs.run`, for studies of one small program."""

    def small(path, **keywords):
        experiment = stored.experiment_of(path)
        target, flow = experiment.target, experiment.flow
        (cell, *more) = plan.cells(experiment, study.target_size(target))
        large = cell.runs > 4 or max(cell.widths) > 16 or len(cell.widths) > 3
        large |= max(target.rank, target.num_samples) > 10**5
        large |= cell.dynamics == "descent" and cell.steps > 2000
        large |= cell.dynamics == "flow" and max(flow.max_steps, flow.num_saves) > 200
        if more or large:
            raise Large
        return run(path, **keywords)

    return small


def tree(folder, allowed):
    """Sizes and times of the files in a folder, but for those below what is allowed."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not any(place in path.resolve().parents for place in allowed)
    }


def places(arguments):
    """Where a command line lets files be written."""
    found = [Path("results").resolve()]
    for i, word in enumerate(arguments):
        if word in ("--store", "--out") or word.startswith(("--store=", "--out=")):
            value = word.partition("=")[2] if "=" in word else "".join(arguments[i + 1 : i + 2])
            with contextlib.suppress(OSError, ValueError):
                found.append(Path(value).resolve())
    if arguments[:1] == ["report"] and arguments[1:]:
        with contextlib.suppress(OSError, ValueError):
            path = Path(arguments[1]).resolve()
            found.append(path.with_name(f"{path.name}-report"))
    return [place for place in found if place != Path.cwd() and place not in Path.cwd().parents]


def check(library, text, arguments):
    """Run one command line in a new folder; refused in one line, or done as it should be."""
    with tempfile.TemporaryDirectory() as name:
        here, before_there = Path(name).resolve() / "a folder", os.getcwd()
        here.mkdir()
        for folder in library.iterdir():
            if any(folder.name in str(given) for given in (text, *arguments)):
                shutil.copytree(folder, here.parent / folder.name)
        try:
            os.chdir(here)
            if text is not None:
                Path("spec.toml").write_bytes(text)
            allowed = places(arguments)
            allowed += [
                place.with_name(place.name + end)
                for place in allowed
                for end in ("-report", "-log")
            ]
            before = tree(here.parent, allowed)
            code, out, err = called(arguments)
            assert code in (0, 2, None), err
            if code == 2:
                event("refused")
                assert out == ""
                assert re.fullmatch(r"bwflow: [^\r\n]+\n", err), err
            if code == 0:
                assert err == "" or err.endswith("holds this study already\n")
                written = re.search(r"^store   (.*)\nnext ", out, re.DOTALL)
                event("a study was run" if written else "something was printed")
                if written:
                    check_store(Path(written[1]))
            assert tree(here.parent, allowed) == before
        finally:
            os.chdir(before_there)


def check_store(path):
    """No NaN is passed off as a result, and no failed run as one that arrived."""
    ds = store.read(path)
    assert not ds["hit"].isnull().any()
    assert not (np.isfinite(ds["hit"]) & ~ds["success"]).any()
    assert np.isfinite(ds["loss"].where(ds["success"], 0.0)).all()
    assert np.isfinite(ds["target_eigenvalues"]).all()
    for command in ("show", "report"):
        code, out, err = called([command, str(path)])
        assert (code, err) == (0, "")
        assert not re.search(r"\bnan\b(?!-)", out)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """What the drawn paths may meet: matrices, a study and another store."""
    place = tmp_path_factory.mktemp("drawn")
    shelf = place / "shelf"
    shelf.mkdir()
    np.save(shelf / "good.npy", np.diag([1.0, 0.5]))
    np.save(shelf / "samples.npy", np.random.default_rng(0).normal(size=(9, 2)))
    np.save(shelf / "nan.npy", np.full((2, 2), np.nan))
    np.save(shelf / "flat.npy", np.ones(3))
    ds = study.run(Experiment.from_dict(tomllib.loads(SPEC)), progress=False)
    store.write(ds, place / "stores" / "study")
    store.write(ds[["loss"]].drop_attrs(), place / "stores" / "plain")
    return place


@pytest.fixture(autouse=True)
def _small(library, tmp_path, monkeypatch, as_installed):
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(jobs, "run", only_small(jobs.run))


@pytest.fixture(autouse=True)
def _figures(request):
    with drawn_figures(request.node.name):
        yield


def drawn(count):
    """That many pairs of a spec file and a command line."""

    def decorate(test):
        test = given(text=texts(), arguments=command_lines())(test)
        return settings(
            max_examples=count, deadline=None, derandomize=True, suppress_health_check=CHECKS
        )(test)

    return decorate


whole = tomli_w.dumps(TINY).encode()


@drawn(40)
@example(text=whole, arguments=["sweep", "spec.toml", "--no-progress"])
@example(text=whole, arguments=["sweep", "spec.toml", "--no-progress", "--dynamics", "flow"])
@example(text=whole, arguments=["report", "../stores/study", "--out", "a b/c/"])
def test_drawn_input_runs_or_is_refused_in_one_line(library, text, arguments):
    check(library, text, arguments)


@pytest.mark.slow
@drawn(EXAMPLES or 800)
def test_much_drawn_input_runs_or_is_refused_in_one_line(library, text, arguments):
    check(library, text, arguments)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(text=studies())
def test_drawn_studies_give_no_nan_for_a_result(library, text):
    check(library, text, ["sweep", "spec.toml", "--no-progress"])
