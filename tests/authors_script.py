"""What the authors' training script computes, said in numpy: an oracle for test_parity."""

import itertools

import numpy as np
import scipy.linalg


def product(layers):
    W = layers[0]
    for layer in layers[1:]:
        W = layer @ W
    return W


def root(S):
    values, vectors = np.linalg.eigh(S)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def squared_distance(A, B):
    """`BW^2(A A^T, B B^T)` by the nuclear norm, which takes no root of a rounded zero."""
    return np.sum(A**2) + np.sum(B**2) - 2 * np.linalg.svd(A.T @ B, compute_uv=False).sum()


class Script:
    """What the script computes, with exact roots and in double precision."""

    def __init__(self, target, tau, bottleneck, loss="BW"):
        self.Sigma = np.asarray(target.covariance, np.float64)
        values, vectors = np.linalg.eigh(self.Sigma)
        self.lam, self.Omega = values[::-1], vectors[:, ::-1]
        self.R0, self.tau, self.k, self.fro = root(self.Sigma), tau, bottleneck, loss == "Fro"
        self.optimum = self.Omega[:, : self.k] * np.sqrt(self.lam[: self.k] - tau)

    def smoothed(self, W):
        """A factor of `W W^T + tau I`."""
        return np.hstack([W, self.tau**0.5 * np.eye(len(W))])

    def loss(self, W):
        if self.fro:
            return np.sum((W @ W.T - self.Sigma) ** 2)
        return squared_distance(self.smoothed(W), self.R0)

    def gradient(self, W, rank=None):
        """In the end-to-end matrix; `rank` is what `adapt` cuts to, at `tau = 0`."""
        if self.fro:
            return 4 * (W @ W.T - self.Sigma) @ W
        if self.tau > 0:
            values, Q = np.linalg.eigh(self.R0 @ (W @ W.T) @ self.R0 + self.tau * self.Sigma)
            return 2 * (W - self.R0 @ (Q / np.sqrt(values)) @ Q.T @ self.R0 @ W)
        U, _, Vt = np.linalg.svd(self.R0 @ W, full_matrices=False)
        return 2 * (W - self.R0 @ U[:, :rank] @ Vt[:rank])

    def gradients(self, layers, rank=None):
        G, n, p = self.gradient(product(layers), rank), len(self.Sigma), layers[0].shape[1]
        below = [np.eye(p), *itertools.accumulate(layers[:-1], lambda A, W: W @ A)]
        above = [np.eye(n), *itertools.accumulate(layers[:0:-1], lambda A, W: A @ W)][::-1]
        return [A.T @ G @ B.T for A, B in zip(above, below, strict=True)]

    def record(self, layers):
        """All that a row may have, of one state."""
        W = product(layers)
        S, grads = W @ W.T, self.gradients(layers)
        U, s, _ = np.linalg.svd(W, full_matrices=False)
        shares = s[s > 0] / s.sum()
        errors = s[: self.k] ** 2 - (self.lam - self.tau)[: self.k]
        pairs = itertools.pairwise(layers)
        return {
            "loss": self.loss(W),
            "balance": max(np.linalg.norm(B.T @ B - A @ A.T) for A, B in pairs),
            "norm grad": np.sqrt(sum(np.sum(g**2) for g in grads)),
            "rank W": np.linalg.matrix_rank(W, tol=1e-5 * s[0]),
            "erank W": np.exp(-np.sum(shares * np.log(shares))),
            "cvg": errors,
            "distance values": np.linalg.norm(errors),
            "cos": np.abs(self.Omega.T @ U)[:, : self.k],
            "residual": np.linalg.norm(S + self.tau * np.eye(len(S)) - self.Sigma),
            "gap": self.loss(W) - self.loss(self.optimum),
            "gap theo": self.loss(W) - np.sum((self.lam**0.5 - self.tau**0.5)[self.k :] ** 2),
            "euc": np.linalg.norm(S - self.optimum @ self.optimum.T),
            "wass one-sided": squared_distance(self.smoothed(W), self.optimum),
            "wass": squared_distance(self.smoothed(W), self.smoothed(self.optimum)),
        }

    def train(self, layers, lr, updates):
        """The states of a run, the start first."""
        states = [layers]
        for _ in range(updates):
            steps = zip(states[-1], self.gradients(states[-1]), strict=True)
            states.append([W - lr * g for W, g in steps])
        return states


def stops_after(gaps, lr):
    """Index of the last row of a run whose gaps are these."""
    wait, table = int(0.1 / lr + 0.5), []
    for gap in gaps:
        table.append(abs(gap))
        if len(table) >= wait and table[-wait] < 1e-4:
            return len(table) - 1
    return None


# Standard deviation of an entry by the numbers of inputs and outputs, and whether it is uniform.
LAWS = {
    "--init normal (default)": (lambda a, b: a**-0.5, False),
    "--init uniform": (lambda a, b: 3**-0.5, True),
    "--init xavier-n": (lambda a, b: (2 / (a + b)) ** 0.5, False),
    "--init xavier-u": (lambda a, b: (2 / (a + b)) ** 0.5, True),
    "--init kaiming-n": (lambda a, b: (2 / a) ** 0.5, False),
    "--init kaiming-u": (lambda a, b: (2 / a) ** 0.5, True),
}


def draws(rng, inputs, outputs, row="--init normal (default)", count=6000):
    std, is_uniform = LAWS[row]
    shape, bound = (count, outputs, inputs), 3**0.5
    entries = rng.uniform(-bound, bound, shape) if is_uniform else rng.normal(size=shape)
    return std(inputs, outputs) * entries


def spectra(rng, n, distribution, mode, smin=-1.0, rank=None, count=1000):
    """The script's eigenvalues, many draws of them."""
    rank, smallest = rank or n, smin
    S = np.linalg.svd(rng.normal(size=(count, n, n)), compute_uv=False)
    if distribution == "zipf":
        S = np.sort(S[:, :1] / np.arange(1, n + 1) + rng.normal(size=(count, n)))[:, ::-1]
        S = S - S[:, -1:] + 1 / n
    if smin >= 0:
        low = S[:, -1:] < smallest
        S = np.where(low, S + smallest - S[:, rank - 1 : rank] + 1 / n, S)
    S = np.where(np.arange(n) < rank, S, 0.0)
    return S**2 if mode == "sing" else S


def newton_schulz(A, steps=10):
    """Square root and inverse square root, after some of the steps that they need."""
    scale, eye = max(np.linalg.norm(A), 1.0), np.eye(len(A))
    Y, Z = A / scale, eye
    for _ in range(steps):
        T = (3 * eye - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return Y * scale**0.5, Z / scale**0.5


def without_cancellation(W, R0):
    """`BW^2(W W^T, R0 R0^T) = min_Q |W Q - R0|^2`, at the polar factor."""
    Q, _ = scipy.linalg.polar(W.T @ R0)
    return np.sum((W @ Q - R0) ** 2)
