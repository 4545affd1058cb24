# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # The landscape
#
# **Question.** The critical points of the smoothed Bures-Wasserstein loss are known: each learns a
# set `J` of eigenvalues of the target and nothing else. How high do they lie, how does the loss
# bend there and at matrices of low rank, how long does a flow stay near a saddle, and does a search
# from thousands of starts find a point that was not predicted?

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bwflow as bw
from bwflow import landscape

jax.config.update("jax_enable_x64", True)
SMOKE = bool(os.environ.get("BWFLOW_SMOKE"))
FIGURES = Path(os.environ.get("BWFLOW_FIGURES", "results/notebooks"))
FIGURES.mkdir(parents=True, exist_ok=True)
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7"]

n, rank, tau = 5, 3, 0.02
target = bw.covariances.from_spectrum(bw.covariances.geometric(n, 10.0), key=jax.random.key(0))
loss = bw.losses.BuresWasserstein(target, tau)
points = list(landscape.critical_points(target, rank, tau=tau))
minimum, saddles = points[0], points[1:]


def name(point):
    """The set `J` as in the formulas, counted from one."""
    return "{" + ",".join(str(j + 1) for j in point.indices) + "}"


# %% [markdown]
# ## Values and indices
#
# Five eigenvalues from 1 down to 0.1 and three columns: `J` has at most three elements. A point
# with fewer has free columns, and along each of them every eigenvalue that is not learnt is a way
# down. So the index, the number of directions in which the loss falls, grows with what is missing.
# The Frobenius loss has the same points and the same indices at other values.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, kind in zip(axes, ("bures_wasserstein", "frobenius"), strict=True):
    listed = list(landscape.critical_points(target, rank, tau=tau, loss=kind))
    for k, colour in enumerate(COLOURS[:4]):
        group = [point for point in listed if len(point.indices) == k]
        ax.plot([p.morse_index for p in group], [p.value for p in group], "o", color=colour)
        worst = max(group, key=lambda point: point.morse_index)
        text, shift = (f"{k} learnt", 7) if k else ("nothing learnt", -16)
        at = (worst.morse_index, worst.value)
        ax.annotate(text, at, (0, shift), textcoords="offset points", color=colour, ha="center")
    ax.annotate("minimum", (0, listed[0].value), (7, -9), textcoords="offset points")
    ax.set(xlabel="Morse index", ylabel="loss", title=kind.replace("_", "-").title())
    ax.set(xlim=(-0.6, 17.4), ylim=(-0.07, 1.12 * listed[-1].value))
figure.savefig(FIGURES / "02_values.png", dpi=100)

# %% [markdown]
# ## Where the Hessian blows up
#
# As a function of the covariance `S` the loss is convex, and its curvature grows as `x^(-3/2)` with
# the smoothing at a matrix of low rank, as `x^(-3)` with a singular value. As a function of `W` it
# never bends up by more than 2, but down without bound: as `x^(-1/2)` with the smoothing and,
# without one, as `1/x` where two singular values are at `x`, or one if there are fewer columns than
# eigenvalues. A single small one of a square matrix does nothing: there the gradient jumps instead.
# Dotted: the predicted slopes and, for the smoothing, constants.

# %%
U, V = (bw.covariances.haar(jax.random.key(i), n) for i in (1, 2))
square = (U * jnp.array([1.5, 1.0, 0.7, 0.5, 0.4])) @ V.T
singular = (U * jnp.array([1.5, 1.0, 0.7, 0.5, 0.0])) @ V.T
few = square[:, :rank]
values = jnp.geomspace(1e-8, 1e-2, 7 if SMOKE else 25)
u = np.asarray(U[:, -1])
stiffness = float(u @ np.linalg.inv(np.asarray(target.covariance)) @ u)


def blowup(W, along, count=1, space="factors"):
    run = landscape.hessian_blowup(target, W, values, along=along, count=count, space=space)
    return run, np.asarray(run.largest if space == "covariance" else -run.least)


