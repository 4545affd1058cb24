"""B0: what do store, log and progress bar add to a sweep whose chunks take seconds?

A study of a few chunks is run by `bwflow.jobs.run`, and the time that it spends in the computation
of chunks is held against the whole: the rest is opening the store, writing, logging and the bar.
Both are taken in the same run, for two runs of equal chunks differ by more than the overhead.
"""

import io
import os
import tempfile
import time
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

# As the command sets them; read when jax and equinox are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("EQX_ON_ERROR", "nan")

import jax
import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw
from bwflow import _compute

PROBE = ("loss", "gap", "gradient_norm", "singular_values", "imbalance")


def spec(steps, batch, chunks):
    return bw.Experiment(
        name="overhead",
        dynamics=("descent",),
        network=bw.experiment.NetworkSpec(depth=(3,)),
        target=bw.experiment.TargetSpec(n=16),
        descent=bw.experiment.DescentSpec(num_steps=steps, save_every=max(1, steps // 100)),
        probe=PROBE,
        tolerance=0.0,
        seeds=chunks * batch,
        batch_size=batch,
    )


@contextmanager
def timed_chunks():
    """The seconds that each computation of a chunk took, in a list."""
    found, results = [], _compute.results

    def timed(*arguments, **keywords):
        start = time.perf_counter()
        try:
            return results(*arguments, **keywords)
        finally:
            found.append(time.perf_counter() - start)

    _compute.results = timed
    try:
        yield found
    finally:
        _compute.results = results


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    experiment = spec(20, 4, 2) if smoke else spec(1200, 64, 4)
    repeats, seconds = 2 if smoke else 5, []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(-1, repeats):  # the first compiles
            path = bw.stored.create(experiment, Path(folder) / f"store-{repeat}")
            with timed_chunks() as chunks, redirect_stderr(io.StringIO()):
                start = time.perf_counter()
                bw.jobs.run(path)
                whole = time.perf_counter() - start
            if repeat >= 0:
                seconds.append((whole, *chunks))
        files = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    whole, chunks = np.split(np.array(seconds), [1], axis=1)
    overhead = whole[:, 0] / chunks.sum(1) - 1
    ds = xr.Dataset(
        {
            "seconds": ("repeat", whole[:, 0]),
            "chunk_seconds": (("repeat", "chunk"), chunks),
            "overhead": ("repeat", overhead),
            "bytes_per_run": files / experiment.seeds,
        },
        attrs={"question": __doc__.splitlines()[0], "experiment": experiment.to_json()},
    )
    ds["overhead"].attrs.update(units="1", long_name="whole over computation, less one")
    save(ds, out, "B0_store")
    low, middle, high = 100 * np.quantile(overhead, (0.25, 0.5, 0.75))
    chunk = np.median(chunks)
    print(f"overhead {middle:.2f} % [{low:.2f}, {high:.2f}] with chunks of {chunk:.1f} s")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
