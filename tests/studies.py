"""What the tests of stored studies share: small specs, whole folders as bytes, processes."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import zarr
from helpers import by_precision

import bwflow as bw
from bwflow._units import Grid
from bwflow.experiment import DescentSpec, Experiment, FlowSpec, NetworkSpec, TargetSpec

PRECISION = by_precision("float64", "float32")
SMALL = Experiment(
    name="small",
    seeds=3,
    batch_size=2,
    tau=(0.1,),
    dynamics=("descent",),
    target=TargetSpec(n=2),
    network=NetworkSpec(depth=(2,)),
    descent=DescentSpec(num_steps=10, save_every=5),
    flow=FlowSpec(end_time=1.0, num_saves=2, first_save=0.1, rtol=1e-3, atol=1e-6),
    tolerance=0.0,
    probe=("loss", "gap"),
    precision=PRECISION,
)
"""Two chunks: seeds 0 and 1, and seed 2 with a padded place beside it."""


def small(**changes):
    """The small study with other values; `network` and the like may be dicts of fields."""
    for name, value in changes.items():
        if isinstance(value, dict):
            changes[name] = dataclasses.replace(getattr(SMALL, name), **value)
    return dataclasses.replace(SMALL, **changes)


def begun(spec, path):
    """The store of a study without results."""
    return bw.stored.create(spec, path)


def finished(spec, path):
    """The store of a study, computed in this process."""
    compute(begun(spec, path))
    return path


def compute(path):
    """Compute what a store lacks, in this process."""
    bw.jobs.run(path, progress=False)


def copied(store, folder):
    """A copy of a store in another folder, under the same name."""
    return Path(shutil.copytree(store, folder / store.name))


def contents(path):
    """Bytes of every file below a folder, by its path there."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def assert_same(path, reference):
    """That two folders have the same files with the same bytes."""
    here, there = contents(path), contents(reference)
    assert sorted(here) == sorted(there)
    assert [name for name in here if here[name] != there[name]] == []


def arrays(path):
    """The arrays of a store, read by zarr alone."""
    return {name: array[...] for name, array in zarr.open_group(path, mode="r").arrays()}


def units(path):
    """The units of a store, in the order of its grid."""
    return Grid.open(path).units()


def unit(seed, *, tau=slice(0, 1)):
    """The unit of the small study with these seeds."""
    first = slice(0, 1)
    return {"dynamics": first, "depth": first, "bottleneck": first, "tau": tau, "seed": seed}


def counted(monkeypatch):
    """Lists the units that are computed from here on, in the order of their computation."""
    seen = []
    compute = bw._compute.compute

    def counting(path, units, **options):
        seen.extend(units)
        compute(path, units, **options)

    monkeypatch.setattr("bwflow._compute.compute", counting)
    return seen


def damage(file, how):
    """What happens to files on disks; `how` is cut, flip or delete."""
    data = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
        return
    if how == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 8
    file.write_bytes(data)


def python(code, *arguments, **variables):
    """Run a program in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
