"""D0: how do gradients grow with size, depth and batch, and compilation with depth?

Descents of the smoothed loss, square layers, tau > 0. Slopes are those of the logarithms between
neighbouring cells; crossovers are where the two terms of a fit of two powers are equal. Compilation
is that of a gradient, a descent and a flow.
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
from scipy.optimize import nnls

import bwflow as bw

TAU, SGD = 1e-2, optax.sgd(1e-3)
# What varies, and the other two: size n, depth N, batch.
CELLS = {
    "n": [(n, 3, max(1, 2**16 // n**2)) for n in (8, 16, 32, 64, 128, 256, 512, 1024)],
    "N": [(16, N, 64) for N in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
    "batch": [(16, 3, batch) for batch in (1, 4, 16, 64, 256, 1024, 4096)],
}
# Of the size: what moves numbers, and products; of the depth: the loss, and the layers; of the
# batch: a call, and a run.
POWERS = {"n": (2, 3), "N": (0, 1), "batch": (-1, 0)}
SMOKE = {"n": [(2, 2, 2), (4, 2, 2)], "N": [(2, 1, 2), (2, 3, 2)], "batch": [(2, 2, 1), (2, 2, 4)]}


def problem(n, depth, batch):
    target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 10.0), key=jax.random.key(0))
    keys, widths = jax.random.split(jax.random.key(1), batch), (n,) * (depth + 1)
    init = bw.initializers.orthogonal(0.9 ** (1 / depth))
    layers = jax.vmap(lambda key: init(key, widths, dtype=float))(keys)
    return bw.losses.BuresWasserstein(target, TAU), layers


def stepper(loss, steps):
    gradient = jax.grad(lambda layers: loss(bw.end_to_end(layers)))

    def step(_, layers):
        return jax.tree.map(lambda W, g: W - 1e-3 * g, layers, gradient(layers))

    return jax.jit(jax.vmap(lambda layers: jax.lax.fori_loop(0, steps, step, layers)))


def gradients(cell, repeats):
    """Seconds per gradient and run."""
    n, depth, batch = cell
    loss, layers = problem(*cell)
    # Enough of them to be seen by the clock, and not more than one waits for.
    steps = int(np.clip(2e8 / (batch * depth * n**3), 2, 200))
    run, seconds = stepper(loss, steps), []
    jax.block_until_ready(run(layers))
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run(layers))
        seconds.append((time.perf_counter() - begin) / (steps * batch))
    return seconds


def descent(loss):
    def run(layers):
        return bw.gradient_descent(loss, layers, SGD, num_steps=5, throw=False).factors

    return run


def flow(loss, max_steps=1000):
    def run(layers):
        return bw.gradient_flow(
            loss,
            layers,
            times=jnp.linspace(0.0, 1.0, 11),
            rtol=1e-4,
            atol=1e-6,
            max_steps=max_steps,
            throw=False,
        ).factors

    return run


def gradient(loss):
    return jax.grad(lambda layers: loss(bw.end_to_end(layers)))


def compiled(what, n, depth):
    """Seconds to trace and compile, and bytes of temporaries."""
    jax.clear_caches()
    loss, layers = problem(n, depth, 8)
    begin = time.perf_counter()
    program = jax.jit(jax.vmap(what(loss))).lower(layers).compile()
    return time.perf_counter() - begin, program.memory_analysis().temp_size_in_bytes


def slopes(values, times):
    return np.diff(np.log(times)) / np.diff(np.log(values))


def two_powers(values, times, powers):
    """Both terms of the fit of least relative errors, and where they are equal."""
    terms = np.power.outer(values.astype(float), powers)
    factors = nnls(terms / times[:, None], np.ones(len(times)))[0]
    with np.errstate(divide="ignore"):
        return terms * factors, np.divide(*factors) ** (1 / (powers[1] - powers[0]))


def picture(ds, path):
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    for ax, name in zip(axes, CELLS, strict=True):
        values, times = ds[name].values, 1e6 * ds[f"seconds_by_{name}"].median("repeat").values
        ax.plot(values, times, "o-")
        terms, crossover = two_powers(values, times, POWERS[name])
        for term, power in zip(terms.T, POWERS[name], strict=True):
            if np.all(term > 0):
                ax.plot(values, term, ":", label=f"power {power}")
        if values[0] < crossover < values[-1]:
            ax.axvline(crossover, color="black", linewidth=0.8, label=f"{crossover:.3g}")
        ax.set_ylim(0.5 * times.min(), 2 * times.max())
        ax.set(xscale="log", yscale="log", xlabel=name, title=ds[f"seconds_by_{name}"].attrs["of"])
        ax.legend()
    axes[0].set_ylabel("microseconds a gradient and run")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    repeats, variables, coords = 1 if smoke else 5, {}, {}
    for place, (name, cells) in enumerate((SMOKE if smoke else CELLS).items()):
        coords[name] = np.array([cell[place] for cell in cells])
        seconds = np.array([gradients(cell, repeats) for cell in cells])
        fixed = {"n": "N = 3", "N": "n = 16, batch 64", "batch": "n = 16, N = 3"}[name]
        attrs = {"units": "s", "long_name": "a gradient and run", "of": fixed}
        variables[f"seconds_by_{name}"] = ((name, "repeat"), seconds, attrs)
        found = slopes(coords[name], np.median(seconds, 1))
        shown = ", ".join(
            f"{value}: {slope:.2f}" for value, slope in zip(coords[name][1:], found, strict=True)
        )
        _, crossover = two_powers(coords[name], np.median(seconds, 1), POWERS[name])
        print(f"{fixed}: slope in {name} up to {shown}; crossover {crossover:.3g}", flush=True)
    depths = (2, 4) if smoke else (8, 64)
    programs = {"gradient": gradient, "descent": descent, "flow": flow}
    n = 3 if smoke else 10
    table = np.array(
        [
            [[compiled(what, n, N)[0] for N in depths] for what in programs.values()]
            for _ in range(repeats if smoke else 3)
        ]
    )
    variables["compile"] = (("compile_repeat", "program", "depth"), table, {"units": "s"})
    coords["program"] = np.array(list(programs), dtype=np.dtypes.StringDType())
    coords["depth"] = list(depths)
    for name, ratio in zip(programs, np.median(table[:, :, 1] / table[:, :, 0], 0), strict=True):
        print(f"compiling a {name} at N = {depths[1]} over N = {depths[0]}: {ratio:.2f}")
    held = [compiled(lambda loss, m=m: flow(loss, m), n, 2)[1] for m in (100, 100_000)]
    print(f"temporaries of a flow of at most 100 and 100,000 steps: {held[0]}, {held[1]} bytes")
    attrs = {"question": __doc__.splitlines()[0], "dtype": "float64", "flow_bytes": held}
    ds = xr.Dataset(variables, coords, attrs)
    save(ds, out, "D0_growth")
    picture(ds, out / "D0_growth.png")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
