# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A sweep that can be interrupted
#
# **Question.** How surely, and when, does gradient descent reach the optimum, over smoothings and
# depths? The answer needs many starts, so the study lives in a store: it is looked at while it
# runs, survives what may happen to it, grows when the answer is not sharp enough, and gives back
# any single run.

# %%
import os
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import bwflow as bw

SMOKE = bool(os.environ.get("BWFLOW_SMOKE"))
FIGURES = Path(os.environ.get("BWFLOW_FIGURES", "results/notebooks"))
FIGURES.mkdir(parents=True, exist_ok=True)
jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## The study
#
# An `Experiment` is data. `plan` tells beforehand what it takes; runs of a chunk advance together,
# and a chunk is what is lost at most. Starts are small (0.1), so descent has to leave a saddle.

# %%
spec = bw.Experiment(
    name="interrupted",
    target=bw.experiment.TargetSpec(n=6, condition=20.0),
    network=bw.experiment.NetworkSpec(depth=(2, 3), scale=0.1),
    tau=(0.0, 0.02),
    seeds=8 if SMOKE else 32,
    batch_size=4 if SMOKE else 16,
    dynamics=("descent",),
    descent=bw.experiment.DescentSpec(num_steps=400 if SMOKE else 2000, save_every=20),
    tolerance=1e-6,
)
print(bw.plan.describe(spec))
store = bw.stored.create(spec, Path(tempfile.mkdtemp()) / "study")

# %% [markdown]
# ## Halfway
#
# A worker does every second chunk and stops there, as if it had been killed. `xarray` reads the
# store as it is; `done` says which runs are there.

# %%
bw.jobs.work(store, part=1, parts=2, progress=False)
status = bw.progress.status(store)  # bwflow status STORE prints more of it
print(f"{status.done} of {status.runs} runs are done")
halfway = bw.store.open(store)
halfway["done"].sum("seed").squeeze()

# %% [markdown]
# ## To the end, and on
#
# The same call goes on after whatever happened. Then the share that arrived is known to within its
# Wilson interval; with more starts, which cost only themselves, that gets narrower.

# %%
bw.jobs.run(store, progress=False)
few = bw.statistics.summary(store, over="seed").squeeze()
before = bw.store.read(store)["hit"].values
bw.stored.extend(store, seeds=4 * spec.seeds)
bw.jobs.run(store, progress=False)
many = bw.statistics.summary(store, over="seed").squeeze()


def widths(table):
    """Widths of the intervals."""
    return (table["converged_high"] - table["converged_low"]).values.ravel()


print("widths of the intervals", widths(few).round(3), "->", widths(many).round(3))
assert (widths(many) < widths(few)).all()
after = bw.store.read(store)["hit"].isel(seed=slice(spec.seeds)).values
assert np.array_equal(before, after)  # to the last bit

# %% [markdown]
# ## Over any axes
#
# Quantiles are Kaplan-Meier estimates: a run that did not arrive is censored, not dropped.

# %%
pooled = bw.statistics.summary(store, over=("seed", "tau")).squeeze()
for depth in pooled["depth"].values:
    cell = pooled.sel(depth=depth)
    low, high = float(cell["converged_low"]), float(cell["converged_high"])
    print(
        f"N = {depth}: {int(cell['arrived'])} of {int(cell['runs'])} arrived "
        f"[{low:.2f}, {high:.2f}], median step {float(cell['hit'].sel(quantile=0.5)):.0f}"
    )

# %% [markdown]
# ## One run again
#
# The slowest run that arrived, computed alone with its layers: the plateau is the saddle, where
# singular values are still to be learnt; they come one after the other. Dotted: the eigenvalues.

# %%
ds = bw.store.open(store)
hits = ds["hit"].sel(tau=0.0, depth=3).squeeze()
slowest = int(np.argmax(np.where(np.isfinite(hits), hits, -1)))
run = bw.stored.rerun(store, seed=slowest, tau=0.0, depth=3).squeeze()
W = run["W_3"].values @ run["W_2"].values @ run["W_1"].values
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.semilogy(run["step"], run["gap"])
left.set(xlabel="step", ylabel="gap L - L*", title=f"seed {slowest}, N = 3, tau = 0")
right.plot(run["step"], np.linalg.svd(W, compute_uv=False) ** 2)
right.set(xlabel="step", ylabel="squared singular values of W", title="against the eigenvalues")
for eigenvalue in ds["target_eigenvalues"].values:
    right.axhline(eigenvalue, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
figure.savefig(FIGURES / "14_stored_sweeps.png", dpi=120)

# %% [markdown]
# The stored record of that run and this one differ in rounding only:

# %%
print(bw.report.compare(bw.stored.rerun(store, seed=slowest, tau=0.0, depth=3), ds))
