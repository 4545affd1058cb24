"""A0: what does one gradient of the smoothed loss cost beside autodiff through eigvalsh?

All sides are compiled, batched by vmap and run in a loop of descent steps of a three-layer
network, in alternating repeats of one process on one core; what counts is the ratio. How far each
side ends from the iterate of the SVD stands beside the times. Layers start orthogonal, so that the
product is well conditioned, or Gaussian, so that it is not.
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import get_args

# Threads inside each factorisation would fight those of XLA.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw
from bwflow.linalg import Method

STEPS, RATE = 20, 1e-2
METHODS = get_args(Method)
STARTS = {
    "orthogonal": bw.initializers.orthogonal(0.8),
    "gaussian": bw.initializers.gaussian(),
}
TAUS = (0.0, 1e-2)


def naive_loss(factors, target, tau):
    """`BW^2` by eigenvalues of `R (W W^T + tau I) R`, differentiated by jax."""
    W = factors[2] @ factors[1] @ factors[0]
    S = W @ W.T + tau * jnp.eye(W.shape[0], dtype=W.dtype)
    root = (target.eigenvectors * jnp.sqrt(target.eigenvalues)) @ target.eigenvectors.T
    cross = jnp.sqrt(jnp.linalg.eigvalsh(root @ S @ root))
    return jnp.trace(S) + jnp.sum(target.eigenvalues) - 2 * jnp.sum(cross)


def library_loss(method, factors, target, tau):
    return bw.losses.BuresWasserstein(target, tau, method=method)(bw.end_to_end(factors))


def loop(loss, target, tau):
    def descend(factors):
        def step(_, factors):
            gradient = jax.grad(loss)(factors, target, tau)
            return jax.tree.map(lambda W, g: W - RATE * g, factors, gradient)

        return jax.lax.fori_loop(0, STEPS, step, factors)

    return jax.jit(jax.vmap(descend))


def seconds(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def measure(n, start, tau, batch, repeats):
    """Times of all sides at one size, a row for each side, and how far from the SVD's they end."""
    target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 10.0), key=jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), batch)
    factors = jax.vmap(lambda key: STARTS[start](key, (n,) * 4))(keys)
    losses = {method: partial(library_loss, method) for method in METHODS} | {"naive": naive_loss}
    sides = {name: loop(loss, target, tau) for name, loss in losses.items()}
    compiled, ends = zip(*(seconds(partial(side, factors)) for side in sides.values()), strict=True)
    runs = np.array(
        [[seconds(partial(side, factors))[0] for side in sides.values()] for _ in range(repeats)]
    )
    reference = ends[METHODS.index("svd")]
    apart = [
        max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(end, reference, strict=True))
        for end in ends
    ]
    return {"compile": compiled, "run": runs.T / (STEPS * batch), "apart": apart}


def picture(ds, path):
    fig, axes = plt.subplots(1, 4, figsize=(14, 3.5), sharey=True, layout="constrained")
    cases = [(start, tau) for start in STARTS for tau in TAUS]
    for ax, (start, tau) in zip(axes, cases, strict=True):
        for method in METHODS:
            ratio = ds["ratio"].sel(start=start, tau=tau, side=method)
            ax.plot(ds["n"], ratio.median("repeat"), "o-", label=method)
        ax.axhline(1.0, color="black", linewidth=0.8)
        ax.set(xscale="log", xlabel="n", title=f"{start} start, tau = {tau:g}")
        ax.set_xticks(ds["n"].values, ds["n"].values)
        ax.set_xticks([], minor=True)
    axes[0].set(yscale="log", ylabel="time over that of autodiff\nthrough eigvalsh")
    axes[0].set_yticks([0.5, 0.7, 1.0, 1.5, 2.0], [0.5, 0.7, 1.0, 1.5, 2.0])
    axes[0].set_yticks([], minor=True)
    axes[0].legend()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    sizes = (3,) if smoke else (5, 20, 32, 64)
    repeats = 2 if smoke else 9
    cells = [
        [
            [
                measure(n, start, tau, 4 if smoke else (32 if n == 64 else 256), repeats)
                for tau in TAUS
            ]
            for start in STARTS
        ]
        for n in sizes
    ]
    axes = ("n", "start", "tau", "side")
    stacked = {
        name: np.array([[[cell[name] for cell in row] for row in rows] for rows in cells])
        for name in ("compile", "run", "apart")
    }
    text = np.dtypes.StringDType()
    ds = xr.Dataset(
        {
            "compile": (axes, stacked["compile"], {"units": "s", "long_name": "with a first run"}),
            "run": ((*axes, "repeat"), stacked["run"], {"units": "s", "long_name": "per gradient"}),
            "apart": (axes, stacked["apart"], {"long_name": "largest difference to the SVD's end"}),
        },
        coords={
            "n": list(sizes),
            "start": np.array(list(STARTS), dtype=text),
            "tau": list(TAUS),
            "side": np.array([*METHODS, "naive"], dtype=text),
        },
        attrs={"question": __doc__.splitlines()[0], "steps": STEPS, "dtype": "float64"},
    )
    ds["ratio"] = ds["run"] / ds["run"].sel(side="naive", drop=True)
    save(ds, out, "A0_gradient")
    picture(ds, out / "A0_gradient.png")
    for n in sizes:
        for start in STARTS:
            for tau in TAUS:
                cell = ds.sel(n=n, start=start, tau=tau)
                shown = [
                    f"{side} {cell['ratio'].sel(side=side).median().item():.2f}" for side in METHODS
                ]
                print(f"n={n:3d} {start:10s} tau={tau:<5g} over naive: {', '.join(shown)}")
    return ds


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
