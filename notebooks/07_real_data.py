# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Which directions of real data are learnt when
#
# **Question.** The covariances of data have spectra without gaps, over several orders of
# magnitude. When does a network of three layers learn the variance along each principal axis, and
# does the theory of aligned starts foretell it?
#
# **Data.** Handwritten digits of scikit-learn (Alpaydin and Kaynak, UCI, 1998), and correlations
# between 28 networks of the brain, by functional MRI, of 86 people: the training data of the IEEE
# MLSP 2014 Schizophrenia Classification Challenge (Silva et al., 2014, Kaggle), which the package
# geomstats (Miolane et al., 2020) brings along. Its files are read, the package is not imported.

# %%
import os
from importlib.metadata import distribution
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import bwflow as bw

jax.config.update("jax_enable_x64", True)
SMOKE = bool(os.environ.get("BWFLOW_SMOKE"))
FIGURES = Path(os.environ.get("BWFLOW_FIGURES", "results/notebooks"))
FIGURES.mkdir(parents=True, exist_ok=True)
COLOURS = ["#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7"]

# %%
pixels = load_digits().images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
digits = bw.Target.from_samples(pixels / 16)  # intensities from 0 to 1

name = "geomstats/datasets/data/connectomes/train_FNC.csv"
rows = np.loadtxt(str(distribution("geomstats").locate_file(name)), delimiter=",", skiprows=1)
regions = 10 if SMOKE else 28
people = 6 if SMOKE else len(rows)
i, j = np.triu_indices(28, 1)
correlations = np.tile(np.eye(28), (len(rows), 1, 1))
correlations[:, i, j] = correlations[:, j, i] = rows[:, 1:]  # the first column is an identifier
correlations = correlations[:people, :regions, :regions]
spectra = np.linalg.eigvalsh(correlations)[:, ::-1]
print(f"digits: 16 pixels, eigenvalues {digits.eigenvalues[0]:.3f} to {digits.eigenvalues[-1]:.5f}")
print(
    f"correlations: {people} matrices of {regions} networks, all positive definite; medians of the "
    f"eigenvalues {np.median(spectra[:, 0]):.2f} to {np.median(spectra[:, -1]):.3f}"
)

# %% [markdown]
# ## Theory
#
# A balanced start whose singular vectors are the principal axes keeps them. Its singular values
# move alone: of `N` layers without smoothing, `s' = 2N s^(2-2/N) (b - s)` towards
# `b = sqrt(lambda)`, which `bw.theory.aligned_flow` solves exactly. From a small `s0` it takes, for
# `N = 3`, a time close to `1 / (2 b s0^(1/3))`, so as `lambda^(-1/2)`.
#
# A multiple `s0` of the identity is aligned with every target. A Gaussian start `W` is aligned with
# none. But directions are learnt one after the other, the largest first, and each takes a direction
# of the latent space that later ones cannot have: what is left of the row `omega_k^T W` once it is
# made orthogonal to the rows before is `abs(R_kk)` of a QR decomposition. The guess is that a run
# goes as if `abs(R_kk)` were the start of direction `k`.

# %%
depth = 3
until = {"digits": 800.0, "correlations": 12.0 if SMOKE else 30.0}
scale = {"digits": 0.002, "correlations": 0.03}  # root mean square of singular values
records = 80 if SMOKE else 300


def variances(loss, W):
    """Share of each eigenvalue that the network has along its eigenvector."""
    target = loss.target
    return {"share": jnp.sum((target.eigenvectors.T @ W) ** 2, axis=1) / target.eigenvalues}


@jax.jit
def learning(target, start, times):
    """Shares along the flow of a balanced network from an end-to-end matrix."""
    layers = bw.initializers.split_evenly(start, (target.dim,) * (depth + 1))
    loss = bw.losses.BuresWasserstein(target, tau=0.0)
    return bw.gradient_flow(
        loss, layers, times=times, rtol=1e-5, atol=1e-7, throw=False,
        probe=lambda loss, layers: variances(loss, bw.end_to_end(layers)),
    ).probes["share"]  # fmt: skip


