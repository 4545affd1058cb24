"""A2: how many evaluations does a flow to a gap of 1e-10 take, by which solver?

The target has condition 1e6, so that decay rates differ by `kappa^{(N-1)/N}` and an explicit method
is held back by stability. Every gradient counts as one evaluation, and so does every product with
the Jacobian. Each solver has three tolerances; the cheapest run that arrives counts.
"""

import os
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("EQX_ON_ERROR", "nan")

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optimistix as optx
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

SOLVERS = {
    "RKC": bw.solvers.RKC(),
    "Tsit5": diffrax.Tsit5(),
    "Kvaerno3": diffrax.Kvaerno3(),
    "Kvaerno5": diffrax.Kvaerno5(),
}
RTOL = np.array([1e-2, 1e-3, 1e-4])
ATOL = 1e-3  # of rtol: layers have entries of about 1, and the gap is the square of an error
GAP, END = 1e-10, 1e7


class Counter:
    """Counts evaluations of a function, and of products with its Jacobian, as they are made."""

    def __init__(self, function):
        self.count = 0

        def bump(_):
            self.count += 1

        @jax.custom_jvp
        def counted(y):
            jax.debug.callback(bump, y[0][0, 0])
            return function(y)

        @counted.defjvp
        def _(primals, tangents):
            # Under vmap, which makes a Jacobian, there is a call for each tangent.
            jax.debug.callback(bump, tangents[0][0][0, 0])
            return counted(*primals), jax.jvp(function, primals, tangents)[1]

        self.function = counted


def problem(n, depth, kappa):
    spectrum = bw.covariances.geometric(n, kappa)
    target = bw.covariances.from_spectrum(spectrum, key=jax.random.key(1))
    loss = bw.losses.BuresWasserstein(target, 0.0, method="svd")
    layers = bw.initializers.orthogonal(0.5)(jax.random.key(2), (n,) * (depth + 1))
    return loss, layers


def solve(loss, layers, solver, rtol, max_steps):
    """Evaluations, steps, whether it arrived, and the end-to-end matrix at the end."""
    gradients = jax.grad(lambda layers: loss(bw.end_to_end(layers)))
    counter = Counter(lambda layers: jax.tree.map(jnp.negative, gradients(layers)))

    def arrived(t, y, args, **_):
        return loss(bw.end_to_end(y)) <= GAP

    @jax.jit
    def run(layers):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: counter.function(y)),
            solver,
            0.0,
            END,
            None,
            layers,
            stepsize_controller=diffrax.PIDController(rtol, ATOL * rtol, norm=optx.max_norm),
            event=diffrax.Event(arrived),
            adjoint=diffrax.ForwardMode(),
            max_steps=max_steps,
            throw=False,
        )

    solution = jax.block_until_ready(run(layers))
    jax.effects_barrier()
    done = bool(solution.result == diffrax.RESULTS.event_occurred)
    end = bw.end_to_end(jax.tree.map(lambda x: x[-1], solution.ys))
    return counter.count, int(solution.stats["num_steps"]), done, end


def picture(ds, path):
    fig, axes = plt.subplots(1, ds.sizes["depth"], figsize=(8, 3.5), layout="constrained")
    for ax, depth in zip(np.atleast_1d(axes), ds["depth"].values, strict=True):
        for name in ds["solver"].values:
            cell = ds.sel(depth=depth, solver=name)
            cell = cell.where(cell["arrived"])
            ax.plot(cell["evaluations"], cell["error"], "o-", label=str(name))
        ax.set(xscale="log", yscale="log", title=f"N = {depth}", xlabel="evaluations")
        ax.set_ylabel("distance from the accurate flow")
        ax.legend(fontsize="small")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    n, kappa, depths = (2, 10.0, [2]) if smoke else (5, 1e6, [2, 3])
    most = 1_000 if smoke else 60_000
    rtols = RTOL[:2] if smoke else RTOL
    dims = ("depth", "solver", "rtol")
    shape = (len(depths), len(SOLVERS), len(rtols))
    evaluations, steps = np.zeros(shape, int), np.zeros(shape, int)
    arrived, errors = np.zeros(shape, bool), np.zeros(shape)
    for i, depth in enumerate(depths):
        loss, layers = problem(n, depth, kappa)
        # The flow itself, to hold the others against.
        accurate = solve(loss, layers, SOLVERS["RKC"], 1e-5 if smoke else 1e-7, 100 * most)[-1]
        for j, (name, solver) in enumerate(SOLVERS.items()):
            for k, rtol in enumerate(rtols):
                count, taken, done, end = solve(loss, layers, solver, rtol, most)
                evaluations[i, j, k], steps[i, j, k], arrived[i, j, k] = count, taken, done
                errors[i, j, k] = jnp.linalg.norm(end - accurate)
                print(
                    f"N={depth} {name:8s} rtol {rtol:.0e}: {count:6d} evaluations, {taken:5d} steps"
                    f"{'' if done else ', did not arrive'}, {errors[i, j, k]:.1e} from the flow"
                )
    ds = xr.Dataset(
        {
            "evaluations": (dims, evaluations),
            "steps": (dims, steps),
            "arrived": (dims, arrived),
            "error": (dims, errors, {"long_name": "distance of W from the accurate flow's"}),
        },
        coords={
            "depth": depths,
            "solver": np.array(list(SOLVERS), dtype=np.dtypes.StringDType()),
            "rtol": rtols,
        },
        attrs={"question": __doc__.splitlines()[0], "n": n, "kappa": kappa, "gap": GAP},
    )
    save(ds, out, "A2_long_flows")
    picture(ds, out / "A2_long_flows.png")
    best = ds["evaluations"].where(ds["arrived"]).min("rtol")
    for depth in depths:
        cell = (best / best.sel(solver="RKC", drop=True)).sel(depth=depth).to_series()
        shown = ", ".join(f"{name} {ratio:.1f}" for name, ratio in cell.items())
        print(f"N={depth}: evaluations over those of RKC: {shown}")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
