# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Ten thousand random starts
#
# **Question.** How long does the flow take from a random start, how much longer from an unlucky
# one, and which saddles hold it up, by depth, scale of the start and smoothing?

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
# ## The study
#
# Gaussian end-to-end matrices split into balanced layers, every run a start of its own: 1250 for
# each of four depths and two smoothings. Balanced layers may be followed on their end-to-end
# matrix, where the depth is a number like the others, so all runs share one program. A run ends
# when the gap is `1e-4` of the loss at the start, or at `t = 100`: then it is censored, not
# dropped.

# %%
n = 4
scale, horizon = (0.3, 25.0) if SMOKE else (0.1, 100.0)
target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 8.0), key=jax.random.key(0))
depths, taus = (1, 2, 3, 4), (0.0, 0.02)
seeds, batch = (20, 160) if SMOKE else (1250, 250)
times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.02, horizon, 40 if SMOKE else 160)])


def probe(loss, W):
    """Loss and gap, singular values, and the network's variance along each eigenvector."""
    variances = jnp.sum((loss.target.eigenvectors.T @ W) ** 2, axis=1)
    values = jnp.linalg.svd(W, compute_uv=False)
    return {
        "loss": loss(W),
        "gap": loss(W) - loss.minimum(n),
        "variance": variances,
        "value": values,
    }


def experiment(*, depth, tau, scale, seed):
    """One flow."""
    key = jax.random.key(seed)
    for number in (depth, tau, scale):
        key = jax.random.fold_in(key, jnp.round(1000 * number).astype(int))
    start = scale * bw.initializers.gaussian()(key, (n, n))[0]
    return bw.gradient_flow(
        bw.losses.BuresWasserstein(target, tau), start, coordinates="end_to_end", depth=depth,
        times=times, rtol=1e-5, atol=1e-8, probe=probe, until=bw.until.gap(1e-4), throw=False,
    )  # fmt: skip


axes = {"depth": jnp.array(depths, float), "tau": jnp.array(taus)}
ds = bw.sweep(
    experiment,
    traced=axes | {"scale": jnp.array([scale]), "seed": jnp.arange(seeds)},
    batch_size=batch,
    progress=False,
).squeeze("scale")
summary = bw.statistics.summary(ds)
print(f"{ds['hit'].size} runs, {int((~ds['success']).sum())} failed")

# %% [markdown]
# ## How long it takes
#
# The share of the runs that are still under way. With one layer and no smoothing every start takes
# `ln(1e4) / 4`, for the gap is `exp(-4t)` of its start. Otherwise the tails are power laws that can
# be told beforehand: the time at the last saddle is set by the smallest singular value `s` of the
# start, `t ~ s^(2/N - 1)` without and `t ~ s^(2/N - 2)` with smoothing, and a square Gaussian
# matrix has `P(s < x) ~ x`. Hence `P(T > t) ~ t^(-N/(N-2))` without, for `N > 2`, and
# `t^(-N/(2N-2))` with smoothing, for `N > 1` (dotted): there the time has no mean.


# %%
def surviving(hit):
    """Times of arrival, sorted, and the share of the runs that arrives later."""
    arrived = np.sort(hit[np.isfinite(hit)])
    return arrived, 1 - np.arange(1, arrived.size + 1) / hit.size


def tail(depth, tau):
    """Exponent of the predicted power law; infinite where the tail is no power law."""
    steps = depth - 2 if tau == 0 else 2 * depth - 2
    return depth / steps if steps > 0 else np.inf


at = {  # labels of the curves
    0.0: ((2.2, 0.1), (6.0, 0.02), (17, 0.004), (95, 0.02)),
    0.02: ((2.7, 0.1), (104, 0.065), (104, 0.18), (104, 0.26)),
}
figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for ax, tau in zip(panels, taus, strict=True):
    for N, colour in zip(depths, COLOURS, strict=False):
        t, share = surviving(ds["hit"].sel(depth=N, tau=tau).values)
        ax.step(np.r_[0.5, t], np.r_[1, share], where="post", color=colour)
        x, y = at[tau][depths.index(N)]
        side = "left" if x > horizon else "right"
        ax.text(x, y, f"N = {N}", color=colour, ha=side, va="center", clip_on=False)
        if np.isfinite(power := tail(N, tau)):
            t0 = np.quantile(t, 0.9 if tau == 0 else 0.6)
            law = np.array([t0, horizon])
            above = 1.6 * share[np.searchsorted(t, t0)]
            ax.plot(law, above * (law / t0) ** -power, ":", color=colour)
    ax.set(xscale="log", yscale="log", xlabel="time t", title=f"tau = {tau:g}")
    ax.set(xlim=(0.5, horizon), ylim=(0.5 / seeds, 1.2))