SINGULAR = "singular_values"
curves = {  # what is made small: ((run, eigenvalue shown), predicted slope, predicted constant)
    "S": {
        "the smoothing, W of rank 4": (
            blowup(singular, "tau", space="covariance"),
            -1.5,
            0.5 * stiffness**-0.5,
        ),
        "one singular value": (blowup(square, SINGULAR, space="covariance"), -3.0, None),
    },
    "W": {
        "the smoothing, W of rank 4": (blowup(singular, "tau"), -0.5, 2 * stiffness**-0.5),
        "one singular value, 3 columns": (blowup(few, SINGULAR), -1.0, None),
        "two singular values, 5 columns": (blowup(square, SINGULAR, count=2), -1.0, None),
        "one singular value, 5 columns": (blowup(square, SINGULAR), 0.0, None),
    },
}

# %%
NUDGES = {"one singular value, 3 columns": 2.0, "two singular values, 5 columns": 0.6}
figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for ax, family in zip(axes, curves.values(), strict=True):
    for colour, (text, ((_, shown), slope, constant)) in zip(COLOURS, family.items(), strict=False):
        ax.loglog(values, shown, color=colour)
        constant = shown[0] * values[0] ** -slope if constant is None else constant
        ax.loglog(values, constant * values**slope, ":", color="0.5", linewidth=2.5, zorder=0)
        height = shown[-1] * NUDGES.get(text, 1.0)
        ax.text(1.5e-2, height, text, color=colour, va="center", fontsize=9)
    ax.set(xlabel="x, to which is set what is written at the curve", xlim=(5e-9, 1e4))
    ax.set_xticks(10.0 ** np.arange(-8, -1))
axes[0].set(ylabel="largest eigenvalue of the Hessian in S")
axes[1].set(ylabel="minus the least eigenvalue of the Hessian in W")
figure.savefig(FIGURES / "02_blowup.png", dpi=100)

# %% [markdown]
# ## Leaving a saddle
#
# A flow that starts `10^-6` from a saddle, along the direction of least curvature `-c`, falls below
# it by `exp(2 c t)`. That is fast for one layer, for the blow-up makes `c` large; deeper networks,
# balanced, have smaller curvature there, and none at the saddles that learn the largest
# eigenvalues but too few of them; these are left out.

# %%
STEP = 1e-6
spans = jnp.linspace(0.0, 1.0, 200 if SMOKE else 400)


def displaced(layers):
    """Layers a step away from a saddle, along the steepest direction, and the curvature there."""
    curvatures, directions = landscape.escape_directions(loss, layers)
    moved = tuple(W + STEP * D[0] for W, D in zip(layers, directions, strict=True))
    return moved, -curvatures[0]


@jax.jit
@jax.vmap
def flows(layers, duration):
    """Where flows end, and their losses on the way."""
    times, probe = duration * spans, bw.diagnostics.record("loss")
    run = bw.gradient_flow(loss, layers, times=times, rtol=1e-8, atol=1e-13, probe=probe)
    return run.factors, run.probes["loss"]


def rates(depth):
    """For each strict saddle of a depth: twice the curvature, and the rate of the flow."""
    widths = (rank,) * depth + (n,)
    listed = landscape.critical_points(target, rank, tau=tau, depth=depth)
    strict = [point for point in listed if point.is_strict]
    layers = [bw.initializers.split_evenly(point.end_to_end(), widths) for point in strict]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)
    moved, c = jax.jit(jax.vmap(displaced))(stacked)
    losses = np.asarray(flows(moved, 16 / c)[1])
    times = np.asarray(16 / c)[:, None] * np.asarray(spans)
    found = []
    for point, t, row in zip(strict, times, losses, strict=True):
        fall = point.value - row
        linear = (fall > 1e-10) & (fall < 1e-7) & (np.cumsum(fall > 1e-7) == 0)
        found.append(np.polyfit(t[linear], np.log(fall[linear]), 1)[0])
    return strict, 2 * np.asarray(c), np.array(found), times, losses


escapes = {depth: rates(depth) for depth in ((1,) if SMOKE else (1, 2, 3))}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
strict, predicted, _, times, losses = escapes[1]
for J, colour in zip(((0, 1, 3), (0, 1, 4), (0, 2, 4), ()), COLOURS, strict=False):
    row = [point.indices for point in strict].index(J)
    point, t = strict[row], times[row]
    fall = np.maximum(point.value - losses[row], 1e-15)
    left.semilogy(t, fall, color=colour)
    end = int(np.argmax(fall > 0.5 * fall[-1]))
    text, above = (name(point), 2) if J else ("nothing learnt", 8)
    left.text(t[end], fall[end] * above, text, color=colour, ha="center", va="bottom", fontsize=9)
    law = predicted[row] / 4 * STEP**2 * np.exp(predicted[row] * t)
    left.semilogy(t[law < 1e-2], law[law < 1e-2], ":", color="0.5", linewidth=2.5, zorder=0)
