"""B0: what do store, log and progress bar add to a sweep whose chunks take seconds?

One chunk is computed by its compiled program alone, and then by `bwflow.jobs.run`, which opens the
store, computes, writes, logs and shows its bar, in alternating repeats of one process.
"""

import argparse
import io
import os
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

# As the command sets them; read when jax and equinox are imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("EQX_ON_ERROR", "nan")

import jax
import numpy as np
import xarray as xr

import bwflow as bw
from bwflow import _compute
from bwflow._units import Grid

PROBE = ("loss", "gap", "gradient_norm", "singular_values", "imbalance")


def spec(steps, batch):
    return bw.Experiment(
        name="overhead",
        dynamics=("descent",),
        network=bw.experiment.NetworkSpec(depth=(3,)),
        target=bw.experiment.TargetSpec(n=16),
        descent=bw.experiment.DescentSpec(num_steps=steps, save_every=max(1, steps // 100)),
        probe=PROBE,
        tolerance=0.0,
        seeds=batch,
        batch_size=batch,
    )


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    experiment, repeats = spec(20 if smoke else 2000, 4 if smoke else 64), 2 if smoke else 7
    with tempfile.TemporaryDirectory() as folder:
        path = bw.stored.create(experiment, Path(folder) / "store")
        grid = Grid.open(path)
        [unit] = grid.units()

        def stored():
            grid.forget(unit)
            with redirect_stderr(io.StringIO()):
                bw.jobs.run(path)

        def computed():
            _compute.results(path, [unit])

        sides = {"computed": computed, "stored": stored}
        for side in sides.values():  # compile
            side()
        runs = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                runs[name].append(seconds(side))
        files = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    overhead = np.array(runs["stored"]) / np.array(runs["computed"]) - 1
    ds = xr.Dataset(
        {"seconds": (("side", "repeat"), np.array([runs[name] for name in sides]))}
        | {"overhead": ("repeat", overhead), "bytes_per_run": files / experiment.seeds},
        coords={"side": np.array([*sides], dtype=np.dtypes.StringDType())},
        attrs={"question": __doc__.splitlines()[0], "experiment": experiment.to_json()},
    )
    ds["overhead"].attrs.update(units="1", long_name="stored over computed, less one")
    out.mkdir(parents=True, exist_ok=True)
    ds.to_zarr(out / "B0_store", mode="w", zarr_format=3, consolidated=False)
    low, middle, high = 100 * np.quantile(overhead, (0.25, 0.5, 0.75))
    chunk = float(ds["seconds"].sel(side="computed").median())
    print(f"overhead {middle:.1f} % [{low:.1f}, {high:.1f}] of a chunk of {chunk:.1f} s")
    return ds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    jax.config.update("jax_enable_x64", True)
    main(**vars(parser.parse_args()))
