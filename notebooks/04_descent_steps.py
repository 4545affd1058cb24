# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Step sizes of gradient descent
#
# **Question.** How large a step may gradient descent take? How do the published rule, a practical
# one and the limit of stability compare, from 1 layer to 100, and how many steps does a run need as
# a function of its step size?

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import bwflow as bw
from bwflow import theory

jax.config.update("jax_enable_x64", True)
SMOKE = bool(os.environ.get("BWFLOW_SMOKE"))
FIGURES = Path(os.environ.get("BWFLOW_FIGURES", "results/notebooks"))
FIGURES.mkdir(parents=True, exist_ok=True)
BLACK, BLUE, GREEN, ORANGE, PINK = "#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7"

n, tau = 3, 0.02
target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 5.0), key=jax.random.key(0))
lam = np.asarray(target.eigenvalues)
loss = bw.losses.BuresWasserstein(target, tau)
depths = (1, 3) if SMOKE else (1, 2, 3, 6)
COLOURS = dict(zip((1, 2, 3, 6), (BLACK, BLUE, GREEN, ORANGE), strict=True))
seeds = jnp.arange(3 if SMOKE else 20)


def near(seed, N, fraction=0.3):
    """Balanced layers whose loss has a root of a fraction of what a margin allows for."""
    best = target.eigenvectors * jnp.sqrt(target.eigenvalues - tau)[None]
    away = jax.random.normal(jax.random.key(seed), (n, n))
    L0 = (fraction * (jnp.sqrt(lam[-1]) - tau**0.5)) ** 2

    def halve(_, bracket):
        middle = sum(bracket) / 2
        far = loss(best + middle * away) > L0
        return jnp.where(far, bracket[0], middle), jnp.where(far, middle, bracket[1])

    scale = jax.lax.fori_loop(0, 50, halve, (jnp.zeros(()), jnp.ones(())))[0]
    return bw.initializers.split_evenly(best + scale * away, (n,) * (N + 1))


def far(seed, N):
    """Balanced layers that know nothing of the target, of twice its size."""
    return bw.initializers.balanced(scale=1.5)(jax.random.key(seed), (n,) * (N + 1))


# %% [markdown]
# ## Three rules
#
# Left: step sizes against depth, for starts as far as 0.3 of what a margin allows. The limit of
# stability is 2 by the largest curvature at the minimiser; above it no run can end there. The
# practical rule is `1/2` by the largest rate that any direction can have. The published rule takes
# the margin to the power of `2 N`. Right: the rules against how far the start is, three layers.

# %%
many = np.arange(1, 101)
limits = jnp.stack([theory.stability_limit(target, n, depth=int(N), tau=tau) for N in many[:12]])
closed = lam[0] / (many * (lam[0] - tau) ** (2 - 1 / many))
assert np.allclose(closed[:12], limits)  # the same for as many as are computed


@jax.jit
def rules(fraction, N):
    """Practical rule, published one, and published one with the corrected margin."""
    L0 = (fraction * (jnp.sqrt(lam[-1]) - tau**0.5)) ** 2
    c = theory.margin(target, L0, tau=tau)
    published = [theory.published_step_sizes(target, L0, depth=N, margin=x) for x in (None, c)]
    practical = theory.practical_step_size(target, L0, depth=N)
    return jnp.stack([practical, *(x.least for x in published)])


RULES = {0: (GREEN, "-"), 1: (PINK, "-."), 2: (ORANGE, ":")}
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
by_depth = np.asarray(rules(jnp.full(many.size, 0.3), jnp.asarray(many, float)))
fractions = jnp.geomspace(1e-3, 0.99, 100)
by_start = np.asarray(rules(fractions, jnp.full(fractions.size, 3.0)))
axes[0].plot(many, closed, color=BLACK)
for row, (colour, style) in RULES.items():
    axes[0].plot(many, by_depth[row], style, color=colour)
    axes[1].plot(fractions, by_start[row] / closed[2], style, color=colour)
CORRECTED = "published,\ncorrected margin"
axes[0].text(90, 10 * closed[-1], "limit of stability", ha="right", va="bottom")
axes[0].text(90, 0.05 * by_depth[0, -1], "practical", color=GREEN, ha="right", va="top")
axes[0].text(11, by_depth[1, 10] * 10, "published", color=PINK)
axes[0].text(9, 1e-20, CORRECTED, color=ORANGE, ha="right", va="center")
axes[0].set(xscale="log", yscale="log", xlabel="depth N", ylabel="step size", ylim=(1e-40, 1e3))
axes[1].axhline(1, color=BLACK)
near_limit = by_start[:, 0] / closed[2]
axes[1].text(1e-3, 1.5, "limit of stability", va="bottom")
axes[1].text(1e-3, 0.5 * near_limit[0], "practical", color=GREEN, va="top")
axes[1].text(1e-3, 2 * near_limit[1], "published", color=PINK, va="bottom")
axes[1].text(0.3, 1e-8, CORRECTED, color=ORANGE, ha="right")
axes[1].set(xscale="log", yscale="log", ylabel="step size / limit", ylim=(1e-12, 30))
axes[1].set(xlabel="L0^(1/2) / (lambda_n^(1/2) - tau^(1/2))")
figure.savefig(FIGURES / "04_rules.png", dpi=100)

