"""Landscapes in numpy alone: gradients in closed form, Hessians by differences, enumeration."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np

import bwflow as bw

LOSSES = {
    "bures_wasserstein": bw.losses.BuresWasserstein,
    "frobenius": bw.losses.Frobenius,
}
SPECTRA = {
    "simple": (2.0, 1.0, 0.5, 0.25),
    "repeated": (2.0, 1.0, 1.0, 0.5),
    "rank two of four": (2.0, 0.5, 0.0, 0.0),
}


def rotation(seed, n):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def target_of(spectrum):
    """The target in a random basis."""
    lam = np.array(SPECTRA[spectrum])
    root = rotation(0, lam.size) * np.sqrt(lam)
    return bw.Target.from_factor(jnp.asarray(root[:, lam > 0], dtype=float))


def end_to_end(layers):
    W, *rest = layers
    for layer in rest:
        W = layer @ W
    return W


def gradient(W, B, tau, loss):
    """`2 (W - B P_1)` with the polar factor of `[B^T W, sqrt(tau) B^T]`, or `4 (S_tau - S_0) W`."""
    n, p = W.shape
    if loss == "frobenius":
        return 4 * (W @ W.T + tau * np.eye(n) - B @ B.T) @ W
    Y = np.hstack([B.T @ W, np.sqrt(tau) * B.T]) if tau > 0 else B.T @ W
    U, s, Vt = np.linalg.svd(Y, full_matrices=False)
    kept = s > 1e-12 * s[0]
    return 2 * (W - B @ (U[:, kept] @ Vt[kept])[:, :p])


def layer_gradients(layers, B, tau, loss):
    G = gradient(end_to_end(layers), B, tau, loss)
    found = []
    for j in range(len(layers)):
        above = end_to_end((np.eye(layers[j].shape[0]), *layers[j + 1 :]))
        below = end_to_end((np.eye(layers[0].shape[1]), *layers[:j]))
        found.append(above.T @ G @ below.T)
    return np.concatenate([x.ravel() for x in found])


def hessian(layers, B, tau, loss, step=2e-3):
    """By central differences of the gradient, of eighth order."""
    sizes = np.cumsum([x.size for x in layers])[:-1]

    def at(x):
        parts = np.split(x, sizes)
        shaped = [part.reshape(W.shape) for part, W in zip(parts, layers, strict=True)]
        return layer_gradients(shaped, B, tau, loss)

    return difference(at, np.concatenate([W.ravel() for W in layers]), step)


def difference(field, x, step):
    """Symmetric Jacobian of a gradient field, by central differences of eighth order."""
    weights = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
    columns = [
        sum(
            w * (field(x + l * step * e) - field(x - l * step * e)) / step
            for l, w in enumerate(weights, start=1)
        )
        for e in np.eye(x.size)
    ]
    H = np.array(columns)
    assert np.max(np.abs(H - H.T), initial=0) < 1e-7 * (1 + np.max(np.abs(H)))
    return (H + H.T) / 2


def balanced(W, widths):
    """Layers with product `W` of which neighbours share their singular values."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    r, N = min(widths), len(widths) - 1
    if N == 1:
        return (W,)
    s[s < 1e-12] = 0
    a = np.diag(s[:r] ** (1 / N))
    parts = [a @ Vt[:r], *[a] * (N - 2), U[:, :r] @ a]
    shapes = zip(widths[1:], widths, strict=False)
    return tuple(
        np.pad(part, [(0, d - e) for d, e in zip(shape, part.shape, strict=True)])
        for part, shape in zip(parts, shapes, strict=True)
    )


def critical_sets(lam, rank, tau, loss):
    """All `J`, of a repeated eigenvalue the first ones; and their losses; lowest loss first."""
    lam = np.asarray(lam)
    learnable = [i for i in range(lam.size) if lam[i] > tau]
    full = min(rank, len(learnable))
    sizes = [full] if loss == "bures_wasserstein" and tau == 0 else range(full + 1)
    sets = [
        J
        for k in sizes
        for J in combinations(learnable, k)
        if all(i in J for j in J for i in range(j) if lam[i] == lam[j])
    ]
    return sorted((critical_value(lam, J, tau, loss), J) for J in sets)


def critical_value(lam, J, tau, loss):
    outside = np.delete(np.asarray(lam), list(J))
    if loss == "frobenius":
        return float(np.sum((outside - tau) ** 2))
    return float(np.sum((np.sqrt(outside) - np.sqrt(tau)) ** 2))
