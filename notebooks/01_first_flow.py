# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # One flow from start to end
#
# **Question.** A network of three layers learns a covariance by gradient flow under the
# Bures-Wasserstein loss. In which order does it learn the eigen-directions, what stays constant on
# the way, and what does the smoothing change?

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bwflow as bw

jax.config.update("jax_enable_x64", True)
SMOKE = bool(os.environ.get("BWFLOW_SMOKE"))
FIGURES = Path(os.environ.get("BWFLOW_FIGURES", "results/notebooks"))
FIGURES.mkdir(parents=True, exist_ok=True)
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7"]

# %% [markdown]
# ## A target and a start
#
# Five eigenvalues from 1 down to 0.02 in a random basis, and layers split evenly from a small
# random end-to-end matrix.

# %%
target = bw.covariances.from_spectrum(bw.covariances.geometric(5, 50.0), key=jax.random.key(0))
start = bw.initializers.balanced(scale=0.05)(jax.random.key(2), (5, 5, 5, 5))
times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.05, 400.0, 30 if SMOKE else 200)])
probe = bw.diagnostics.record("loss", "gap", "singular_values", "alignment", "imbalance")


def follow(tau):
    """The flow at a smoothing, with what the probe records."""
    loss = bw.losses.BuresWasserstein(target, tau)
    return bw.gradient_flow(loss, start, times=times, rtol=1e-8, atol=1e-10, probe=probe)


runs = {tau: follow(tau) for tau in (0.0, 0.01, 0.1)}

# %% [markdown]
# ## What happens
#
# Singular values leave the small start one after the other, the largest first: a balanced value
# grows like `s' = 6 s^(4/3) (b - s)` towards `b = sqrt(lambda)`. With smoothing each one settles at
# `sqrt((lambda - tau)_+)` instead.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
for ax, (tau, run) in zip(axes, runs.items(), strict=True):
    ends = np.sqrt(np.maximum(target.eigenvalues - tau, 0))
    for i, colour in enumerate(COLOURS):
        ax.plot(times[1:], run.probes["singular_values"][1:, i], color=colour)
        ax.axhline(ends[i], color=colour, linewidth=0.7, linestyle=":")
    ax.set(xscale="log", xlabel="time t", title=f"tau = {tau:g}")
axes[0].set_ylabel("singular values of W")
figure.savefig(FIGURES / "01_spectrum.png", dpi=120)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for colour, (tau, run) in zip(COLOURS, runs.items(), strict=False):
    left.loglog(times[1:], run.probes["gap"][1:], color=colour, label=f"tau = {tau:g}")
    drift = np.abs(run.probes["imbalance"] - run.probes["imbalance"][0]).max(axis=1)
    right.loglog(times[1:], np.maximum(drift[1:], 1e-17), color=colour)
left.set(xlabel="time t", ylabel="gap L - L*", ylim=(1e-18, None))
left.legend(frameon=False)
right.set(xlabel="time t", ylabel="drift of the imbalance")
figure.savefig(FIGURES / "01_gap.png", dpi=120)

# %% [markdown]
# ## Answer

# %%
for tau, run in runs.items():
    values, ends = run.probes["singular_values"][-1], jnp.maximum(target.eigenvalues - tau, 0)
    half = [
        float(times[np.argmax(run.probes["singular_values"][:, i] > 0.5 * np.sqrt(end))])
        if end > 0
        else np.inf
        for i, end in enumerate(ends)
    ]
    drift = float(jnp.max(jnp.abs(run.probes["imbalance"] - run.probes["imbalance"][0])))
    print(
        f"tau = {tau:<5g} half learnt at t = {np.round(half, 2)}, "
        f"final singular values {np.round(values, 4)}, imbalance drift {drift:.0e}"
    )

assert np.allclose(runs[0.0].probes["singular_values"][-1], np.sqrt(target.eigenvalues), atol=1e-3)
