# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Bures-Wasserstein against Frobenius
#
# **Question.** Both losses have the same minimiser. Which flow comes close to it sooner from the
# same starts, and how does that depend on the depth, the conditioning of the target and the rank
# of the network?

# %%
import os
from functools import partial
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import bwflow as bw

jax.config.update("jax_enable_x64", True)
SMOKE = bool(os.environ.get("BWFLOW_SMOKE"))
FIGURES = Path(os.environ.get("BWFLOW_FIGURES", "results/notebooks"))
FIGURES.mkdir(parents=True, exist_ok=True)
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7"]

# %% [markdown]
# ## What a fair comparison is
#
# **Clock.** The two times cannot be compared: one has the units `covariance^(1/N - 1)`, the other
# `covariance^(1/N - 2)`, and twice a loss makes its flow twice as fast. What costs is the number of
# steps, and that is bounded by the steepest curvature on the way: steps of descent have to stay
# below `2 / h_max`, with `h_max` the largest eigenvalue of the Hessian at the minimiser. So the
# clock here is `t h_max`: half the number of the largest stable steps. A second clock, `t h_min`
# with the smallest eigenvalue, takes the conditioning out: the gap ends in `exp(-2 h_min t)`, so
# what is more than `ln(1e6) / 2 = 6.9` in that clock was lost on the way there.
#
# **Accuracy.** A relative gap of `1e-6` is not the same either: the Frobenius loss sees an error
# of the smallest variance `lambda_n` as `lambda_n^2`, at a condition of 1000 hardly at all. Both
# runs are therefore judged by the gap of the Bures-Wasserstein loss, down to `1e-6` of its start;
# what the Frobenius loss needs to `1e-6` of its own start is printed beside that.
#
# **Starts.** The same Gaussian matrices, split into balanced layers. Such a network may be solved
# on its end-to-end matrix, where the depth is a number: all cases share one program.

# %%
n, tolerance = 6, 1e-6
seeds = 5 if SMOKE else 32
depths = (1, 3) if SMOKE else (1, 2, 3, 4)
conditions = (1.0, 10.0) if SMOKE else (1.0, 3.0, 10.0, 30.0, 100.0)
ranks = (6,) if SMOKE else (1, 2, 4, 6)
losses = {
    "bures_wasserstein": bw.losses.BuresWasserstein,
    "frobenius": bw.losses.Frobenius,
}


def random_target(condition):
    """Eigenvalues from 1 down to `1 / condition`, in a random basis."""
    values = bw.covariances.geometric(n, condition)
    return bw.covariances.from_spectrum(values, key=jax.random.key(1))


def gaps(loss, W):
    """Both gaps, whatever loss is followed."""
    both = {name: kind(loss.target) for name, kind in losses.items()}
    return {name: other(W) - other.minimum(W.shape[1]) for name, other in both.items()}


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, None, None))
def follow(loss, start, depth, times):
    """Both gaps along the flow of one of the losses."""
    run = bw.gradient_flow(
        loss, start, coordinates="end_to_end", depth=depth, times=times,
        rtol=1e-5, atol=1e-8, probe=gaps, throw=False,
    )  # fmt: skip
    return run.probes


def arrival(clock, gap):
    """When a gap first is below the tolerance times its start, between records."""
    level = np.log(tolerance * gap[0])
    logs = np.log(np.maximum(gap, 1e-300))
    i = int(np.argmax(logs < level))
    if i == 0:
        return np.inf
    part = (logs[i - 1] - level) / (logs[i - 1] - logs[i])
    return float(np.exp((1 - part) * np.log(clock[i - 1]) + part * np.log(clock[i])))


def study(condition, depth, rank=n):
    """Arrivals in units of `1 / h_max` for (loss, gap looked at, seed), and `h_max / h_min`."""
    target = random_target(condition)
    starts = jax.vmap(lambda key: bw.initializers.gaussian()(key, (rank, n))[0])(
        jax.random.split(jax.random.key(0), seeds)
    )
    clocks, ratios = [], []
    for name, kind in losses.items():
        h = bw.landscape.minimizer_spectrum(target, rank, depth=depth, loss=name)
        late = 0.5 * np.log(1 / tolerance) * float(h.max() / h.min())
        clock = np.concatenate([[0], np.geomspace(0.3, 2000 + 2 * late, 400)])
        rows = follow(kind(target), starts, float(depth), clock / h.max())
        clocks.append(
            [[arrival(clock, gap) for gap in np.asarray(rows[other])] for other in losses]
        )
        ratios.append(float(h.max() / h.min()))
    return np.array(clocks), np.array(ratios)


by_condition = {(k, N): study(k, N) for N in depths for k in conditions}
by_rank = {(r, N): study(10.0, N, r) for N in depths for r in ranks}

# %% [markdown]
# ## Conditioning and depth
#
# Solid: Bures-Wasserstein, dashed: Frobenius, both down to `1e-6` of the Bures-Wasserstein loss;
# median and quartiles of the starts. Grey: `6.9 h_max / h_min`, what the last phase alone
# takes: `condition^(1 - 1/N)` and `condition^(2 - 1/N)`.


