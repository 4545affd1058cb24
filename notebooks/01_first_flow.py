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
# ## A target and two starts
#
# Five eigenvalues from 1 down to 0.02 in a random basis. One start splits a small random
# end-to-end matrix evenly: its layers are balanced, `W_{j+1}^T W_{j+1} = W_j W_j^T`. The other
# draws every layer for itself.

# %%
target = bw.covariances.from_spectrum(bw.covariances.geometric(5, 50.0), key=jax.random.key(0))
widths = (5, 5, 5, 5)
balanced = bw.initializers.balanced(scale=0.05)(jax.random.key(2), widths)
unbalanced = bw.initializers.gaussian(0.25)(jax.random.key(2), widths)
times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.05, 400.0, 40 if SMOKE else 200)])
quantities = ("loss", "gap", "gradient_norm", "singular_values", "alignment", "imbalance")


def follow(tau, start=balanced):
    """The flow at a smoothing, with what the probe records."""
    loss = bw.losses.BuresWasserstein(target, tau)
    probe = bw.diagnostics.record(*quantities)
    return bw.gradient_flow(loss, start, times=times, rtol=1e-8, atol=1e-10, probe=probe)


runs = {tau: follow(tau) for tau in (0.0, 0.01, 0.1)}
other = follow(0.0, unbalanced)
ends = {tau: np.sqrt(np.maximum(target.eigenvalues - tau, 0)) for tau in runs}

# %% [markdown]
# ## The spectrum
#
# Singular values leave the small start one after the other, the largest first: a balanced value
# grows like `s' = 6 s^(4/3) (b - s)` towards `b = sqrt(lambda)` (dotted). With smoothing each one
# settles at `sqrt((lambda - tau)_+)`, and those below the smoothing die out.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharey=True)
for ax, (tau, run) in zip(axes, runs.items(), strict=True):
    for i, colour in enumerate(COLOURS):
        ax.plot(times[1:], run.probes["singular_values"][1:, i], color=colour)
        ax.axhline(ends[tau][i], color=colour, linewidth=0.7, linestyle=":")
    ax.set(xscale="log", xlabel="time t", title=f"tau = {tau:g}")
for i, (end, colour) in enumerate(zip(ends[0.0], COLOURS, strict=True)):
    label = f"lambda_{i + 1} = {end**2:.2g}"
    axes[0].text(400, end, label, color=colour, ha="right", va="bottom", fontsize=8)
axes[0].set(ylabel="singular values of W", ylim=(-0.05, 1.12))
figure.savefig(FIGURES / "01_spectrum.png", dpi=100)

# %% [markdown]
# ## The directions
#
# A singular vector turns to its eigenvector of the target before its singular value grows: at the
# triangles that is half of its end. Random vectors of five dimensions have a cosine of about 0.4.


# %%
def half_learnt(run, end):
    """Index of the record at which each singular value has first half of its end."""
    return np.argmax(np.asarray(run.probes["singular_values"]) > 0.5 * end, axis=0)


figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
alignment = np.asarray(runs[0.0].probes["alignment"])
for i, (half, colour) in enumerate(zip(half_learnt(runs[0.0], ends[0.0]), COLOURS, strict=True)):
    ax.plot(times[1:], alignment[1:, i], color=colour)
    ax.plot(times[half], alignment[half, i], "^", color=colour, markersize=7, clip_on=False)
    shift = {0: -0.04, 1: 0.03}.get(i, 0)  # the first two begin at the same place
    ax.text(0.045, alignment[1, i] + shift, f"i = {i + 1}", color=colour, ha="right", va="center")
ax.set(xscale="log", xlabel="time t", ylabel="|cosine| of u_i and eigenvector i")
ax.set(xlim=(0.025, 60), ylim=(0, 1.03))
figure.savefig(FIGURES / "01_alignment.png", dpi=100)

# %% [markdown]
# ## What is conserved
#
# The flow conserves the imbalances `W_{j+1}^T W_{j+1} - W_j W_j^T`, whatever they are: zero stays
# zero, to the accuracy of the solver, and an unbalanced start keeps its own while the layers grow.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for j, colour in enumerate(COLOURS[1:3]):
    norms = other.probes["imbalance"][:, j]
    left.semilogx(times[1:], norms[1:], color=colour)
    at, side = ((1.01, "bottom"), (0.98, "top"))[j]
    left.text(0.06, at * norms[1], f"norm of imbalance {j + 1}", color=colour, va=side)