# %% [markdown]
# ## Steps to a tolerance
#
# Descents from near and far, with step sizes as fractions of the limit, until a millionth of the
# loss is left. For small steps their number falls as `1 / eta`. It is least between half of the
# limit, which is best for one layer, and 0.8 of it, and grows again towards the limit, where the
# steepest direction rings; above it no run arrives. From far, deeper networks need smaller steps:
# their largest singular value is above its end at first, and so is the curvature.

# %%
below = np.linspace(0.6, 0.95, 3 if SMOKE else 8)
factors = np.concatenate([np.geomspace(0.05, 0.5, 4 if SMOKE else 8), below, [1.05, 1.1, 1.2]])
most = 400 if SMOKE else 1500


def descend(layers, step_size, num_steps=most, **keywords):
    return bw.gradient_descent(
        loss, layers, optax.sgd(step_size), num_steps=num_steps, throw=False, **keywords
    )


def steps_needed(N, start):
    """Steps until a millionth of the loss is left; infinity if it takes more than all."""
    limit = theory.stability_limit(target, n, depth=N, tau=tau)

    @jax.jit
    @jax.vmap
    def one(factor, seed):
        run = descend(start(seed, N), factor * limit)
        losses = jnp.where(jnp.isfinite(run.probes["loss"]), run.probes["loss"], jnp.inf)
        # Passing by does not count: it has to stay below.
        done = jnp.flip(jnp.cumprod(jnp.flip(losses <= 1e-6 * losses[0])))
        rises = jnp.any(jnp.diff(losses) > 1e-12 * losses[0])
        return jnp.where(done[-1] == 1, jnp.argmax(done), jnp.inf), rises

    grid = np.repeat(factors, seeds.size), jnp.tile(seeds, factors.size)
    return (np.reshape(x, (factors.size, seeds.size)) for x in one(*grid))


counted = {(N, f.__name__): tuple(steps_needed(N, f)) for N in depths for f in (near, far)}

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
for ax, kind in zip(axes, ("near", "far"), strict=True):
    for N in depths:
        low, middle, high = np.quantile(
            counted[N, kind][0], [0.05, 0.5, 0.95], axis=1, method="nearest"
        )
        kept, colour = np.isfinite(middle), COLOURS[N]
        band = low[kept], np.minimum(high, most)[kept]
        ax.fill_between(factors[kept], *band, color=colour, alpha=0.2, linewidth=0)
        ax.plot(factors[kept], middle[kept], "o-", color=colour, markersize=3)
        text = f"{N} layer{'s' if N > 1 else ''}"
        height = middle[0] * {2: 0.75, 6: 1.3}.get(N, 1.0)
        text = text if kind == "near" else f"{N}"
        ax.text(0.04, height, text, color=colour, ha="right", va="center")
    ax.axvline(1, color="0.5", linewidth=0.8, linestyle=":")
    ax.text(1.02, 1.5, "no run\narrives", color="0.4")
    ax.set(yscale="log", xlabel="step size / limit of stability", ylim=(1, 1.2 * most))
    ax.set(xlim=(-0.15, 1.25), xticks=np.arange(0, 1.3, 0.2))
axes[0].set_title("starts near the target")
axes[1].set_title("starts far from it")
axes[0].set(ylabel="steps until a millionth of the loss is left")
figure.savefig(FIGURES / "04_steps.png", dpi=100)

# %% [markdown]
# ## At the limit
#
# Left: three layers from near, with steps of 0.5 to 1.2 of the limit. Above it the loss stops
# falling at a level that grows with the step. Right: one layer with a twentieth of the limit, and
# the factor per step that is proved (dashed). The rate of the flow, proved for the flow alone,
# bounds these runs too if time is the number of steps times their size (dotted). With the number of
# steps in the place of the time (dash-dotted) it does not.

