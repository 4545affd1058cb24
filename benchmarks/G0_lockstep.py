"""G0: how long do runs wait for slower ones beside them, and what do groups of like runs save?

Starts of three scales, four smoothings; chunks of 256 runs in the order of the grid. All advance
together, or in groups one after another: in the order of the grid, or by smoothing and least
singular value of the start, as studies with a `group_size` do.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("EQX_ON_ERROR", "nan")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from _scripts import command_line, save

import bwflow as bw
from bwflow._lockstep import in_groups
from bwflow.sweeps import record

TAUS, SCALES = (0.0, 1e-3, 1e-2, 1e-1), (0.1, 0.3, 1.0)
CASES = {
    "flow, N = 2": 1,
    "flow, N = 3": 1,
    "descent, N = 2": 3,
    "descent, N = 3": 3,
    "descent to the end, N = 3": 3,
}
"""How often each is measured; a flow takes long enough to be measured once."""
WAYS = (
    "together",
    "64 by difficulty",
    "32 by difficulty",
    "16 by difficulty",
    "32 in the order of the grid",
)


def programs(case, n, batch, steps):
    """Of each way the program of a chunk, as a function of its columns."""
    depth = int(case[-1])
    spectrum = bw.covariances.geometric(n, 10.0)
    target = bw.covariances.from_spectrum(spectrum, key=jax.random.key(1))
    init = bw.initializers.balanced()
    until = None if "to the end" in case else bw.until.gap(1e-6)

    def start(scale, seed):
        layers = init(jax.random.key(seed), (n,) * (depth + 1))
        return tuple(scale ** (1 / depth) * W for W in layers)

    def run(tau, scale, seed):
        loss, layers = bw.losses.BuresWasserstein(target, tau), start(scale, seed)
        if case.startswith("flow"):
            end = jnp.linspace(0.0, steps / 10, 6)
            tolerances = {"rtol": 1e-6, "atol": 1e-8}
            trajectory = bw.gradient_flow(
                loss, layers, times=end, until=until, throw=False, **tolerances
            )
        else:
            sgd = optax.sgd(0.1)
            number = {"num_steps": steps, "save_every": steps}
            trajectory = bw.gradient_descent(loss, layers, sgd, until=until, throw=False, **number)
        return record(trajectory)

    def difficulty(tau, scale, seed):
        W = bw.end_to_end(start(scale, seed))
        return tau, -jnp.linalg.svd(W, compute_uv=False)[-1]

    def nothing(tau, scale, seed):
        return ()

    made = {}
    for way in WAYS:
        if way == "together":
            together = jax.vmap(run)
            chunk = jax.jit(lambda *columns, together=together: together(*columns[:-1]))
        else:
            size = min(int(way.split()[0]), batch // 2)
            chunk = jax.jit(in_groups(run, difficulty if "by" in way else nothing, size))
        made[way] = chunk
    return made


def measured(case, n, seeds, batch, steps):
    """By way: seconds, and the steps that all runs took together in lockstep over their sum."""
    axes = np.array(TAUS), np.array(SCALES), np.arange(seeds)
    grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
    chunks = [slice(first, first + batch) for first in range(0, grid[0].size, batch)]
    made = programs(case, n, batch, steps)
    real = np.ones(batch, bool)
    compiled = {
        way: chunk.lower(*[axis[chunks[0]] for axis in grid], real).compile()
        for way, chunk in made.items()
    }
    seconds = {way: [] for way in WAYS}
    wasted = {}
    for _ in range(CASES[case]):
        for way, program in compiled.items():
            begun = time.perf_counter()
            found = [
                jax.device_get(program(*[axis[chunk] for axis in grid], real)) for chunk in chunks
            ]
            seconds[way].append(time.perf_counter() - begun)
            size = batch if way == "together" else min(int(way.split()[0]), batch // 2)
            lanes = sum(
                size * rows["num_steps"][which == group].max()
                for rows in found
                for which in [rows.get("group", np.zeros(batch, int))]
                for group in np.unique(which)
            )
            wasted[way] = 1 - sum(rows["num_steps"].sum() for rows in found) / lanes
    return [(float(np.median(seconds[way])), float(wasted[way])) for way in WAYS]


def picture(ds, path):
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained", sharey=True)
    for k, way in enumerate(ds["way"].values):
        places = np.arange(ds.sizes["case"]) + 0.16 * k
        axes[0].barh(places, ds["wasted"].sel(way=way), 0.15, label=str(way))
        axes[1].barh(places, ds["time"].sel(way=way), 0.15)
    axes[0].set_yticks(np.arange(ds.sizes["case"]) + 0.32, ds["case"].values.tolist())
    axes[0].set_xlabel("share of steps spent waiting")
    axes[1].set_xlabel("time over that of all together")
    axes[0].legend(fontsize="x-small")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    n, seeds, batch, steps = (2, 2, 8, 20) if smoke else (10, 64, 256, 1000)
    cases = ["descent, N = 2"] if smoke else list(CASES)
    rows = []
    for case in cases:
        rows.append(measured(case, n, seeds, batch, 100 if "to the end" in case else steps))
        for way, (seconds, wasted) in zip(WAYS, rows[-1], strict=True):
            ratio = seconds / rows[-1][0][0]
            print(f"{case}: {way:28s} {wasted:4.0%} waiting, time {ratio:.2f}", flush=True)
    numbers = np.array(rows)
    ds = xr.Dataset(
        {
            "wasted": (("case", "way"), numbers[..., 1]),
            "time": (("case", "way"), numbers[..., 0] / numbers[:, :1, 0]),
        },
        coords={
            "case": np.array(cases, dtype=np.dtypes.StringDType()),
            "way": np.array(WAYS, dtype=np.dtypes.StringDType()),
        },
        attrs={"question": __doc__.splitlines()[0], "n": n, "seeds": seeds, "batch": batch},
    )
    save(ds, out, "G0_lockstep")
    picture(ds, out / "G0_lockstep.png")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