top = other.probes["singular_values"][:, 0]
left.semilogx(times[1:], top[1:], color=COLOURS[0])
left.text(40, 0.98 * top[-1], "s_1 of W", color=COLOURS[0], va="top")
left.set(xlabel="time t", ylabel="layers drawn independently", ylim=(0, 1.5))
for run, label, colour in ((runs[0.0], "balanced", COLOURS[3]), (other, "unbalanced", COLOURS[1])):
    drift = np.abs(run.probes["imbalance"] - run.probes["imbalance"][0]).max(axis=1)
    right.loglog(times[1:], np.maximum(drift[1:], 1e-17), color=colour)
    right.text(400, 1.3 * drift[-1], label, color=colour, ha="right", va="bottom")
right.set(xlabel="time t", ylabel="change of the norms", ylim=(1e-14, 1e-7))
figure.savefig(FIGURES / "01_imbalance.png", dpi=100)

# %% [markdown]
# ## The loss
#
# Without smoothing the gap ends in `exp(-12 lambda_5^(2/3) t)`, twice the rate of its slowest
# direction (dotted). So it does for `tau` below the smallest eigenvalue, only slower. Above it a
# direction has to be unlearnt, and that takes a power law, `t^(-3/2)`.

# %%
figure, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
for colour, (tau, run), level in zip(COLOURS, runs.items(), (1e-6, 1e-9, 1e-4), strict=False):
    gap = np.asarray(run.probes["gap"])
    seen = gap > 1e-15
    ax.loglog(times[seen], gap[seen], color=colour)
    i = int(np.argmax(gap < level))
    side = "right" if tau == 0 else "left"
    ax.text(times[i], gap[i], f"  tau = {tau:g}  ", color=colour, ha=side, va="bottom")
rate = 12 * target.eigenvalues[-1] ** (2 / 3)
gap = np.asarray(runs[0.0].probes["gap"])
late = (gap < 1e-3) & (gap > 1e-13)
law = gap[late][0] * np.exp(-rate * (times[late] - times[late][0]))
ax.loglog(times[late], law, ":", color="0.3", linewidth=2.5, zorder=0)
ax.set(xlabel="time t", ylabel="gap L - L*", ylim=(1e-15, 10))
figure.savefig(FIGURES / "01_gap.png", dpi=100)

# %% [markdown]
# ## Answer

# %%
for tau, run in runs.items():
    learnt = ends[tau] > 0
    half = np.where(learnt, times[half_learnt(run, ends[tau])], np.inf)
    print(
        f"tau = {tau:<5g} half learnt at t = {half.round(2)}, "
        f"final singular values {np.round(run.probes['singular_values'][-1], 4)}"
    )
    assert np.all(np.diff(half[learnt]) >= 0)  # the largest first
    tolerance = 1e-3 if learnt.all() else 0.05  # what is unlearnt dies slowly
    assert np.allclose(run.probes["singular_values"][-1], ends[tau], atol=tolerance)

at_half = alignment[half_learnt(runs[0.0], ends[0.0]), np.arange(5)]
print(f"|cosines| with the eigenvectors when half learnt: {at_half.round(3)}")
print(f"and at the end all above 1 - {1 - alignment[-1].min():.0e}")
assert np.all(1 - alignment[-1] < 1e-6)

for label, run in (("balanced", runs[0.0]), ("unbalanced", other)):
    first, drift = run.probes["imbalance"][0], np.ptp(run.probes["imbalance"], axis=0).max()
    print(f"{label} start: imbalances {np.round(first, 4) + 0}, constant to {drift:.0e}")
    assert drift < 1e-6

measured = -np.polyfit(times[late], np.log(gap[late]), 1)[0]
print(f"late rate of the gap at tau = 0: {measured:.3f}, predicted {float(rate):.3f}")
assert abs(measured / rate - 1) < 0.1
