"""A0: what does one gradient of the smoothed loss cost beside autodiff through eigvalsh?

Both sides are compiled, batched by vmap and run in a loop of descent steps of a three-layer
network, in alternating repeats of one process; what counts is the ratio. The objective each side
ends with stands beside the times.
"""

import os
import time
from pathlib import Path

# XLA may spread the batch over the cores; threads inside each factorisation would fight it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

STEPS, RATE, TAU = 20, 1e-2, 1e-2


def naive_loss(factors, target):
    """`BW^2` by eigenvalues of `R (W W^T + tau I) R`, differentiated by jax."""
    W = factors[2] @ factors[1] @ factors[0]
    S = W @ W.T + TAU * jnp.eye(W.shape[0], dtype=W.dtype)
    root = (target.eigenvectors * jnp.sqrt(target.eigenvalues)) @ target.eigenvectors.T
    cross = jnp.sqrt(jnp.linalg.eigvalsh(root @ S @ root))
    return jnp.trace(S) + jnp.sum(target.eigenvalues) - 2 * jnp.sum(cross)


def library_loss(factors, target):
    return bw.smoothed_bures(bw.end_to_end(factors), target, tau=TAU)


def loop(loss):
    def descend(factors, target):
        def step(_, factors):
            gradient = jax.grad(loss)(factors, target)
            return jax.tree.map(lambda W, g: W - RATE * g, factors, gradient)

        return loss(jax.lax.fori_loop(0, STEPS, step, factors), target)

    return jax.jit(jax.vmap(descend, in_axes=(0, None)))


def seconds(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def measure(n, batch, repeats):
    """Compile and run times of both sides at one size."""
    target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 10.0), key=jax.random.key(0))
    init = bw.initializers.gaussian()
    factors = jax.vmap(lambda key: init(key, (n,) * 4))(jax.random.split(jax.random.key(1), batch))
    sides = {"bwflow": loop(library_loss), "eigvalsh": loop(naive_loss)}
    row = {}
    for name, side in sides.items():
        row[name, "compile"], value = seconds(lambda side=side: side(factors, target))
        row[name, "objective"] = float(value.mean())
    runs = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            runs[name].append(seconds(lambda side=side: side(factors, target))[0])
    ratios = np.array(runs["bwflow"]) / np.array(runs["eigvalsh"])
    for name in sides:
        row[name, "run"] = float(np.median(runs[name])) / (STEPS * batch)
    return row, ratios


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    sizes = (3,) if smoke else (5, 20, 32, 64)
    repeats = 2 if smoke else 9
    rows, ratios = zip(
        *(measure(n, 4 if smoke else (32 if n == 64 else 256), repeats) for n in sizes), strict=True
    )
    sides = ["bwflow", "eigvalsh"]
    table = {
        quantity: (("n", "side"), [[row[side, quantity] for side in sides] for row in rows])
        for quantity in ("compile", "run", "objective")
    }
    ds = xr.Dataset(
        table | {"ratio": (("n", "repeat"), np.array(ratios))},
        coords={"n": list(sizes), "side": np.array(sides, dtype=np.dtypes.StringDType())},
        attrs={"question": __doc__.splitlines()[0], "steps": STEPS, "dtype": "float64"},
    )
    ds["run"].attrs.update(units="s", long_name="time per gradient and network")
    ds["compile"].attrs.update(units="s", long_name="compilation and first run")
    ds["ratio"].attrs.update(units="1", long_name="bwflow time over eigvalsh time, per repeat")
    save(ds, out, "A0_gradient")
    for n in sizes:
        low, middle, high = np.quantile(ds["ratio"].sel(n=n), (0.25, 0.5, 0.75))
        print(f"n={n:3d}  bwflow / eigvalsh autodiff: {middle:.2f} [{low:.2f}, {high:.2f}]")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