panels[0].set_ylabel("share of runs under way")
figure.savefig(FIGURES / "06_survival.png", dpi=100)

# %% [markdown]
# ## Which saddles hold it up
#
# A direction counts as learnt once the network has half of its variance. The directions learnt so
# far name the critical point that is nearest, as `bw.landscape.classify` has it: `{}` is the
# origin, `{1}` the best matrix of rank one. Each run is at a set of directions for a share of its
# time; here are the means of these shares, over all runs of a cell and over the slowest tenth.
# Censored runs count up to the end; "other" are sets that leave out a larger eigenvalue.

# %%
ends = np.maximum(np.asarray(target.eigenvalues)[None, :] - np.array(taus)[:, None], 0)
learnt = ds["variance"].transpose("depth", "tau", "seed", "save", ...).values
learnt = learnt > 0.5 * ends[None, :, None, None, :]
mask = learnt @ (2 ** np.arange(n))
clock = np.asarray(times)
duration = np.minimum(ds["hit"].values, horizon)
steps = np.diff(np.minimum(clock[None, None, None, :], duration[..., None]), axis=-1)
shares = np.stack([np.sum(steps * (mask[..., :-1] == m), -1) for m in range(2**n)], -1)
shares /= duration[..., None]


def name(m):
    """The set of directions that a mask stands for."""
    return "{" + ",".join(str(i + 1) for i in range(n) if m >> i & 1) + "}"


