"""Commands write where they are told to, and nowhere else; the library writes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.once]

SPEC = """
name = "writes"
seeds = 3
batch_size = 2
dynamics = ["descent"]
tolerance = 0.0
[target]
n = 2
[network]
depth = [2]
[descent]
num_steps = 5
save_every = 1
"""
# Commands one after the other in one process, with the paths that Python opens for writing, makes,
# renames or removes, as absolute ones. What libraries in C write themselves (HDF5, Arrow) is seen
# by what is there afterwards.
WATCH = """\\
import json, os, sys, tempfile

touched = set()
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
           "os.chmod", "os.utime", "shutil.rmtree", "shutil.move")


def hook(event, details):
    if event == "open" and not (isinstance(details[2], int) and details[2] & 3):
        return
    if event != "open" and event not in CHANGES:
        return
    for name in details[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]:
        # Of a folder that is there nothing comes.
        there = event == "os.mkdir" and os.path.isdir(name)
        if isinstance(name, (str, bytes, os.PathLike)) and not there:
            above = ""
            if event in ("os.remove", "os.rmdir") and details[1] >= 0:  # relative to that folder
                above = os.readlink(f"/proc/self/fd/{details[1]}")
            touched.add(os.path.abspath(os.path.join(above, os.fsdecode(name))))


sys.addaudithook(hook)
"""
COMMANDS = (
    WATCH
    + """
from bwflow.__main__ import main

found = []
for arguments in json.loads(sys.argv[1]):
    touched.clear()
    sys.argv = ["bwflow", *arguments]
    code = main()
    found.append([arguments[0], code, sorted(touched)])
print(json.dumps(found))
"""
)
LIBRARY = (
    WATCH
    + """
import jax.numpy as jnp
import optax

import bwflow as bw

start = (jnp.eye(2), jnp.eye(2))
loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([1.0, 0.5]))), 0.1)
bw.gradient_descent(loss, start, optax.sgd(0.1), num_steps=3)
bw.gradient_flow(loss, start, times=jnp.array([0.0, 1.0]), rtol=1e-3, atol=1e-6)
bw.sweep(lambda seed: bw.gradient_descent(loss, start, optax.sgd(0.1), num_steps=3),
         traced={"seed": jnp.arange(2)}, progress=False)
print(json.dumps(sorted(touched)))
"""
)
DEVICES = ("/dev/null", "/dev/tty", "/proc/self")


@pytest.fixture
def places(tmp_path):
    """Folders of which a process is told, and those it finds itself in."""
    made = {name: tmp_path / name for name in ("home", "here", "data", "cache", "temporary")}
    for folder in made.values():
        folder.mkdir()
    return made


def run(script, places, *arguments, cache=True):
    """What a script of Python printed, in an environment that has little but these folders."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "JAX_", "MPL", "PYTEST", "PYTHON"))
    }
    environment |= {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"])}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(places["cache"])}
        # Its list of fonts, which it otherwise keeps in ~/.cache/matplotlib.
        environment |= {"MPLCONFIGDIR": str(places["cache"] / "matplotlib")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=places["here"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def stray(touched, *allowed):
    """Paths that are in none of the allowed places."""
    allowed = [str(place) for place in (*allowed, *DEVICES)]
    return [
        path
        for path in touched
        if not any(path == place or path.startswith(f"{place}/") for place in allowed)
    ]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_commands_write_to_the_store_and_where_they_are_told_to_alone(places):
    data = places["data"]
    spec, store, out = data / "spec.toml", data / "store", data / "out"
    spec.write_text(SPEC, encoding="utf-8")
    quiet = "--no-progress"
    beside = [data / "store-log", *(data / f"{name}" for name in ("all.nc", "runs.parquet"))]
    commands = [
        ("sweep", spec, "--store", store, quiet),
        ("status", store),
        ("show", store),
        ("report", store),
        ("report", store, "--out", out),
        ("export", store, "--netcdf", data / "all.nc", "--parquet", data / "runs.parquet"),
        ("rerun", store, "--seed", "0"),
        ("rerun", store, "--seed", "1", "--out", data / "again"),
        ("extend", store, "--seeds", "4", quiet),
        ("repair", store, quiet),
        ("work", store, quiet),
        ("slurm", store, "--array", "2", "--dry-run"),
        ("sweep", spec, "--dry-run"),
        ("completion", "bash"),
    ]
    found = run(COMMANDS, places, json.dumps([[*map(str, command)] for command in commands]))
    assert [code for _, code, _ in found] == [0] * len(commands)
    written = {
        "sweep": [store, data / "store-log"],
        "extend": [store, data / "store-log"],
        "repair": [store, data / "store-log"],
        "report": [data / "store-report", out],
        "rerun": [data / "store-rerun", data / "again"],
        "export": beside[1:],
    }
    for name, _, touched in found:
        own = written.get(name, [])
        # Drafts are made beside what they become, and gone when it is there.
        drafts = [path for path in touched if any(f"/.{place.name}-" in path for place in own)]
        assert stray(touched, *own, *drafts, places["cache"], places["temporary"]) == [], name
    assert {path.name for path in data.iterdir()} == {
        *("spec.toml", "store", "store-log", "store-report", "store-rerun", "out", "again"),
        *("all.nc", "runs.parquet"),
    }
    assert files(places["home"]) == files(places["here"]) == []
    assert files(places["temporary"]) == []


def test_without_a_place_results_and_caches_are_where_the_readme_says(places):
    spec = places["data"] / "spec.toml"
    spec.write_text(SPEC, encoding="utf-8")
    command = json.dumps([["sweep", str(spec), "--no-progress"]])
    [[_, code, touched]] = run(COMMANDS, places, command, cache=False)
    assert code == 0
    cache, results = places["home"] / ".cache" / "bwflow", places["here"] / "results"
    assert stray(touched, cache, results, cache.parent, places["temporary"]) == []
    assert {path.name for path in places["home"].iterdir()} == {".cache"}
    assert {path.name for path in (places["home"] / ".cache").iterdir()} == {"bwflow"}
    assert {path.name for path in places["here"].iterdir()} == {"results"}


def test_the_library_and_its_solves_write_nothing(places):
    assert stray(run(LIBRARY, places, cache=False)) == []
    for folder in places.values():
        assert files(folder) == []
