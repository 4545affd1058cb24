"""The losses and their dynamics in plain numpy, to hold bounds against."""

import numpy as np
from scipy.integrate import solve_ivp


def power(S, exponent):
    """Power of a stack of symmetric positive semidefinite matrices."""
    w, Q = np.linalg.eigh(S)
    return (Q * np.maximum(w, 0)[..., None, :] ** exponent) @ np.swapaxes(Q, -1, -2)


def bures(W, Sigma, tau):
    """Smoothed Bures-Wasserstein loss and its gradient, by the textbook formula."""
    n = W.shape[-2]
    S = W @ np.swapaxes(W, -1, -2) + np.asarray(tau)[..., None, None] * np.eye(n)
    root = power(Sigma, 0.5)
    M = root @ S @ root
    trace = np.trace(S, axis1=-2, axis2=-1) + np.trace(Sigma, axis1=-2, axis2=-1)
    loss = trace - 2 * np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(M), 0)), axis=-1)
    return loss, 2 * (W - root @ power(M, -0.5) @ root @ W)


def frobenius(W, Sigma, tau):
    """Frobenius loss and its gradient."""
    n = W.shape[-2]
    A = W @ np.swapaxes(W, -1, -2) + np.asarray(tau)[..., None, None] * np.eye(n) - Sigma
    return np.sum(A**2, axis=(-2, -1)), 4 * A @ W


LOSSES = {"bures_wasserstein": bures, "frobenius": frobenius}


def product(layers):
    W = layers[0]
    for layer in layers[1:]:
        W = layer @ W
    return W


def gradients(layers, Sigma, tau, kind="bures_wasserstein"):
    """Loss and layer gradients `W_{>j}^T G W_{<j}^T`."""
    loss, G = LOSSES[kind](product(layers), Sigma, tau)
    found = []
    for j in range(len(layers)):
        above = product(layers[j + 1 :]) if layers[j + 1 :] else np.eye(G.shape[-2])
        below = product(layers[:j]) if layers[:j] else np.eye(G.shape[-1])
        found.append(np.swapaxes(above, -1, -2) @ G @ np.swapaxes(below, -1, -2))
    return loss, found


def balanced_layers(W, depth):
    """Balanced layers, all but the first of the size of the rows, with product `W`."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    a = s[..., :, None] ** (1 / depth)
    diagonal = a * np.eye(s.shape[-1])
    layers = [a * Vt, *[diagonal] * (depth - 1)]
    return [*layers[:-1], U @ layers[-1]]


def flow(layers, Sigma, tau, times, kind="bures_wasserstein"):
    """End-to-end matrices along the gradient flow of the layers, by DOP853."""
    shapes = [layer.shape for layer in layers]
    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def unpacked(y):
        return [x.reshape(shape) for x, shape in zip(np.split(y, cuts), shapes, strict=True)]

    def velocity(t, y):
        found = gradients(unpacked(y), Sigma, tau, kind)[1]
        return -np.concatenate([g.ravel() for g in found])

    start = np.concatenate([layer.ravel() for layer in layers])
    ends = times[0], times[-1]
    solution = solve_ivp(velocity, ends, start, "DOP853", times, rtol=1e-10, atol=1e-12)
    assert solution.success
    return np.stack([product(unpacked(y)) for y in solution.y.T])
