"""A process that solves a thousand times keeps its size, and compiles at the beginning alone."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.once]

MEASURE = """\
import gc, json, os, sys
from pathlib import Path

import jax

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: event.endswith("backend_compile_duration") and compiled.append(event)
)


def measured():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_bytes().count(b"\\n")
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "compiled": len(compiled),
        "files": len(os.listdir("/proc/self/fd")),
        "maps": maps,
        "arrays": len(jax.live_arrays()),
    }
"""
SOLVES = (
    MEASURE
    + """
import jax.numpy as jnp
import optax

import bwflow as bw

target = bw.Target(jnp.diag(jnp.array([1.0, 0.5, 0.2])))
gaussian = jax.jit(lambda seed: bw.initializers.gaussian()(jax.random.key(seed), (3, 3, 3)))
kept = optax.sgd(0.1)


@jax.jit
def descent(rate, tau, seed):
    loss = bw.losses.BuresWasserstein(target, tau)
    start = bw.initializers.gaussian()(jax.random.key(seed), (3, 3, 3))
    return bw.gradient_descent(loss, start, optax.sgd(rate), num_steps=20, throw=False)


def solve(i):
    tau, rate = 0.1 + i / 1000, 0.01 + i / 10_000
    if i % 2:
        return descent(rate, tau, i)
    loss, start = bw.losses.BuresWasserstein(target, tau), gaussian(i)
    until = bw.until.gap(1e-3 * (1 + rate))
    if i % 4:
        return bw.gradient_descent(loss, start, kept, num_steps=20, until=until, throw=False)
    numbers = {"times": jnp.array([0.0, rate, 1.0]), "rtol": rate / 10, "atol": rate / 10**4}
    return bw.gradient_flow(loss, start, **numbers, until=until, throw=False)


seen = []
for i in range(1000):
    jax.block_until_ready(solve(i).factors)
    if i % 100 == 99:
        seen.append(measured())
print(json.dumps(seen))
"""
)
CHUNKS = (
    MEASURE
    + """
import bwflow as bw
from bwflow import _compute

spec = bw.Experiment(
    seeds=100,
    batch_size=1,
    dynamics=("descent",),
    target=bw.experiment.TargetSpec(n=2),
    descent=bw.experiment.DescentSpec(num_steps=5),
)
seen, computed, compute = [], [], _compute.compute


def counted(*arguments, **options):
    compute(*arguments, **options)
    computed.append(1)
    if len(computed) % 10 == 0:
        seen.append(measured())


_compute.compute = counted
bw.jobs.run(bw.stored.create(spec, sys.argv[1]), progress=False)
print(json.dumps(seen))
"""
)
# A leak of a matrix or a closure for each solve would be one or more. Measured: below 1.
MEGABYTES = 4


def measurements(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ["solves", "chunks of a store"])
def test_memory_is_flat_once_programs_are_compiled(what, tmp_path):
    """And no more files, programs, mappings or arrays."""
    script = SOLVES if what == "solves" else CHUNKS
    _, first, *later = seen = measurements(script, tmp_path / "store")
    print(f"\n{what}: {[round(x['bytes'] / 1e6, 1) for x in seen]} MB, {seen[-1]}")
    assert len(later) == 8
    assert max(x["bytes"] for x in later) - first["bytes"] < MEGABYTES * 1e6
    for name in ("compiled", "files", "arrays"):
        assert {x[name] for x in later} == {first[name]}, name
    assert max(x["maps"] for x in later) <= first["maps"] + 100