def starts(n, scale, count):
    """One multiple of the identity, then Gaussian matrices of that root mean square."""
    draw = bw.initializers.gaussian()
    random = [draw(key, (n, n))[0] for key in jax.random.split(jax.random.key(0), count)]
    return scale * jnp.stack([jnp.eye(n), *random])


def half_times(times, share):
    """From when on each share is above one half, between records; infinite where it never is."""
    share, last = np.asarray(share), len(times) - 1
    before = last - np.argmax(share[..., ::-1, :] <= 0.5, axis=-2)
    after = np.minimum(before + 1, last)
    low, high = (np.take_along_axis(share, x[..., None, :], -2)[..., 0, :] for x in (before, after))
    part = (0.5 - low) / np.where(before < last, high - low, 1)
    found = times[before] + part * (times[after] - times[before])
    return np.where(before < last, found, np.inf)


def predicted(times, s0, eigenvalues):
    """The same of an aligned start, by the exact solution."""
    s0, lam = np.broadcast_arrays(s0, eigenvalues)
    s0, lam = s0[..., None, :], lam[..., None, :]
    values = bw.theory.aligned_flow(s0, lam, times[:, None], depth=depth)
    return half_times(times, values**2 / lam)


def remainders(target, start):
    """What is left of each row of the start, in principal axes, beside the rows before."""
    return jnp.abs(jnp.diag(jnp.linalg.qr((target.eigenvectors.T @ start).T)[1]))


# %% [markdown]
# ## Digits
#
# Shares of the variance along principal axes for one Gaussian start, and the time from which on
# half of a variance is learnt: the multiple of the identity lies on its prediction; of the Gaussian
# starts the medians and the middle 80 %, and the medians of what is foretold from their remainders.


# %%
def bands(ax, x, rows, colour):
    """Median and the middle 80 %."""
    low, middle, high = np.quantile(rows, [0.1, 0.5, 0.9], axis=0, method="inverted_cdf")
    ax.fill_between(x, low, np.minimum(high, 1e9), color=colour, alpha=0.25, linewidth=0)
    ax.plot(x, np.where(middle < np.inf, middle, np.nan), color=colour)
    return middle


times = np.r_[0, np.geomspace(0.2, until["digits"], records)]
begin = starts(16, scale["digits"], 4 if SMOKE else 40)
shares = jax.vmap(learning, (None, 0, None))(digits, begin, times)
half = half_times(times, shares)
lam = np.asarray(digits.eigenvalues)
law = predicted(times, scale["digits"], lam)
foretold = predicted(times, jax.vmap(remainders, (None, 0))(digits, begin[1:]), lam)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for k, colour in zip((0, 3, 7, 11, 15), COLOURS, strict=True):
    left.semilogx(times[1:], shares[1, 1:, k], color=colour)
    left.text(min(half[1, k], 500), 1.02, f"{k + 1}", color=colour, va="bottom", ha="center")
left.set(xlabel="time t", ylabel="share of the variance along axis k")
left.set(xlim=(4, None), ylim=(0, 1.12))
left.text(4.4, 1.02, "k =", va="bottom")
middle = bands(right, lam, half[1:], COLOURS[1])
right.plot(lam, np.median(foretold, axis=0), "--", color=COLOURS[0])
right.plot(lam, law, color=COLOURS[2], linewidth=0.8)
right.plot(lam, half[0], "o", color=COLOURS[2], markersize=4)
right.text(0.001, 55, "identity", color=COLOURS[2], va="top")
right.text(0.005, 170, "Gaussian starts", color=COLOURS[1])
right.text(0.005, 120, "foretold from remainders", color=COLOURS[0])
right.set(xscale="log", yscale="log", xlabel="eigenvalue of the covariance")
right.set(ylabel="time of half learning", ylim=(8, until["digits"]))
figure.savefig(FIGURES / "07_digits.png", dpi=100)

# %% [markdown]
# ## Brains
#
# One Gaussian start, the same for all matrices. On the left bands are over people: at each rank of
# the eigenvalue the median and the middle 80 % (blue), and what is foretold (black). What is not
# half learnt at the end counts as infinite.