left.set(xlabel="time t", ylabel="fall below the saddle's loss", ylim=(1e-13, 50))
for (depth, (_, predicted, measured, *_)), colour in zip(escapes.items(), COLOURS, strict=False):
    size = 10 - 2 * depth
    right.loglog(predicted, measured, "o", color=colour, markersize=size, fillstyle="none")
    label = f"depth {depth}"
    right.text(0.05, 0.98 - 0.08 * depth, label, color=colour, transform=right.transAxes)
ends = np.array([0.3, 40.0])
right.loglog(ends, ends, ":", color="0.5", linewidth=2.5, zorder=0)
right.set(xlabel="predicted rate, 2c", ylabel="measured rate of the fall")
figure.savefig(FIGURES / "02_escape.png", dpi=100)

# %% [markdown]
# ## How long a flow stays
#
# From `10^-6` away in a random direction the part `a` of it along the steepest one has to grow
# first: the loss is halfway to the minimum after about `log(2 D / (c a^2)) / (2 c)`, where `D` is
# that half. They are later than that: a new singular value grows more slowly once it is beyond
# `sqrt(tau)`, where the curvature is not that of the saddle, and flows pass other saddles.


# %%
W = np.stack([point.end_to_end() for point in saddles])
value = np.array([point.value for point in saddles])
c = -np.array([point.hessian_eigenvalues[0] for point in saddles])
half = (value - minimum.value) / 2
expected = np.log(2 * half / (c * STEP**2 / (n * rank))) / (2 * c)
rng = np.random.default_rng(0)


def stays():
    """For each saddle the time at which a flow from a random place near it is halfway down."""
    noise = rng.normal(size=W.shape)
    noise *= STEP / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    losses = np.asarray(flows((jnp.asarray(W + noise),), jnp.asarray(4 * expected))[1])
    below = losses < (value - half)[:, None]
    times = 4 * expected * np.asarray(spans)[np.argmax(below, axis=1)]
    return np.where(below.any(axis=1), times, np.inf)


halfway = np.array([stays() for _ in range(4 if SMOKE else 40)])

# %%
figure, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
low, middle, high = np.quantile(halfway, (0.05, 0.5, 0.95), axis=0)
ax.errorbar(
    expected, middle, (middle - low, high - middle), fmt="o", color=COLOURS[1], capsize=2, alpha=0.6
)
labels = {  # of the slowest and the fastest
    name(saddles[np.argmax(expected)]): (np.argmax(expected), "right", (-8, -2)),
    "a free column, 1 not learnt": (np.argmin(expected), "left", (14, -12)),
}
for text, (row, side, shift) in labels.items():
    at = (expected[row], middle[row])
    ax.annotate(text, at, shift, textcoords="offset points", ha=side)
law = np.array([expected.min() * 0.9, expected.max() * 1.1])
ax.loglog(law, law, ":", color="0.5", linewidth=2.5, zorder=0)
ax.set(xlabel="expected time to be halfway down", ylabel="measured: median, 5 % and 95 %")
figure.savefig(FIGURES / "02_times.png", dpi=100)

# %% [markdown]
# ## What searches find
#
# Levenberg-Marquardt on the gradient goes to critical points of any index. Its starts are random
# matrices, half of them near the span of some eigenvectors. The flow from random starts ends at the
# minimum alone.


# %%
def search(x):
    """A matrix at which the gradient is zero, to rounding if the search succeeds."""
    gradient = jax.grad(lambda x: loss(x.reshape(n, rank)))
    hessian = jax.jacfwd(gradient)

    def advance(_, state):
        x, g, damping = state
        H = hessian(x)
        y = x - jnp.linalg.solve(H @ H + damping * jnp.eye(x.size), H @ g)
        new = gradient(y)
        better = jnp.sum(new**2) < jnp.sum(g**2)
        damping = jnp.clip(jnp.where(better, damping / 10, damping * 10), 1e-18, 1e6)
        return jnp.where(better, y, x), jnp.where(better, new, g), damping

    return jax.lax.fori_loop(0, 60, advance, (x, gradient(x), jnp.asarray(1.0)))[0]


