"""C0: in how many steps does deep_precgd arrive, from which starts, and what does a step cost?

Every cell is a batch of random starts of one network under the Bures-Wasserstein loss, n = 20,
tau = 0, held to a gap of 1e-10 of the loss at the start. A step's cost is its time over that of a
step of gradient descent, for three layers, n = 64.
"""

import os
import time
from pathlib import Path

# XLA may spread the batch over the cores; threads inside each factorisation would fight it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

N, GAP, STEPS = 20, 1e-10, 60
STARTS = {
    "gaussian": (bw.initializers.gaussian(N**-0.5), (2, 3, 5, 10, 16, 32)),
    "orthogonal": (bw.initializers.orthogonal(), (2, 5, 10, 16)),
    "gaussian x 0.1": (bw.initializers.gaussian(0.1 * N**-0.5), (2, 5, 10)),
}
CONDITIONS = (1e1, 1e3, 1e6)
BOTTLENECKS = (N, 5)


def cells(smoke):
    for start, (init, depths) in STARTS.items():
        for bottleneck in BOTTLENECKS:
            for depth in depths if not smoke else (2,):
                for condition in CONDITIONS if not smoke else (1e3,):
                    yield start, init, bottleneck, depth, condition


def measure(init, bottleneck, depth, condition, batch):
    """The step at which each start arrives, infinite where none does."""
    spectrum = bw.covariances.geometric(N, condition)
    target = bw.covariances.from_spectrum(spectrum, key=jax.random.key(1))
    widths = bw.factors.linear_widths(N, depth, bottleneck=bottleneck)
    loss, rule = bw.losses.BuresWasserstein(target), bw.precondition.deep_precgd()

    def run(key):
        start = init(key, widths)
        until = bw.until.gap(GAP)
        found = bw.gradient_descent(
            loss, start, rule, num_steps=STEPS, save_every=STEPS, until=until, throw=False
        )
        return found.hit

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), batch)))


def costs(n, bottleneck, batch, steps, repeats):
    """Time of `steps` steps over that of gradient descent, alternating, once per repeat."""
    target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 1e3), key=jax.random.key(1))
    loss, init = bw.losses.BuresWasserstein(target), bw.initializers.gaussian()
    widths = bw.factors.linear_widths(n, 3, bottleneck=bottleneck)
    starts = jax.vmap(lambda key: init(key, widths))(jax.random.split(jax.random.key(0), batch))

    def program(rule):
        def run(start):
            return bw.gradient_descent(
                loss, start, rule, num_steps=steps, save_every=steps, throw=False
            ).factors

        return jax.jit(jax.vmap(run)).lower(starts).compile()

    sides = program(bw.precondition.deep_precgd()), program(optax.sgd(1e-4))
    seconds = np.zeros((repeats + 1, 2))
    for row in seconds:
        for i, side in enumerate(sides):
            begin = time.perf_counter()
            jax.block_until_ready(side(starts))
            row[i] = time.perf_counter() - begin
    return seconds[1:, 0] / seconds[1:, 1]


def picture(ds, out):
    fig, axes = plt.subplots(1, ds.sizes["bottleneck"], figsize=(9, 3.4), layout="constrained")
    for ax, k in zip(np.atleast_1d(axes), ds["bottleneck"].values, strict=True):
        for start in ds["start"].values:
            hits = ds["hit"].sel(start=start, bottleneck=k)
            hits = hits.stack(run=("condition", "seed")).dropna("depth", how="all")
            for q, style in ((0.5, "-"), (0.99, ":")):
                steps = np.quantile(hits.values, q, axis=1, method="inverted_cdf")
                label = f"{start}, {'median' if q == 0.5 else '99 %'}"
                ax.plot(hits["depth"], np.where(np.isinf(steps), np.nan, steps), style, label=label)
        ax.set(xlabel="depth N", title=f"bottleneck {k}", xscale="log", ylim=(0, STEPS))
    np.atleast_1d(axes)[0].set_ylabel(f"steps to a gap of {GAP:.0e}")
    np.atleast_1d(axes)[0].legend(fontsize=7, frameon=False)
    fig.savefig(out / "C0_deep.png", dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    batch = 4 if smoke else 1000
    rows = []
    for start, init, bottleneck, depth, condition in cells(smoke):
        hits = measure(init, bottleneck, depth, condition, batch)
        where = {
            "start": start,
            "bottleneck": bottleneck,
            "depth": depth,
            "condition": condition,
            "seed": np.arange(batch),
        }
        cell = xr.DataArray(hits, coords=where, dims="seed")
        rows.append(cell.expand_dims(["start", "bottleneck", "depth", "condition"]))
        print(
            f"{start:15s} bottleneck {bottleneck:2d} N={depth:2d} kappa={condition:.0e}: "
            f"{np.mean(np.isfinite(hits)):7.2%} arrive (<= 30: {np.mean(hits <= 30):7.2%}), "
            f"median {np.median(hits):3.0f}, most {np.max(hits):3.0f}",
            flush=True,
        )
    ds = xr.combine_by_coords([row.to_dataset(name="hit") for row in rows])
    ds["start"] = ds["start"].astype(np.dtypes.StringDType())
    ds["hit"].attrs.update(units="step", long_name="step of arrival, infinite where there is none")
    n, repeats = (4, 1) if smoke else (64, 9)
    ratios = [costs(n, k, 2 if smoke else 16, 2 if smoke else 10, repeats) for k in (n, n // 4)]
    ds["cost"] = (("inner", "repeat"), np.array(ratios))
    ds["cost"].attrs.update(units="1", long_name="time of a step over that of gradient descent")
    ds = ds.assign_coords(inner=[n, n // 4])
    for k, ratio in zip(ds["inner"].values, ratios, strict=True):
        low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
        print(f"a step at n={n}, bottleneck {k}: {middle:.2f} [{low:.2f}, {high:.2f}] of descent's")
    ds.attrs.update(question=__doc__.splitlines()[0], gap=GAP, steps=STEPS, n=N, dtype="float64")
    save(ds, out, "C0_deep")
    picture(ds, out)
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