# %%
times = np.r_[0, np.geomspace(0.1, until["correlations"], records)]
targets = jax.vmap(lambda Sigma: bw.Target(Sigma, rank=regions))(jnp.asarray(correlations))
start = starts(regions, scale["correlations"], 1)[1]
brain_half = half_times(times, jax.vmap(learning, (0, None, None))(targets, start, times))
rest = jax.vmap(remainders, (0, None))(targets, start)
brain_lam = np.asarray(targets.eigenvalues)
brain_foretold = predicted(times, rest, brain_lam)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
ranks = np.arange(1, regions + 1)
bands(left, ranks, brain_foretold, COLOURS[0])
bands(left, ranks, brain_half, COLOURS[1])
left.text(0.04, 0.92, "flow", color=COLOURS[1], transform=left.transAxes)
left.text(0.04, 0.85, "foretold from remainders", color=COLOURS[0], transform=left.transAxes)
left.set(yscale="log", xlabel="rank of the eigenvalue", ylabel="time of half learning")
left.set_ylim(None, until["correlations"])
learnt = np.isfinite(brain_half) & np.isfinite(brain_foretold)
right.plot(brain_foretold[learnt], brain_half[learnt], ".", color=COLOURS[1], ms=3, alpha=0.4)
ends = np.array([brain_half[learnt].min(), until["correlations"]])
right.plot(ends, ends, color="0.4", linewidth=0.8)
right.set(xscale="log", yscale="log", xlabel="foretold time of half learning", ylabel="time, flow")
figure.savefig(FIGURES / "07_brains.png", dpi=100)

# %% [markdown]
# ## Answer
#
# Directions are learnt in the order of their eigenvalues, but for neighbours, and the small ones of
# a random start later than those of an aligned start of its size: little is left for them. What is
# left foretells the times to a few per cent, but for the last directions, which are held up by what
# the larger ones still do.


# %%
def slope(eigenvalues, half):
    """Exponent of the time in the eigenvalue, where it is learnt."""
    seen = np.isfinite(half)
    return np.polyfit(np.log(eigenvalues[seen]), np.log(half[seen]), 1)[0]


def spread(x):
    """Median and the middle 80 %, as text."""
    low, middle, high = np.quantile(x, [0.1, 0.5, 0.9], method="inverted_cdf")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


error = np.max(np.abs(half[0] / law - 1))
print(f"digits, multiple of the identity: within {error:.2%} of the exact solution on every axis")
assert error < 0.02
print(
    f"digits, Gaussian starts: half learnt at t = {middle[0]:.1f} (largest) to {middle[-1]:.0f} "
    f"(smallest eigenvalue); time as lambda^{slope(lam, middle):.2f}, from the identity as "
    f"lambda^{slope(lam, law):.2f}"
)
half, large = half[1:], slice(0, 12)
print(f"time to the foretold one, axes 1 to 12: {spread((half / foretold)[:, large])}")
found = np.isfinite(half) & np.isfinite(foretold) & (np.arange(16) >= 12)[None, :]
print(f"axes 13 to 16: {spread(half[found] / foretold[found])}, where both are reached")
print(f"time to that from the identity, axes 1 to 12: {spread((half / law)[:, large])}")
assert abs(np.median((half / foretold)[:, large]) - 1) < 0.1

slopes = [slope(x, t) for x, t in zip(brain_lam, brain_half, strict=True)]
print(
    f"correlations: {np.isfinite(brain_half).mean():.0%} of the directions half learnt at "
    f"t = {until['correlations']:g}; time as lambda to the power {spread(slopes)} over people"
)
ratio = brain_half[learnt] / brain_foretold[learnt]
print(f"time to the foretold one: {spread(ratio)}, of all that are learnt")
assert abs(np.median(ratio) - 1) < 0.1
order = [np.mean(np.diff(t[np.isfinite(t)]) > 0) for t in brain_half]
print(f"neighbours learnt in the order of their eigenvalues: {np.mean(order):.0%}")