count = 50 if SMOKE else 4000
near_span = rng.random((count, n, 1)) < 0.5
near_span[::2] = True
coordinates = rng.normal(size=(count, n, rank)) * 10.0 ** rng.uniform(-1.5, 0.3, (count, 1, 1))
coordinates = coordinates * near_span + 1e-3 * rng.normal(size=(count, n, rank))
starts = jnp.asarray(np.asarray(target.eigenvectors) @ coordinates)
searched = jax.lax.map(search, starts.reshape(count, -1), batch_size=50).reshape(starts.shape)
batches = starts[: max(25, count // 4)].reshape(-1, 25, n, rank)  # as many as there are saddles
flowed = jnp.concatenate([flows((batch,), jnp.full(25, 100.0))[0][0] for batch in batches])
found = jax.lax.map(
    lambda W: landscape.classify(loss, (W,)), jnp.concatenate([searched, flowed]), batch_size=25
)
kinds = np.array(landscape.KIND_NAMES)[np.asarray(found.code)]

# %%
stopped = np.asarray(found.gradient_norm)[:count] < 1e-10
tally = {point.indices: 0 for point in points}
for J, ended in zip(found.indices, stopped, strict=False):
    tally[J] += bool(ended)
figure, ax = plt.subplots(figsize=(10, 3.4), layout="constrained")
colours = [COLOURS[len(J)] for J in tally]
ax.bar(range(len(tally)), list(tally.values()), color=colours)
ax.set_xticks(range(len(tally)), [name(point) for point in points], rotation=90, fontsize=8)
for k, colour in enumerate(COLOURS[:4]):
    text = f"{k} learnt" if k else "nothing learnt"
    ax.text(0.02 + 0.15 * k, 0.9, text, color=colour, transform=ax.transAxes)
ax.set(xlabel="J, lowest loss first", ylabel="searches that ended there")
ax.set(xlim=(-0.7, len(tally) - 0.3), ylim=(0, 1.25 * max(tally.values())))
figure.savefig(FIGURES / "02_searches.png", dpi=100)

# %% [markdown]
# ## Answer

# %%
print(f"{len(points)} critical points of rank at most {rank}, one minimum")
indices = [point.morse_index for point in points]
print(f"Morse indices 0 to {max(indices)}; the second lowest point is {name(points[1])}")
assert indices.count(0) == 1
assert points[1].indices == (0, 1, 3)

for space, family in curves.items():
    for text, ((run, shown), slope, constant) in family.items():
        measured = run.slopes.largest[0] if space == "S" else run.slopes.least[0]
        ratio = (
            "" if constant is None else f", constant {shown[0] / constant / values[0] ** slope:.5f}"
        )
        print(f"in {space}, {text}: slope {measured:.4f}, predicted {slope}{ratio} of the formula")
        assert abs(measured - slope) < 0.01
        assert space == "S" or float(run.largest[-1]) < 2 + 1e-6

for depth, (strict, predicted, measured, *_) in escapes.items():
    worst = np.max(np.abs(measured / predicted - 1))
    print(f"depth {depth}: {len(strict)} strict saddles, left at the rate 2c to within {worst:.0e}")
    assert worst < 0.02

ratio = middle / expected
print(f"median times to be halfway down: {ratio.min():.2f} to {ratio.max():.2f} of the expected")
assert np.all(np.isfinite(halfway))
assert 0.5 < ratio.min() < ratio.max() < 2

distances = np.asarray(found.distance)[:count][stopped]
print(f"{stopped.sum()} of {count} searches reached a gradient below 1e-10,")
print(f"at {sum(size > 0 for size in tally.values())} of the {len(points)} points,")
print(f"and at nothing else: the largest distance to one is {distances.max():.0e}")
assert stopped.mean() > 0.9
assert distances.max() < 1e-8
assert SMOKE or min(tally.values()) > 0

reached = kinds[count:] == "minimum"
print(f"{reached.sum()} of {reached.size} flows from the same starts are at the minimum")
assert np.all(reached)
assert set(kinds[:count][stopped]) <= {"minimum", "strict_saddle"}
