# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What a network trained on few samples generates
#
# **Question.** A network learns a covariance that was estimated from 200 images. What do its own
# samples look like before, during and after training, and from which loss on does it learn nothing
# but the noise of the estimate?

# %%
import os
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

# %% [markdown]
# ## Data whose truth is known
#
# All 1797 handwritten digits, averaged to 4 x 4 pixels, stand for the world: a law that
# is not Gaussian, with a covariance that we know. The network is shown 200 draws from it, with
# replacement.

# %%
world = jnp.asarray(load_digits().images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16))
truth = bw.Target.from_samples(world)


def draw(key, count):
    """Independent images from the world."""
    return world[jax.random.randint(key, (count,), 0, len(world))]


images = draw(jax.random.key(3), 200)
target = bw.Target.from_samples(images)
error = bw.covariances.sampling_error(images)

# %% [markdown]
# `sampling_error` says from the images alone how far their covariance is from the true one. Here
# that can be checked: the estimates of many redraws against their distances to the truth.

# %%
sizes = (50, 200) if SMOKE else (50, 100, 200, 400, 800, 1600)
redraws = 20 if SMOKE else 300


@jax.vmap
def estimated_and_actual(images):
    """The estimate of a set of images, and the squared distance that it is about."""
    estimate = bw.Target.from_samples(images, rank=16).covariance
    return bw.covariances.sampling_error(images), bw.bures_wasserstein(estimate, truth.covariance)


estimates, rms = [], []
for size in sizes:
    keys = jax.random.split(jax.random.key(size), redraws)
    estimated, squared = estimated_and_actual(jax.vmap(draw, (0, None))(keys, size))
    estimates.append(np.percentile(estimated, [5, 50, 95]))
    rms.append(float(jnp.sqrt(jnp.mean(squared))))
estimates, rms = np.array(estimates), np.array(rms)

# %% [markdown]
# ## Training
#
# Three layers follow the gradient flow. The probe draws samples with one key throughout, so that
# every sample can be followed, and measures the distance to the estimate, which the network is
# shown, and to the truth, which it is not.

# %%
start = bw.initializers.balanced(scale=0.3)(jax.random.key(0), (16, 16, 16, 16))
times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.01, 100.0, 40 if SMOKE else 120)])


def probe(loss, factors):
    """Samples of the network and its distances, not squared."""
    W = bw.end_to_end(factors)
    return {
        "samples": bw.sample(factors, jax.random.key(4), 1000),
        "shown": jnp.sqrt(loss(W)),
        "true": jnp.sqrt(bw.smoothed_bures(W, truth, tau=0.0)),
    }


loss = bw.losses.BuresWasserstein(target, tau=0.0)
run = bw.gradient_flow(loss, start, times=times, rtol=1e-6, atol=1e-8, probe=probe)
shown, true = np.array(run.probes["shown"]), np.array(run.probes["true"])

# %% [markdown]
# ## Samples
#
# In planes of principal axes of the data, the largest variances on the left. Midway the network has
# learnt these and begun with the middle ones; of the small ones (right) it knows little yet. In
# the end its ellipses are those of the data. The clouds still differ, for it is Gaussian and the
# images are not: the loss sees covariances alone.

# %%
planes = ((0, 1), (2, 5), (9, 13))
data = (images - images.mean(axis=0)) @ target.eigenvectors
midway = int(np.argmax(shown < shown[0] / 3))
figure, axes = plt.subplots(3, 3, figsize=(9, 10), layout="constrained")
for row, (stage, i) in zip(axes, {"before": 0, "midway": midway, "after": -1}.items(), strict=True):
    label = f"network {stage}, t = {float(times[i]):.3g}"
    generated = run.probes["samples"][i] @ target.eigenvectors
    bw.plotting.slices({label: generated, "data": data}, planes=planes, axes=list(row))
figure.savefig(FIGURES / "13_slices.png", dpi=120)

# %% [markdown]
# ## Distances
#
# What is left to learn and the noise of the estimate have little to do with each other: the squared
# distance to the truth is about `loss + error^2` (dotted).

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
left.fill_between(sizes, estimates[:, 0], estimates[:, 2], color=COLOURS[1], alpha=0.25, lw=0)
left.loglog(sizes, estimates[:, 1], color=COLOURS[1], label="sampling_error, 90% of redraws")
left.loglog(sizes, rms, "o", color=COLOURS[0], label="actual, root mean square")
left.set(xlabel="number of images", ylabel="distance to the truth")
left.set_xticks(sizes, [str(size) for size in sizes])
left.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
left.minorticks_off()
left.legend(frameon=False)
right.loglog(times[1:], np.maximum(shown[1:], 1e-3), color=COLOURS[1], label="to the estimate")
right.loglog(times[1:], true[1:], color=COLOURS[3], label="to the truth")
right.loglog(times[1:], np.hypot(shown, error)[1:], ":", color="0", label="(loss + error^2)^(1/2)")
right.axhline(error, color=COLOURS[2], linestyle="--", label="sampling error")
right.set(xlabel="time t", ylabel="distance of the network", ylim=(1e-2, 20))
right.legend(frameon=False, loc="lower left")
figure.savefig(FIGURES / "13_distances.png", dpi=120)

# %% [markdown]
# ## Answer
#
# At a loss of `error^2` half of the squared distance to the truth is still to be learnt. From about
# `error^2 / 16` on, a quarter of the distance, all that is left to learn is noise.

# %%
for size, estimate, actual in zip(sizes, estimates[:, 1], rms, strict=True):
    print(f"{size:5d} images: estimated error {estimate:.2f}, actual {actual:.2f}")
for part in (1, 1 / 2, 1 / 4, 1 / 8):
    i = int(np.argmax(shown < part * error))
    print(
        f"loss below ({part:g} x sampling error)^2 from t = {float(times[i]):.2f}: "
        f"{true[i]:.2f} from the truth, {true[i] / true[-1] - 1:.1%} farther than in the end"
    )
print(
    f"in the end {shown[-1]:.0e} from the estimate and {true[-1]:.2f} from the truth; "
    f"sampling error, from the 200 images alone: {error:.2f}"
)

assert np.all(np.abs(estimates[:, 1] / rms - 1) < 0.2)
assert abs(true[-1] / error - 1) < 0.2
