"""C2: how far do PrecGD and ScaledGD get, and in how much memory, where no operator is stored?

Completion of a 5,000 x 5,000 matrix of rank 10 and condition number 5 from 500,000 entries, and
sensing at n = 200, rank 10, m = 5 n r with `bwflow.operators.Gaussian`, drawn again at every use.
Errors of completion are those on entries held out. Memory is what the compiled program declares.
"""

import resource
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _scripts import command_line, save
from tqdm.auto import trange

import bwflow as bw
from bwflow.factors import Rectangular

RULES = {"completion": bw.precondition.precgd(0.5), "sensing": bw.precondition.scaledgd(0.5)}


def descend(rule, loss, factors, steps):
    """`steps` iterations, and the loss where they end."""
    found = bw.gradient_descent(
        loss,
        factors,
        rule,
        num_steps=steps,
        save_every=steps,
        factorization=Rectangular(),
        probe=bw.diagnostics.record("loss"),
        throw=False,
    )
    return found.factors, found.probes["loss"][-1]


def memory(program):
    """Bytes of arguments, results and temporaries."""
    found = program.memory_analysis()
    return (
        found.argument_size_in_bytes + found.output_size_in_bytes,
        found.temp_size_in_bytes,
    )


def fit(name, problem, error, rank, segments, steps):
    """Relative error after every segment, and the memory of the start and of the descent."""
    loss, truth = problem
    n, p = truth.shape
    spectral = jax.jit(
        lambda loss: bw.initializers.spectral(loss, rectangular=True)(
            jax.random.key(1), (p, rank, n)
        )
    )
    first = spectral.lower(loss).compile()
    factors = first(loss)
    program = jax.jit(partial(descend, RULES[name], steps=steps)).lower(loss, factors).compile()
    errors = [float(error(factors))]
    with trange(segments, desc=name, unit="segment") as bar:
        for _ in bar:
            factors, value = program(loss, factors)
            errors.append(float(error(factors)))
            bar.set_postfix(loss=f"{value:.2e}", error=f"{errors[-1]:.2e}")
    return errors, memory(first), memory(program)


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    n, r, observed, held_out = (60, 2, 2_000, 100) if smoke else (5_000, 10, 500_000, 100_000)
    key = jax.random.key(0)
    completion = bw.problems.completion(key, (n, n), rank=r, num_observed=observed, condition=5.0)
    i, j = jax.random.randint(jax.random.key(2), (2, held_out), 0, n)
    unseen = bw.operators.Entries(i, j, (n, n))
    wanted = unseen(completion.truth.left, completion.truth.right)
    cells = {
        "completion": (
            completion,
            lambda f: jnp.linalg.norm(unseen(*f) - wanted) / jnp.linalg.norm(wanted),
            r,
            2 if smoke else 10,
            5 if smoke else 20,
        )
    }
    side, q = (8, 1) if smoke else (200, 10)
    sensing = bw.problems.sensing(
        key,
        (side, side),
        rank=q,
        num_measurements=5 * side * q,
        operator="gaussian",
        condition=20.0,
    )
    M = sensing.truth.matrix()
    cells["sensing"] = (
        sensing,
        lambda f: jnp.linalg.norm(f[0] @ f[1].T - M) / jnp.linalg.norm(M),
        q,
        2,
        1 if smoke else 2,
    )
    full = {"completion": 8 * n**2, "sensing": 8 * 5 * side * q * side**2}
    ds = xr.Dataset(attrs={"question": __doc__.splitlines()[0], "dtype": "float64"})
    for name, cell in cells.items():
        errors, first, run = fit(name, *cell)
        ds[f"{name}_error"] = (f"{name}_segment", np.array(errors))
        ds[f"{name}_error"].attrs.update(units="1", steps=cell[-1])
        ds[f"{name}_bytes"] = (("stage", "held"), np.array([first, run]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        print(
            f"{name}: relative error {errors[0]:.1e} -> {errors[-1]:.1e} in "
            f"{cell[-1] * cell[-2]} steps\n"
            + "".join(
                f"  {stage}: arguments and results {a / 1e6:.1f} MB, temporaries {b / 1e6:.1f} MB\n"
                for stage, (a, b) in (("start", first), ("descent", run))
            )
            + f"  stored in full: {full[name] / 1e6:.1f} MB; process {peak / 1e6:.0f} MB",
            flush=True,
        )
    ds = ds.assign_coords(
        stage=np.array(["start", "descent"], dtype=np.dtypes.StringDType()),
        held=np.array(["arguments and results", "temporaries"], dtype=np.dtypes.StringDType()),
    )
    save(ds, out, "C2_completion")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
