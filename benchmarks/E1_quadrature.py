"""E1: from which size on is quadrature ahead, for networks of few columns?

Loss and gradient against a smoothed target of full rank and condition 1e4, by quadrature and by a
polar factor, which needs matrices of the target's size.
"""

import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

TAU, METHODS = 1e-2, ("quadrature", "auto", "svd")


def measure(n, k, repeats):
    """Seconds of every method, and how far gradients are from that by an SVD."""
    spectrum = bw.covariances.geometric(n, 1e4)
    target = bw.covariances.from_spectrum(spectrum, key=jax.random.key(0))
    W = jax.random.normal(jax.random.key(1), (n, k)) / n**0.5
    sides = {
        method: jax.jit(
            jax.value_and_grad(partial(bw.smoothed_bures, target=target, tau=TAU, method=method))
        )
        for method in METHODS
    }
    gradients = {name: side(W)[1] for name, side in sides.items()}
    seconds = np.empty((repeats, len(sides)))
    for row in seconds:
        for column, side in enumerate(sides.values()):
            begin = time.perf_counter()
            jax.block_until_ready(side(W))
            row[column] = time.perf_counter() - begin
    apart = [float(jnp.max(jnp.abs(gradients[name] - gradients["svd"]))) for name in METHODS]
    return seconds, apart


def picture(ds, path):
    fig, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
    ratio = (ds["seconds"].sel(way="auto") / ds["seconds"].sel(way="quadrature")).median("repeat")
    for k in ds["k"].values:
        ax.plot(ds["n"], ratio.sel(k=k), "o-", label=f"{k} columns")
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="n", ylabel="time of a polar factor\nover quadrature")
    ax.set_xticks(ds["n"].values, ds["n"].values)
    ax.set_xticks([], minor=True)
    ax.legend()
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    sizes, columns = ((6, 8), (2,)) if smoke else ((64, 128, 256, 512), (4, 16, 64))
    repeats = 1 if smoke else 3
    cells = [[measure(n, k, repeats) for k in columns] for n in sizes]
    ds = xr.Dataset(
        {
            "seconds": (
                ("n", "k", "repeat", "way"),
                np.array([[cell[0] for cell in row] for row in cells]),
                {"units": "s", "long_name": "loss and gradient"},
            ),
            "apart": (
                ("n", "k", "way"),
                np.array([[cell[1] for cell in row] for row in cells]),
                {"long_name": "largest difference to the gradient by an SVD"},
            ),
        },
        coords={
            "n": list(sizes),
            "k": list(columns),
            "way": np.array(METHODS, dtype=np.dtypes.StringDType()),
        },
        attrs={"question": __doc__.splitlines()[0], "dtype": "float64", "tau": TAU},
    )
    save(ds, out, "E1_quadrature")
    picture(ds, out / "E1_quadrature.png")
    ratio = (ds["seconds"] / ds["seconds"].sel(way="quadrature", drop=True)).median("repeat")
    for n in sizes:
        for k in columns:
            cell = ratio.sel(n=n, k=k)
            shown = ", ".join(f"{name} {cell.sel(way=name).item():.2f}" for name in METHODS[1:])
            apart = ds["apart"].sel(n=n, k=k, way="quadrature").item()
            print(f"n={n:4d}, {k:2d} columns: over quadrature {shown}; apart {apart:.1e}")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