# %%
EDGE = {0.5: BLACK, 0.95: BLUE, 1.05: ORANGE, 1.2: PINK}
limit = theory.stability_limit(target, n, depth=3, tau=tau)
span = 200 if SMOKE else 400
edge = jax.jit(jax.vmap(lambda h: descend(near(1, 3), h * limit, num_steps=span).probes["loss"]))(
    jnp.array(list(EDGE))
)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for (h, colour), values in zip(EDGE.items(), np.asarray(edge), strict=True):
    shown = np.maximum(values, 1e-17)
    left.semilogy(shown, color=colour, linewidth=1)
    at = int(np.argmax(shown < 1e-12)) if h < 1 else span
    shift = 5 if h < 1 else 3
    level = 1e-12 if h < 1 else np.median(shown[-50:]) * (3 if h > 1.1 else 0.3)
    left.text(at + shift, level, f"{h:g}", color=colour, va="center")
left.text(0.55, 0.5, "step size / limit", transform=left.transAxes)
left.set(xlabel="step", ylabel="loss", ylim=(1e-17, 3), xlim=(-5, 1.12 * span))

single = theory.stability_limit(target, n, depth=1, tau=tau) / 20


@jax.jit
@jax.vmap
def one_layer(seed):
    run = descend(near(seed, 1), single, num_steps=100)
    return theory.compare(run, target, tau, step_size=single)


held = one_layer(seeds)
share = np.asarray(held.loss / held.loss[:, :1])
low, middle, high = np.quantile(share, [0.05, 0.5, 0.95], axis=0)
k = np.arange(101)
right.fill_between(k, low, high, color=BLUE, alpha=0.25, linewidth=0)
right.semilogy(k, middle, color=BLUE)
right.semilogy(k, held.bounds[0, 0] / held.loss[0, 0], "--", color=GREEN)
rate = float(theory.sharp_rate(target, held.loss[0, 0], depth=1, tau=tau))
right.semilogy(k, np.exp(-rate * single * k), ":", color=ORANGE)
wrong = np.exp(-rate * k)
right.semilogy(k, wrong, "-.", color=PINK)
right.text(60, 0.5 * middle[60], "runs", color=BLUE, ha="right", va="top")
right.text(101, 0.7 * held.bounds[0, 0, -1] / held.loss[0, 0], "factor", color=GREEN, va="top")
right.text(101, 1.3 * np.exp(-rate * single * 100), "time", color=ORANGE, va="bottom")
right.text(7, 1e-9, "steps for time", color=PINK)
right.set(xlabel="step", ylabel="loss / loss at the start", ylim=(1e-10, 3), xlim=(-2, 118))
figure.savefig(FIGURES / "04_edge.png", dpi=100)

# %% [markdown]
# ## Answer

# %%
for N in (1, 3, 10, 100):
    published, corrected, practical = (
        closed[N - 1] / max(float(by_depth[row, N - 1]), 1e-300) for row in (1, 2, 0)
    )
    print(
        f"N = {N:<4d} limit {closed[N - 1]:.3g}; the practical rule is {practical:.1f} times "
        f"smaller, the published one {published:.1e}, with the corrected margin {corrected:.1e}"
    )
assert np.all(by_depth[0] < closed)
assert np.all(by_depth[1] <= by_depth[0] / 10)
beyond = factors > 1
for N in depths:
    for kind in ("near", "far"):
        steps, rises = counted[N, kind]
        median = np.median(steps, axis=1)
        best = int(np.argmin(median))
        arrived = np.isfinite(steps)
        print(
            f"{N} layers from {kind:4}: fewest steps {median[best]:.0f} at {factors[best]:.2f} of "
            f"the limit; arrived: {100 * arrived[~beyond].mean():.0f} % of runs below, "
            f"{100 * arrived[beyond].mean():.0f} % above; the loss rose in "
            f"{100 * rises[~beyond].mean():.0f} % below"
        )
        assert not np.any(arrived[beyond])
        if kind == "near":
            assert np.all(arrived[~beyond])


@jax.jit
@jax.vmap
def practical_run(seed):
    layers = far(seed, depths[-1])
    step_size = theory.practical_step_size(target, loss(bw.end_to_end(layers)), depth=depths[-1])
    losses = descend(layers, step_size, num_steps=most).probes["loss"]
    return jnp.any(jnp.diff(losses) > 1e-12 * losses[0]), losses[-1] <= 1e-6 * losses[0]


rises, arrived = (np.asarray(x) for x in practical_run(seeds))
print(
    f"{depths[-1]} layers from far with the practical rule: the loss rose in {rises.sum()} of "
    f"{rises.size} runs, {arrived.sum()} arrived within {most} steps"
)
assert not np.any(rises)
print(f"one layer: factor proved for {held.valid.sum()} and respected by {held.holds.sum()} runs")
assert np.all(held.valid & held.holds)
print(
    f"a rate with steps for time claims too little by up to {np.max(middle[:30] / wrong[:30]):.0e}"
)
assert edge[1, -1] < 1e-12 < 1e-6 < edge[2, -1] < edge[3, -1]
