"""I0: who recovers from measurements that an adversary added to, and what does it cost?

Problems of `bwflow.experimental.semirandom.sensing_problem`, n from 8 to 50, ranks 1 and 2, with
6 n r or 10 n r random measurements. Gradient descent, ScaledGD and PrecGD start spectrally and take
steps of a quarter of the inverse Lipschitz constant; `recover` has its defaults. Errors are
relative, in the Frobenius norm; passes are those over all measurements, two for a gradient.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from _scripts import command_line, save
from tqdm.auto import tqdm

import bwflow as bw
from bwflow.experimental import semirandom

RULES = ("gradient descent", "ScaledGD", "PrecGD")
# n, rank, random measurements over n r, problems
CELLS = (
    *((n, r, ratio, 20) for n in (8, 12, 20) for r in (1, 2) for ratio in (6, 10)),
    *((30, r, ratio, 8) for r in (1, 2) for ratio in (6, 10)),
    *((50, r, ratio, 4) for r in (1, 2) for ratio in (6, 10)),
)
FAR = 0.5  # a relative error that is no recovery


def experiment(n, rank, ratio, steps):
    """One problem from its key: errors of the descents, and what `recover` says and is worth."""
    m = ratio * n * rank

    @jax.jit
    def run(key):
        loss, W = semirandom.sensing_problem(key, n, rank=rank, num_random=m)
        M = W @ W.T
        size = jnp.linalg.norm(M)
        start = bw.initializers.spectral(loss)(key, (rank, n))
        rate = 0.25 / loss.smoothness
        rules = (optax.sgd, bw.precondition.scaledgd, bw.precondition.precgd)
        ends = []
        for rule in rules:
            # A rate that is known in the program alone is one of a schedule.
            optimizer = rule(lambda step: rate)
            end = bw.gradient_descent(
                loss, start, optimizer, num_steps=steps, save_every=steps, throw=False
            ).factors[0]
            ends.append(jnp.linalg.norm(end @ end.T - M) / size)
        found = semirandom.recover(loss.operator, loss.y, rank=rank, num_random=m)
        error = jnp.linalg.norm(found.matrix - M)
        return {
            "descent": jnp.stack(ends),
            "error": error / size,
            "radius_over_error": found.radius / error,
            "converged": found.converged,
            "calls": found.num_calls,
            "restarts": found.num_restarts,
            "refuted": found.num_refuted,
        }

    return run


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    cells = ((8, 1, 6, 2),) if smoke else CELLS
    steps = 200 if smoke else 4000
    rows = []
    for cell, (n, rank, ratio, count) in enumerate(tqdm(cells, desc="sizes", unit="size")):
        run = experiment(n, rank, ratio, steps)
        for key in jax.random.split(jax.random.key(cell), count):
            begin = time.perf_counter()
            found = jax.block_until_ready(run(key))
            seconds = time.perf_counter() - begin
            rows.append(
                {"n": n, "rank": rank, "ratio": ratio, "seconds": seconds}
                | {name: np.asarray(x) for name, x in found.items()}
            )
    ds = xr.Dataset(
        {
            name: (("problem", "rule") if name == "descent" else "problem", np.stack(columns))
            for name in rows[0]
            for columns in [[row[name] for row in rows]]
        },
        attrs={"question": __doc__.splitlines()[0], "dtype": "float64", "steps": steps}
        | {"rules": list(RULES)},
    )
    report(ds)
    save(ds, out, "I0_semirandom")
    return ds


def report(ds: xr.Dataset) -> None:
    recovered = ds["error"] <= 1e-8
    print(
        f"{ds.sizes['problem']} problems; recovered to 1e-8: {int(recovered.sum())}; bound holds: "
        f"{int((ds['radius_over_error'] >= 1).sum())}; radii refuted: {int(ds['refuted'].sum())}"
    )
    for i, rule in enumerate(RULES):
        far = ds["descent"].isel(rule=i) > FAR
        print(f"{rule}: {int(far.sum())} end at a relative error above {FAR}")
    print("n, rank, ratio: recovered, all descents far, calls, passes")
    keys = [ds[name].values.tolist() for name in ("n", "rank", "ratio")]
    for n, rank, ratio in sorted({*zip(*keys, strict=True)}):
        here = ds.isel(problem=(ds["n"] == n) & (ds["rank"] == rank) & (ds["ratio"] == ratio))
        recovered = float((here["error"] <= 1e-8).mean())
        far = float((here["descent"] > FAR).all("rule").mean())
        calls = float(here["calls"].mean())
        print(f"{n}, {rank}, {ratio}: {recovered:.2f}, {far:.2f}, {calls:.0f}, {19 * calls:.0f}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
