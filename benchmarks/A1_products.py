"""A1: how many matrix products of its size is a gradient worth, on this device?

A batched product of `n x n` matrices is the unit: decompositions and one gradient of the smoothed
loss by each method are timed in it, alternating. On an accelerator this one command says how near
the gradients by products alone are to the products that they are made of, and what
decompositions cost there: `python benchmarks/A1_products.py`.
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

DEPTH, TAU = 3, 1e-2
METHODS = ("auto", "svd", "newton_schulz")
# What a gradient by products alone is made of at full width and tau > 0, in numbers multiplied: 18
# square and 34 twice as wide ones in the polar factor, 3 (N - 1) in the network, 2 with the target.
LEAST = 18 + 2 * 34 + 3 * (DEPTH - 1) + 2


def repeated(function, count):
    """`count` calls in one program, each with an argument that depends on the one before."""

    def run(X, *rest):
        return jax.lax.fori_loop(0, count, lambda _, X: X + 1e-9 * function(X, *rest), X)

    return jax.jit(run)


def layer_gradient(method, target, W, *rest):
    """The gradient in the last layer, with those of the others computed."""
    loss = bw.losses.BuresWasserstein(target, TAU, method=method)
    layers = (*rest, W)
    gradients = jax.grad(lambda layers: loss(bw.end_to_end(layers)))(layers)
    return sum(gradients[1:], start=gradients[0])


def programs(n, batch, count):
    """Of every side a program, its arguments, and how many matrices it does."""
    dtype = jnp.result_type(float)
    target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 10.0), key=jax.random.key(0))
    init = bw.initializers.orthogonal(0.8)
    keys = jax.random.split(jax.random.key(1), batch)
    *rest, W = jax.vmap(lambda key: init(key, (n,) * (DEPTH + 1), dtype=dtype))(keys)
    highest = partial(jnp.matmul, precision="highest")
    functions = {
        "product": highest,
        "cholesky": lambda X, _: jnp.linalg.cholesky(jnp.eye(n, dtype=dtype) + 1e-3 * X),
        "eigh": lambda X, _: jnp.linalg.eigh(X)[1],
        "svd": lambda X, _: jnp.linalg.svd(X, full_matrices=False)[0],
    }
    for method in METHODS:
        functions[f"gradient, {method}"] = jax.vmap(partial(layer_gradient, method, target))
    sides = {}
    for name, function in functions.items():
        # What accelerators do slowly is measured on fewer matrices, once.
        few = jax.default_backend() != "cpu" and ("eigh" in name or "svd" in name)
        runs, calls = (max(batch // 64, 1), 1) if few else (batch, count)
        others = rest if "gradient" in name else rest[:1]
        arguments = [X[:runs] for X in (W, *others)]
        sides[name] = repeated(function, calls), arguments, runs * calls
    return sides


def measure(n, batch, count, repeats):
    """Seconds a matrix, of everything at one size: a row for each repeat."""
    sides = programs(n, batch, count)
    for side, arguments, _ in sides.values():
        jax.block_until_ready(side(*arguments))
    times = np.empty((repeats, len(sides)))
    for row in times:
        for column, (side, arguments, matrices) in enumerate(sides.values()):
            start = time.perf_counter()
            jax.block_until_ready(side(*arguments))
            row[column] = (time.perf_counter() - start) / matrices
    shown = zip(sides, np.median(times, axis=0) / np.median(times[:, 0]), strict=True)
    print(
        f"n={n:3d}, batch {batch}, a product {np.median(times[:, 0]) * 1e9:.0f} ns: "
        + ", ".join(f"{what} {products:.1f}" for what, products in shown),
        flush=True,
    )
    return list(sides), times


def picture(ds, path):
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for what in ds["what"].values[1:]:
        ax.plot(ds["n"], ds["products"].sel(what=what).median("repeat"), "o-", label=str(what))
    ax.axhline(LEAST, color="black", linewidth=0.8, label="products it is made of")
    ax.set(xscale="log", yscale="log", xlabel="n", ylabel="in products of n x n matrices")
    ax.set_xticks(ds["n"].values, ds["n"].values)
    ax.set_xticks([], minor=True)
    ax.legend(fontsize="small")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    numbers = 2**16 if jax.default_backend() == "cpu" else 2**24
    cells = {4: 8} if smoke else {n: max(numbers // n**2, 8) for n in (16, 32, 64, 128)}
    count, repeats = (2, 2) if smoke else (5, 7)
    rows = [measure(n, batch, count, repeats) for n, batch in cells.items()]
    seconds = np.array([times for _, times in rows])
    ds = xr.Dataset(
        {"seconds": (("n", "repeat", "what"), seconds, {"units": "s", "long_name": "a matrix"})},
        coords={
            "n": list(cells),
            "batch": ("n", list(cells.values())),
            "what": np.array(rows[0][0], dtype=np.dtypes.StringDType()),
        },
        attrs={
            "question": __doc__.splitlines()[0],
            "device": jax.devices()[0].device_kind,
            "dtype": str(jnp.result_type(float)),
            "depth": DEPTH,
            "least": LEAST,
        },
    )
    ds["products"] = ds["seconds"] / ds["seconds"].sel(what="product", drop=True)
    save(ds, out, "A1_products")
    picture(ds, out / "A1_products.png")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", jax.default_backend() != "tpu")
    command_line(main, __doc__)
