"""E0: what do loss and gradient cost, in time and memory, where n x n is out of the question?

At n = 100,000, with a target of rank 200 and 32 columns of `W`: time over that of the two products
that nothing can spare, `B^T W` and `B P`, and memory over that of `W` and `B`, as the compiled
program declares it and as a process of its own is seen to take it. At n = 4,096: time over that of
the formula by eigenvalues of an n x n matrix, differentiated by jax. Samples in blocks: time over
that of the target of all samples at once, where these fit.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

TAUS = (0.0, 1e-2)
STAGES = ("target", "loss and gradient")


def draw(n, m, k):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, m)) / n**0.5), jnp.asarray(
        rng.normal(size=(n, k)) / n**0.5
    )


def with_gradient(tau):
    return jax.jit(lambda W, target: jax.value_and_grad(bw.smoothed_bures)(W, target, tau=tau))


def seconds(function, *arguments):
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def products(n, m, k, repeats):
    """Seconds of both sides for every smoothing, and what the programs declare to hold."""
    B, W = draw(n, m, k)
    target, P = bw.Target.from_factor(B), jnp.ones((m, k))
    forward, back = jax.jit(lambda B, W: B.T @ W), jax.jit(lambda B, P: B @ P)
    times, declared = [], []
    for tau in TAUS:
        program = with_gradient(tau).lower(W, target).compile()
        found = program.memory_analysis()
        held = (
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.temp_size_in_bytes,
        )
        declared.append([size / (B.nbytes + W.nbytes) for size in held])
        sides = (partial(program, W, target), lambda: (forward(B, W), back(B, P)))
        for side in sides:
            seconds(side)
        times.append([[seconds(side)[0] for side in sides] for _ in range(repeats)])
    return np.array(times), np.array(declared)


def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(field)


def process(n, m, k, tau):
    """What this process comes to hold above what it has with everything loaded and no inputs."""
    small = draw(4 * m, m, k)
    jax.block_until_ready(with_gradient(tau)(small[1], bw.Target.from_factor(small[0])))
    before = resident("VmRSS")
    B, W = draw(n, m, k)
    inputs, peaks = B.nbytes + W.nbytes, []
    for stage in STAGES:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        if stage == "target":
            target = jax.block_until_ready(bw.Target.from_factor(B))
        else:
            del B
            jax.block_until_ready(with_gradient(tau)(W, target))
        peaks.append((resident("VmHWM") - before) / inputs)
    print(json.dumps(peaks))


def seen(n, m, k, tau):
    if not Path("/proc/self/clear_refs").exists():
        return [np.nan] * len(STAGES)
    code = (
        "import jax; jax.config.update('jax_enable_x64', True); import E0_large; "
        f"E0_large.process({n}, {m}, {k}, {tau})"
    )
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def dense(W, root, trace, tau):
    """`BW^2` by eigenvalues of `R (W W^T + tau I) R`."""
    S = W @ W.T + tau * jnp.eye(len(W), dtype=W.dtype)
    values = jnp.linalg.eigvalsh(root @ S @ root)
    # Rounding makes some that stand for 0 negative.
    cross = jnp.sqrt(jnp.where(values > 0, values, jnp.finfo(W.dtype).tiny))
    return jnp.trace(S) + trace - 2 * jnp.sum(cross)


def against_dense(n, m, k, repeats, tau):
    """Seconds of both sides, and how far the gradients are apart."""
    B, W = draw(n, m, k)
    target = bw.Target.from_factor(B)
    root = (target.eigenvectors * jnp.sqrt(target.eigenvalues)) @ target.eigenvectors.T
    trace = jnp.sum(target.eigenvalues)
    direct = jax.jit(lambda W: jax.value_and_grad(dense)(W, root, trace, tau))
    sides = (
        partial(with_gradient(tau).lower(W, target).compile(), W, target),
        partial(direct.lower(W).compile(), W),
    )
    times = np.empty((repeats, 2))
    for row in times:
        row[0], (value, _) = seconds(sides[0])
        row[1], (expected, _) = seconds(sides[1])
    return times, abs(float(value / expected - 1))


def streams(smoke, repeats):
    """Samples in blocks beside all at once: many samples of full rank, and of low rank in many
    dimensions."""
    cells = {
        "many samples": (300, 8, 8, 20) if smoke else (20_000, 512, 512, 1_000),
        "many dimensions": (40, 60, 3, 5) if smoke else (500, 20_000, 20, 100),
    }
    rng, rows = np.random.default_rng(1), []
    for count, n, rank, size in cells.values():
        X = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, n))
        sides = (
            lambda X=X, size=size: bw.Target.from_samples(
                X[i : i + size] for i in range(0, len(X), size)
            ),
            lambda X=X: bw.Target.from_samples(X),
        )
        rows.append([[seconds(side)[0] for side in sides] for _ in range(repeats + 1)][1:])
    return list(cells), np.array(rows)


def picture(ds, path):
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    ratio = (ds["seconds"].sel(side="bwflow") / ds["seconds"].sel(side="products")).median("repeat")
    names = [f"tau = {tau:g}" for tau in TAUS]
    axes[0].bar(names, ratio, width=0.5)
    axes[0].axhline(1.0, color="black", linewidth=0.8)
    axes[0].set(ylabel="time over that of\nthe unavoidable products")
    bottom = np.zeros(len(TAUS))
    for held in ds["held"].values:
        part = ds["declared"].sel(held=held).values
        axes[1].bar(names, part, bottom=bottom, width=0.5, label=str(held))
        bottom = bottom + part
    axes[1].set(ylabel="memory over that of W and B")
    axes[1].legend(fontsize="small")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    n, m, k = (50, 5, 2) if smoke else (100_000, 200, 32)
    repeats = 2 if smoke else 7
    times, declared = products(n, m, k, repeats)
    peaks = [seen(n, m, k, tau) for tau in TAUS]
    beside, apart = against_dense(*((20, 5, 2, 1) if smoke else (4_096, m, k, 1)), TAUS[1])
    kinds, streamed = streams(smoke, 1 if smoke else 2)
    text = np.dtypes.StringDType()
    ds = xr.Dataset(
        {
            "seconds": (("tau", "repeat", "side"), times, {"units": "s"}),
            "declared": (("tau", "held"), declared, {"long_name": "bytes over those of W and B"}),
            "peak": (("tau", "stage"), np.array(peaks), {"long_name": "bytes over those of both"}),
            "dense_seconds": (("dense_repeat", "beside"), beside, {"units": "s"}),
            "stream_seconds": (("samples", "stream_repeat", "way"), streamed, {"units": "s"}),
        },
        coords={
            "tau": list(TAUS),
            "side": np.array(["bwflow", "products"], dtype=text),
            "held": np.array(["arguments", "results", "temporaries"], dtype=text),
            "stage": np.array(STAGES, dtype=text),
            "beside": np.array(["bwflow", "dense"], dtype=text),
            "samples": np.array(kinds, dtype=text),
            "way": np.array(["blocks", "at once"], dtype=text),
        },
        attrs={"question": __doc__.splitlines()[0], "dtype": "float64", "dense_apart": apart},
    )
    save(ds, out, "E0_large")
    picture(ds, out / "E0_large.png")
    for i, tau in enumerate(TAUS):
        ratio = np.quantile(times[i, :, 0] / times[i, :, 1], [0.25, 0.5, 0.75])
        print(
            f"n={n}, tau={tau:g}: {ratio[1]:.2f} [{ratio[0]:.2f}, {ratio[2]:.2f}] of the products; "
            f"memory over W and B: declared {declared[i].sum():.2f} "
            f"({', '.join(f'{x:.3f}' for x in declared[i])}), process at its peak "
            + ", ".join(f"{s} {x:.2f}" for s, x in zip(STAGES, peaks[i], strict=True))
        )
    ratio = np.median(beside[:, 1] / beside[:, 0])
    print(f"dense formula over bwflow: {ratio:.0f}; values agree to {apart:.1e}")
    for kind, row in zip(kinds, streamed, strict=True):
        print(f"{kind}: in blocks over at once {np.median(row[:, 0] / row[:, 1]):.2f}")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
