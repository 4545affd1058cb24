"""A3: what does a run cost beside what one would write instead of using bwflow?

Descents, a step and run: `bwflow.gradient_descent` under `vmap` beside a PyTorch loop for each run
(autograd through `eigvalsh`), PyTorch batched by hand with the gradient in closed form, and jax
differentiating `eigvalsh`. Flows, a run: `bwflow.gradient_flow` beside diffrax with a loss by
`eigvalsh` that has its derivative written down. All sides alternate; PyTorch is left out where it
is not installed.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("EQX_ON_ERROR", "nan")

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import optimistix as optx
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_default_device("cuda" if jax.default_backend() == "gpu" else "cpu")

DEPTH, KAPPA, RATE = 3, 10.0, 1e-2
END, SAVES, RTOL, ATOL = 20.0, 101, 1e-5, 1e-8
SGD = optax.sgd(RATE)


def problem(n, batch, init):
    target = bw.covariances.from_spectrum(bw.covariances.geometric(n, KAPPA), key=jax.random.key(0))
    widths, keys = (n,) * (DEPTH + 1), jax.random.split(jax.random.key(1), batch)
    return target, jax.vmap(lambda key: init(key, widths, dtype=float))(keys)


def root_of(target):
    return (target.eigenvectors * jnp.sqrt(target.eigenvalues)) @ target.eigenvectors.T


def by_bwflow(target, steps):
    def descend(layers):
        loss = bw.losses.BuresWasserstein(target, 0.0)
        run = bw.gradient_descent(loss, layers, SGD, num_steps=steps, save_every=steps, throw=False)
        return run.factors

    return jax.jit(jax.vmap(descend))


def by_autodiff(target, steps):
    root = root_of(target)

    def loss(layers):
        W = layers[2] @ layers[1] @ layers[0]
        S = W @ W.T
        cross = jnp.sqrt(jnp.linalg.eigvalsh(root @ S @ root))
        return jnp.trace(S) + jnp.sum(target.eigenvalues) - 2 * jnp.sum(cross)

    def step(_, layers):
        return jax.tree.map(lambda W, g: W - RATE * g, layers, jax.grad(loss)(layers))

    return jax.jit(jax.vmap(lambda layers: jax.lax.fori_loop(0, steps, step, layers)))


def torch_loop(target, steps):
    """One run after another, so that the first stands for all."""
    root, total = torch.tensor(np.asarray(root_of(target))), float(jnp.sum(target.eigenvalues))

    def run(layers):
        layers = [torch.tensor(np.asarray(W[0]), requires_grad=True) for W in layers]
        optimizer = torch.optim.SGD(layers, lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            W = layers[2] @ layers[1] @ layers[0]
            S = W @ W.T
            cross = torch.sqrt(torch.linalg.eigvalsh(root @ S @ root))
            (torch.trace(S) + total - 2 * torch.sum(cross)).backward()
            optimizer.step()
        return tuple(W.detach().cpu().numpy()[None] for W in layers)

    return run


def torch_batched(target, steps):
    root = torch.tensor(np.asarray(root_of(target)))

    @torch.no_grad()
    def run(layers):
        A, B, C = (torch.tensor(np.asarray(W)) for W in layers)
        for _ in range(steps):
            BA = B @ A
            W = C @ BA
            X = root @ W
            values, Q = torch.linalg.eigh(X @ X.mT)
            inner = (Q * values.rsqrt()[:, None, :]) @ (Q.mT @ X)
            G = 2 * (W - root @ inner)
            CG = C.mT @ G
            A, B, C = (
                A - RATE * B.mT @ CG,
                B - RATE * CG @ A.mT,
                C - RATE * G @ BA.mT,
            )
        return tuple(W.cpu().numpy() for W in (A, B, C))

    return run


def flow_by_bwflow(target, norm=optx.max_norm):
    def solve(layers):
        run = bw.gradient_flow(
            bw.losses.BuresWasserstein(target, 0.0),
            layers,
            times=jnp.linspace(0.0, END, SAVES),
            rtol=RTOL,
            atol=ATOL,
            norm=norm,
            throw=False,
        )
        return run.factors, run.probes["loss"], run.num_steps

    return jax.jit(jax.vmap(solve))


def flow_by_hand(target):
    root = root_of(target)

    @jax.custom_jvp
    def trace_root(M):
        return jnp.sum(jnp.sqrt(jnp.linalg.eigvalsh(M)))

    @trace_root.defjvp
    def _(primals, tangents):
        values, Q = jnp.linalg.eigh(primals[0])
        roots = jnp.sqrt(values)
        return jnp.sum(roots), jnp.vdot((Q / (2 * roots)) @ Q.T, tangents[0])

    def loss(layers):
        W = layers[2] @ layers[1] @ layers[0]
        S = W @ W.T
        return jnp.trace(S) + jnp.sum(target.eigenvalues) - 2 * trace_root(root @ S @ root)

    gradient = jax.grad(loss)

    def record(t, layers, args):
        return loss(layers), optax.tree.norm(gradient(layers))

    def solve(layers):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: jax.tree.map(jnp.negative, gradient(y))),
            diffrax.Tsit5(),
            0.0,
            END,
            None,
            layers,
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(ts=jnp.linspace(0.0, END, SAVES), fn=record),
                    diffrax.SubSaveAt(t1=True),
                ]
            ),
            stepsize_controller=diffrax.PIDController(RTOL, ATOL),
            max_steps=100_000,
            throw=False,
        )
        (losses, _), layers = solution.ys
        end = jax.tree.map(lambda W: W[0], layers)
        return end, losses, solution.stats["num_steps"]

    return jax.jit(jax.vmap(solve))


def alternate(sides, layers, repeats):
    """Seconds of every side, in turn, and what each arrives at."""
    ends = {name: jax.block_until_ready(side(layers)) for name, side in sides.items()}
    seconds = np.zeros((len(sides), repeats))
    for k in range(repeats):
        for row, side in zip(seconds, sides.values(), strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(side(layers))
            row[k] = time.perf_counter() - begin
    return seconds, ends


def apart(layers, others):
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(layers, others, strict=True))


def descents(n, batch, steps, repeats):
    """Seconds per step and run of every side; all have to arrive at one point."""
    target, layers = problem(n, batch, bw.initializers.orthogonal(0.8))
    sides = {
        "bwflow": by_bwflow(target, steps),
        "jax, autodiff": by_autodiff(target, steps),
    }
    if torch is not None:
        sides["PyTorch, loop"] = torch_loop(target, steps)
        sides["PyTorch, batched"] = torch_batched(target, steps)
    seconds, ends = alternate(sides, layers, repeats)
    for end in ends.values():
        first = [W[: len(V)] for W, V in zip(ends["bwflow"], end, strict=True)]
        assert apart(first, end) < 1e-10
    runs = np.array([1 if name == "PyTorch, loop" else batch for name in sides])
    return xr.DataArray(
        seconds / (steps * runs[:, None]), dims=("side", "repeat"), coords={"side": [*sides]}
    )


def flows(n, batch, repeats):
    """Seconds per run, most steps of a run, and the largest error of a loss recorded."""
    target, layers = problem(n, batch, bw.initializers.balanced(scale=0.5))
    sides = {
        "bwflow": flow_by_bwflow(target),
        "bwflow, norm of the other": flow_by_bwflow(target, optx.rms_norm),
        "diffrax by hand": flow_by_hand(target),
    }
    seconds, ends = alternate(sides, layers, repeats)
    few = tuple(W[:8] for W in layers)
    accurate = jax.vmap(
        lambda layers: bw.gradient_flow(
            bw.losses.BuresWasserstein(target, 0.0),
            layers,
            diffrax.Dopri8(),
            times=jnp.linspace(0.0, END, SAVES),
            rtol=1e-11,
            atol=1e-13,
        ).probes["loss"]
    )(few)
    coords = {"side": [*sides]}
    return xr.Dataset(
        {
            "seconds": (("side", "repeat"), seconds / batch),
            "steps": ("side", [int(jnp.max(end[2])) for end in ends.values()]),
            "error": (
                "side",
                [
                    float(jnp.max(jnp.abs(end[1][: len(accurate)] - accurate)))
                    for end in ends.values()
                ],
            ),
        },
        coords=coords,
    )


def shown(ratio):
    low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def picture(ds, path):
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for ax, kind in zip(axes, ("descent", "flow"), strict=True):
        ratio = ds[f"{kind}_over_bwflow"].median("repeat")
        for name in ratio["side"].values[1:]:
            ax.plot(ratio["n"], ratio.sel(side=name), "o-", label=str(name))
        ax.axhline(1.0, color="black", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="n", title=kind)
        ax.set_xticks(ratio["n"].values, ratio["n"].values)
        ax.set_xticks([], minor=True)
        ax.legend(fontsize="small")
    axes[0].set_ylabel("time over that of bwflow")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    sizes, flow_sizes = ((3,), (3,)) if smoke else ((5, 20, 64), (5, 10, 20))
    repeats, steps = (1, 3) if smoke else (7, 40)
    full = 256 if jax.default_backend() == "cpu" else 4096
    batches = {n: 2 if smoke else (full // 8 if n == 64 else full) for n in (*sizes, *flow_sizes)}
    text = np.dtypes.StringDType()
    found = [descents(n, batches[n], steps, repeats) for n in sizes]
    descent = xr.concat(found, xr.IndexVariable("n", list(sizes)))
    flow = xr.concat(
        [flows(n, batches[n], repeats) for n in flow_sizes], xr.IndexVariable("n", list(flow_sizes))
    )
    for n in sizes:
        for side in descent["side"].values[1:]:
            ratio = descent.sel(n=n, side=side) / descent.sel(n=n, side="bwflow")
            print(f"n={n:3d} a step of {side} over one of bwflow: {shown(ratio)}")
    for n in flow_sizes:
        for side in flow["side"].values:
            cell = flow.sel(n=n, side=side)
            ratio = cell["seconds"] / flow["seconds"].sel(n=n, side="bwflow")
            print(
                f"n={n:3d} a flow by {side} over one by bwflow: {shown(ratio)}, "
                f"{cell['steps'].item()} steps, largest error {cell['error'].item():.1e}"
            )
    parts = {
        "descent": descent.rename(side="descent_side", n="descent_n"),
        "flow": flow["seconds"].rename(side="flow_side", n="flow_n"),
        "flow_steps": flow["steps"].rename(side="flow_side", n="flow_n"),
        "flow_error": flow["error"].rename(side="flow_side", n="flow_n"),
    }
    ds = xr.Dataset(parts, attrs={"question": __doc__.splitlines()[0], "dtype": "float64"})
    for name in ("descent_side", "flow_side"):
        ds = ds.assign_coords({name: ds[name].values.astype(text)})
    save(ds, out, "A3_instead")
    picture(
        {
            "descent_over_bwflow": descent / descent.sel(side="bwflow", drop=True),
            "flow_over_bwflow": flow["seconds"] / flow["seconds"].sel(side="bwflow", drop=True),
        },
        out / "A3_instead.png",
    )
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