in_order = [2**k - 1 for k in range(n + 1)]  # {}, {1}, {1, 2}, ...
greys = ["#E69F00", "#56B4E9", *COLOURS[2:4], "0.75", "0.4"]
figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
rows = [(N, which) for N in depths for which in ("all", "slowest")]
stuck = {}
for ax, (j, tau) in zip(panels, enumerate(taus), strict=True):
    for y, (N, which) in enumerate(rows):
        k = depths.index(N)
        cut = np.quantile(duration[k, j], 0.9 if which == "slowest" else 0, method="lower")
        mean = shares[k, j][duration[k, j] >= cut].mean(axis=0)
        stuck[N, tau, which] = mean
        parts = [*mean[in_order], 1 - mean[in_order].sum()]
        left = np.cumsum([0, *parts[:-1]])
        ax.barh(-y - (y // 2) * 0.4, parts, left=left, color=greys, height=0.9)
        if y == 2:
            texts = [*map(name, in_order[:-1]), "all", ""]
            for x, part, text in zip(left, parts, texts, strict=True):
                ax.text(x + part / 2, -y - 0.4, text, ha="center", va="center", fontsize=7)
    ax.text(1, 0.55, "other", ha="right", va="bottom", fontsize=8)
    ax.set(xlabel="share of the time", xlim=(0, 1), ylim=(None, 1.4), title=f"tau = {tau:g}")
panels[0].set_yticks(
    [-y - (y // 2) * 0.4 for y in range(len(rows))],
    [f"N = {N}, all" if which == "all" else "slowest tenth" for N, which in rows],
)
figure.savefig(FIGURES / "06_saddles.png", dpi=100)

# %% [markdown]
# ## What makes a start unlucky
#
# The smallest singular value of the start alone tells the time of the slow runs. Lines: the powers
# above.

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
smallest = ds["value"].isel(save=0).values[..., -1]
hits = ds["hit"].values
correlation = {}
for ax, (j, tau) in zip(panels, enumerate(taus), strict=True):
    for k, (N, colour) in enumerate(zip(depths, COLOURS, strict=False)):
        s, t = smallest[k, j], hits[k, j]
        seen = np.isfinite(t)
        ax.loglog(s[seen], t[seen], ".", color=colour, markersize=2, alpha=0.5, rasterized=True)
        unlucky = seen & (s < np.median(s))
        near = np.abs(np.log(s / np.median(s))) < 0.3
        correlation[N, tau] = np.corrcoef(np.log(s[unlucky]), np.log(t[unlucky]))[0, 1]
        if np.isfinite(power := tail(N, tau)):
            x = np.quantile(s, [0.001, 0.9])
            law = np.median(t[near]) * (x / np.median(s)) ** (-1 / power)
            ax.loglog(x, law, color=colour, linewidth=0.8)
        if tau == 0:
            place = ((4e-5, 2.4), (4e-5, 9), (9e-5, 15), (4e-4, 60))[k]
            ax.text(*place, f"N = {N}", color=colour, va="bottom")
    ax.axhline(horizon, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    ax.set(xlabel="smallest singular value of the start", title=f"tau = {tau:g}")
    ax.set(xlim=(3e-5, 0.1), ylim=(1, 2 * horizon))
panels[0].set_ylabel("time to 1e-4")
figure.savefig(FIGURES / "06_starts.png", dpi=100)

# %% [markdown]
# ## Scale
#
# Smaller starts wait longer at the origin as well: in proportion to `scale^(2/N - 1)` without
# smoothing, `scale^(2/N - 2)` with it. For two layers and `tau = 0` that is a logarithm.

# %%
scales = jnp.array([1.0] if SMOKE else [0.01, 0.03, 0.3, 1.0])
few = 8 if SMOKE else 100
others = bw.sweep(
    experiment,
    traced=axes | {"scale": scales, "seed": jnp.arange(few)},
    batch_size=64 if SMOKE else 200,
    progress=False,
)
by_scale = bw.statistics.summary(others)["hit"]
figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
for ax, tau in zip(panels, taus, strict=True):
    for N, colour in zip(depths, COLOURS, strict=False):
        cell = by_scale.sel(depth=N, tau=tau).transpose("scale", "quantile").values
        here = summary["hit"].sel(depth=N, tau=tau).values
        x = np.r_[scale, np.asarray(scales)]
        q = np.minimum(np.vstack([here, cell])[np.argsort(x)], 10 * horizon)
        x = np.sort(x)
        ax.fill_between(x, q[:, 0], q[:, 2], color=colour, alpha=0.2, linewidth=0)
        ax.loglog(x, q[:, 1], "o-", color=colour, markersize=3)
        if tau == 0:
            ax.text(x[0] / 1.1, q[0, 1], f"N = {N}", color=colour, ha="right", va="center")
    ax.axhline(horizon, color="0.5", linewidth=0.8, linestyle=":")
    ax.set(xlabel="scale of the start", title=f"tau = {tau:g}", ylim=(1, 1.5 * horizon))
    ax.set_xlim(0.003, 1.2)
panels[0].set_ylabel("time to 1e-4, quartiles")
figure.savefig(FIGURES / "06_scale.png", dpi=100)

# %% [markdown]
# ## Answer
#
# One layer is never held up. From two layers on the last saddle is what an unlucky start waits at,
# where all but the smallest eigenvalue are learnt; how long, its smallest singular value tells. The
# tails are the power laws that follow from that, so that with smoothing a mean over starts says
# nothing: medians and survival do.

# %%
for tau in taus:
    for N in depths:
        cell = summary.sel(depth=N, tau=tau)
        low, middle, high = cell["hit"].values
        print(
            f"tau = {tau:<4g} N = {N}: median {middle:5.2f}, quartiles {low:5.2f} to {high:5.2f}; "
            f"{int(cell['runs'] - cell['arrived'])} of {int(cell['runs'])} censored"
        )
error = float(abs(ds["hit"].sel(depth=1, tau=0.0) - np.log(1e4) / 4).max())
print(f"one layer, tau = 0: all within {error:.0e} of ln(1e4) / 4")
assert error < 1e-3

# Hill's estimate of the exponent from the slowest runs, with those that are censored.
for tau in taus:
    for N in depths:
        if not np.isfinite(tail(N, tau)):
            continue
        t = np.minimum(ds["hit"].sel(depth=N, tau=tau).values, horizon)
        start = np.quantile(t, 0.9 if tau == 0 else 0.6)
        late = t > start
        events = np.sum(late & (t < horizon))
        hill = events / np.sum(np.log(t[late] / start))
        error = hill / np.sqrt(max(events, 1))
        assert SMOKE or abs(hill - tail(N, tau)) < 5 * error + 0.1 * tail(N, tau)
        print(
            f"tau = {tau:<4g} N = {N}: tail t^-{hill:.2f} (standard error {error:.2f}) among the "
            f"{late.sum()} slowest, predicted t^-{tail(N, tau):.2f}"
        )

for tau in taus:
    for N in depths[1:]:
        everyone, slowest = (stuck[N, tau, which] for which in ("all", "slowest"))
        worst = int(np.argmax(slowest))
        print(
            f"tau = {tau:<4g} N = {N}: the slowest tenth is at {name(worst)} for "
            f"{slowest[worst]:.0%} of its time, all runs for {everyone[worst]:.0%}; correlation of "
            f"log time and log smallest singular value {correlation[N, tau]:.2f}"
        )
        if not SMOKE:
            assert worst == 2 ** (n - 1) - 1  # all but the smallest
first = [np.argmax(learnt, axis=3)[depths.index(N), 0] for N in depths]
for N, order in zip(depths, first, strict=True):
    kept = np.mean(np.all(np.diff(order, axis=-1) >= 0, axis=-1))
    print(f"tau = 0    N = {N}: {kept:.0%} of the runs learn the directions largest first")