# %%
def bands(ax, x, rows, colour, style):
    """Median line and the band between the quartiles of the seeds."""
    low, middle, high = np.quantile(rows, [0.25, 0.5, 0.75], axis=1, method="inverted_cdf")
    ax.fill_between(x, low, np.minimum(high, 1e9), color=colour, alpha=0.2, linewidth=0)
    ax.loglog(x, middle, style, color=colour, marker="o", markersize=3)


size = (2.8 * len(depths), 3.6)
figure, axes = plt.subplots(1, len(depths), figsize=size, layout="constrained", sharey=True)
for ax, N in zip(axes, depths, strict=True):
    for i, (style, colour) in enumerate((("-", COLOURS[1]), ("--", COLOURS[3]))):
        rows = np.array([by_condition[k, N][0][i, 0] for k in conditions])
        bands(ax, conditions, rows, colour, style)
        late = [by_condition[k, N][1][i] * 0.5 * np.log(1 / tolerance) for k in conditions]
        ax.loglog(conditions, late, ":", color="0.5", zorder=0)
    ax.set(xlabel="condition of the target", title=f"N = {N}")
axes[0].set(ylabel="time to 1e-6, in units of 1 / h_max", ylim=(3, 1e5))
axes[0].text(1, 5.5, "Bures-Wasserstein", color=COLOURS[1], va="top")
axes[0].text(1, 25, "Frobenius", color=COLOURS[3], va="bottom")
figure.savefig(FIGURES / "05_conditioning.png", dpi=100)

# %% [markdown]
# ## Rank
#
# At a condition of 10, against the width of the bottleneck: a network of lower rank has fewer
# directions to learn, but must tell the last one that it learns from the next. On the right the
# other clock, which takes the conditioning out. What the Frobenius flow loses there it loses at
# small singular values, which grow like `s^(3 - 2/N)`, not `s^(2 - 2/N)`; the less so the smaller
# the eigenvalue that they are to reach. Below the dotted line the smallest directions matter too
# little for their last phase to be needed in full.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
N = depths[-2]
for i, (style, colour) in enumerate((("-", COLOURS[1]), ("--", COLOURS[3]))):
    rows = np.array([by_rank[r, N][0][i, 0] for r in ranks])
    bands(left, ranks, rows, colour, style)
    slow = np.array([by_condition[k, N][0][i, 0] / by_condition[k, N][1][i] for k in conditions])
    bands(right, conditions, slow, colour, style)
left.set(xscale="linear", xlabel="rank of the network", ylabel="time to 1e-6, units of 1 / h_max")
left.set(title=f"N = {N}, condition 10", ylim=(10, 1e4))
left.text(ranks[0], 24, "Bures-Wasserstein", color=COLOURS[1])
left.text(ranks[0], 250, "Frobenius", color=COLOURS[3])
left.set_xticks(ranks)
right.axhline(0.5 * np.log(1 / tolerance), color="0.5", linestyle=":")
right.set(xlabel="condition of the target", ylabel="time to 1e-6, units of 1 / h_min")
right.set(title=f"N = {N}", ylim=(1, 1e3))
figure.savefig(FIGURES / "05_rank.png", dpi=100)

# %% [markdown]
# ## Answer
#
# In stable steps the Bures-Wasserstein flow is ahead by a factor of the order of the condition
# number, whatever the depth: its last phase takes `condition^(1 - 1/N)` of them, that of the
# Frobenius flow `condition^(2 - 1/N)`. With one layer it does not feel the target at all. Depth
# costs both; where the network has a low rank, and so the directions that it learns differ less,
# the lead is smaller.

# %%
K = conditions[-1]
for N in depths:
    common, own = {}, {}
    for k in conditions:
        clocks = by_condition[k, N][0]
        common[k] = np.median(clocks[1, 0] / clocks[0, 0])
        own[k] = np.median(clocks[1, 1] / clocks[0, 0])
    print(
        f"N = {N}: at condition {K:g} Frobenius takes {common[K]:.1f} times as long to the same "
        f"accuracy, {own[K]:.1f} times to 1e-6 of its own loss; at condition 1 {common[1.0]:.2f}"
    )
    assert common[K] > 0.3 * K
for N in depths:
    slopes = [
        np.polyfit(
            np.log(conditions[-2:]),
            [np.log(np.median(by_condition[k, N][0][i, 0])) for k in conditions[-2:]],
            1,
        )[0]
        for i in range(2)
    ]
    print(
        f"N = {N}: time grows like condition^{slopes[0]:.2f} (Bures-Wasserstein, the last phase "
        f"{1 - 1 / N:.2f}) and condition^{slopes[1]:.2f} (Frobenius, {2 - 1 / N:.2f})"
    )
for r in ranks:
    ratio = np.median(by_rank[r, depths[-2]][0][1, 0] / by_rank[r, depths[-2]][0][0, 0])
    print(f"rank {r}, N = {depths[-2]}, condition 10: Frobenius takes {ratio:.1f} times as long")

# One layer of full rank: W(t) = B P + e^{-2t} (W(0) - B P), whatever the target.
exact = 0.5 * np.log(1 / tolerance)
one = np.array([by_condition[k, 1][0][0, 0] for k in conditions])
print(f"one layer, Bures-Wasserstein: {one.min():.3f} to {one.max():.3f}, exactly {exact:.3f}")
assert np.allclose(one, exact, rtol=1e-2)
