"""What is stated of flows and descents, on drawn targets, starts and smoothings.

Every statement is evaluated in numpy, by formulas of this file and of `dynamics`.
`BWFLOW_EXAMPLES` is the number of examples in all, about 200 by default.
"""

import os
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dynamics import power, product
from helpers import first
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from scipy.linalg import block_diag

import bwflow as bw

pytestmark = pytest.mark.float64

SHAPES = (
    (4, 2),
    (2, 4, 2),
    (2, 3, 2, 2),
    (4, 4),
    (1, 3),
    (2, 2, 2),
    (3, 1, 4),
    (1, 1, 1, 1, 1),
)
EVEN = tuple(widths for widths in SHAPES if not any(width % 2 for width in widths))
PAIRS = 2 * len(SHAPES) + len(EVEN) + 3  # of a test and a shape
EXAMPLES = -(-int(os.environ.get("BWFLOW_EXAMPLES", "200")) // PAIRS)
TIMES = np.array([0.0, 0.05, 0.2, 0.5, 1.0])
EPS = np.finfo(float).eps
# Of a solve with rtol = 1e-10: a global error is the local one times the growth of differences.
SOLVED = 1e-7

by_shape = pytest.mark.parametrize("widths", first(3, SHAPES), ids=str)
drawn = settings(
    max_examples=EXAMPLES,
    derandomize="BWFLOW_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def probe(loss, params):
    W = bw.end_to_end(params)
    layers = {f"layer_{j}": layer for j, layer in enumerate(params)}
    return layers | {"loss": loss(W), "gradient": jax.grad(loss)(W)}


def bound(B, tau):
    return bw.losses.BuresWasserstein(bw.Target.from_factor(B), tau)


@jax.jit
@jax.vmap
def flow(layers, B, tau, times):
    run = bw.gradient_flow(
        bound(B, tau), layers, times=times, rtol=1e-10, atol=1e-12, probe=probe, throw=False
    )
    return run.probes, run.outcome


@jax.jit
def descend(layers, B, tau, eta):
    run = bw.gradient_descent(
        bound(B, tau), layers, optax.sgd(eta), num_steps=20, probe=probe, throw=False
    )
    return run.probes


@jax.jit
def point(W, D, B, tau):
    loss = bound(B, tau)
    gradient, bent = jax.jvp(jax.grad(loss), (W,), (D,))
    return loss(W), gradient, jnp.sum(D * bent)


def numpy_loss(W, B, tau):
    A = np.hstack([W, np.sqrt(tau) * np.eye(len(W))])
    s = np.linalg.svd(B.T @ A, compute_uv=False)
    return np.sum(A**2) + np.sum(B**2) - 2 * np.sum(s)


def size(W, B, tau):
    return np.sum(W**2) + np.sum(B**2) + len(W) * tau


def orthogonal(rng, n):
    # Of two rows, LAPACK's are always reflections.
    return np.linalg.qr(rng.normal(size=(n, n)))[0] * rng.choice([-1.0, 1.0], n)[None, :]


def drawn_problem(data, widths, *, near=False):
    """A factor of a target, layers and a smoothing; `near` keeps a full rank within the margin."""
    draw, N = data.draw, len(widths) - 1
    n, p, r = widths[-1], widths[0], min(widths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = st.sampled_from([0.25, 1.0, 2.0, 4.0] + [0.0] * (not near))
    lam = np.array(draw(st.lists(values, min_size=n, max_size=n)))
    lam = np.sort(lam)[::-1] if np.any(lam) else np.eye(n)[0]
    Q = orthogonal(rng, n)
    B = Q * np.sqrt(lam)[None, :]
    tau = draw(st.sampled_from([0.0, *lam]) | st.floats(-4, 1).map(lambda x: 10.0**x))
    balanced = draw(st.booleans())
    radius = draw(st.floats(0.05, 0.9))
    if near:
        tau = draw(st.sampled_from([0.0]) | st.floats(1e-3, 0.9)) * lam[-1]
        root = np.sqrt(np.maximum(lam[:r] - tau, 0.0))
        D = rng.normal(size=(n, r))
        D *= radius * np.sqrt(lam[-1]) / np.linalg.norm(D)
        W = (Q[:, :r] * root[None, :] + D) @ orthogonal(rng, p)[:r]
    else:
        W = rng.normal(size=(n, p)) * draw(st.sampled_from([0.1, 1.0, 2.0]))
    layers = tuple(np.asarray(W) for W in bw.initializers.split_evenly(jnp.asarray(W), widths))
    if not (balanced or near):
        layers = tuple(rng.normal(size=(b, a)) * a**-0.5 for a, b in pairwise(widths))
    if N > 1 and not near:  # hidden units that are kept
        kept = draw(st.integers(1, max(widths[1:-1])))
        units = [np.arange(d) < (kept if 0 < j < N else d) for j, d in enumerate(widths)]
        layers = tuple(W * np.outer(units[j + 1], units[j]) for j, W in enumerate(layers))
    note(f"widths={widths} tau={tau!r} lam={lam.tolist()} near={near}")
    note(f"B={B.tolist()!r} layers={[W.tolist() for W in layers]!r}")
    return lam, B, layers, tau, rng


def solved(problem, times=TIMES):
    """The run, the same in other gauges, rotated, and of a target four times as large."""
    _, B, layers, tau, rng = problem
    N, s = len(layers), 4.0
    O, Q = orthogonal(rng, layers[0].shape[1]), orthogonal(rng, len(B))
    turned = [layers[0] @ O, *layers[1:]]
    for j in range(N - 1):
        inner = orthogonal(rng, len(turned[j]))
        turned[j], turned[j + 1] = inner @ turned[j], turned[j + 1] @ inner.T
    rotated = [*layers[:-1], Q @ layers[-1]]
    scaled = [s ** (1 / (2 * N)) * W for W in layers]
    starts = [layers, turned, rotated, scaled]
    batch = tuple(jnp.asarray(np.stack(same)) for same in zip(*starts, strict=True))
    targets = np.stack([B, B, Q @ B, np.sqrt(s) * B])
    taus = np.array([tau, tau, tau, s * tau])
    clocks = np.stack([times, times, times, times * s ** ((1 - N) / N)])
    probes, outcome = flow(batch, targets, taus, clocks)
    return jax.tree.map(np.asarray, probes), np.asarray(outcome), O, Q, s


def saved_layers(probes, N, run):
    return [[probes[f"layer_{j}"][run, i] for j in range(N)] for i in range(len(TIMES))]


def margins(problem):
    lam, B, layers, tau, _ = problem
    L0 = max(numpy_loss(product(layers), B, tau), 0.0)
    c = np.sqrt(lam[-1]) - np.sqrt(L0)
    return L0, c, np.sqrt(c**2 - tau) if c > np.sqrt(tau) else 0.0


@by_shape
def test_flows(widths):
    @drawn
    @given(st.data())
    def check(data):
        near = min(widths) == widths[-1] and data.draw(st.booleans())
        problem = drawn_problem(data, widths, near=near)
        lam, B, layers, tau, _ = problem
        probes, outcome, O, Q, s = solved(problem)
        assert np.all(outcome == 0), outcome
        N = len(layers)
        states = saved_layers(probes, N, 0)
        Ws = np.stack([product(state) for state in states])
        L0, _c, margin = margins(problem)
        scale = size(Ws[0], B, tau)
        losses = np.array([numpy_loss(W, B, tau) for W in Ws])
        assert np.max(np.abs(losses - probes["loss"][0])) <= 100 * EPS * 2 * scale
        for a, b in pairwise(losses):  # decrease
            assert b <= a + SOLVED * scale
        for state in states:  # imbalance; a unit without weights gets none
            for j in range(N - 1):
                unused = ~(np.any(layers[j], axis=1) | np.any(layers[j + 1], axis=0))
                assert not np.any(state[j][unused])
                assert not np.any(state[j + 1][:, unused])
                then = state[j + 1].T @ state[j + 1] - state[j] @ state[j].T
                start = layers[j + 1].T @ layers[j + 1] - layers[j] @ layers[j].T
                assert np.max(np.abs(then - start)) <= SOLVED * (1 + np.max(np.abs(start)))
        gradients = probes["gradient"][0]
        for W, L, G in zip(Ws, losses, gradients, strict=True):  # trace bound, PL inequality
            assert np.sum(W**2) + len(W) * tau <= 2 * (L0 + np.sum(lam)) * (1 + SOLVED)
            sigma = np.linalg.svd(W, compute_uv=False)
            if len(sigma) == len(W) and sigma[-1] > 1e-6:
                mu = 4 * sigma[-1] ** 2 / (sigma[-1] ** 2 + tau)
                assert np.sum(G**2) >= mu * L - 1000 * EPS * scale
        target, found = bw.Target.from_factor(jnp.asarray(B)), bw.theory.margin
        assert abs(found(target, L0, tau=tau) ** 2 - margin**2) <= 1e-7 * np.sum(lam)
        if margin > 0 and min(widths) == len(B):
            least = np.linalg.svd(Ws, compute_uv=False)[:, -1]
            assert np.all(least >= margin - SOLVED)
            if near:
                K = np.sqrt(tau * lam[-1]) / (2 * (2 * (L0 + np.sum(lam))) ** 2)
                sharp = 4 * N * margin ** (2 * (N - 1) / N) * margin**2 / (margin**2 + tau)
                published = 8 * N * margin ** (2 * (2 * N - 1) / N) * K
                c = found(target, L0, tau=tau)
                for rate, known in (
                    (sharp, bw.theory.sharp_rate(target, L0, depth=N, tau=tau)),
                    (published, bw.theory.published_rate(target, L0, depth=N, tau=tau, margin=c)),
                ):
                    # The margin is a root of a difference, which loses half of the digits at most.
                    assert abs(known - rate) <= 1e-6 * rate + 1e-6
                    assert np.all(losses <= L0 * np.exp(-rate * TIMES) + SOLVED * scale)
        # Symmetries.
        for run, expected in ((1, Ws @ O), (2, Q @ Ws), (3, np.sqrt(s) * Ws)):
            found = np.stack([product(state) for state in saved_layers(probes, N, run)])
            assert np.max(np.abs(found - expected)) <= SOLVED * np.sqrt(s * scale)
        assert np.max(np.abs(probes["loss"][3] - s * losses)) <= SOLVED * s * scale
        if N == 1 and tau == 0 and widths[0] >= len(B):  # the geodesic
            U, _, Vt = np.linalg.svd(B.T @ Ws[0], full_matrices=False)
            left = np.exp(-2 * TIMES)[:, None, None]
            ends = [B @ U @ Vt]
            if np.linalg.svd(Ws[0], compute_uv=False)[-1] > 0.05:  # by the map of covariances too
                first = Ws[0] @ Ws[0].T
                root, inverse = power(first, 0.5), power(first, -0.5)
                ends.append(inverse @ power(root @ B @ B.T @ root, 0.5) @ inverse @ Ws[0])
            for end in ends:
                path = end + left * (Ws[0] - end)
                assert np.max(np.abs(Ws - path)) <= SOLVED * np.sqrt(scale)
            assert np.max(np.abs(losses - L0 * np.exp(-4 * TIMES))) <= SOLVED * scale

    check()


@pytest.mark.parametrize("widths", EVEN, ids=str)
def test_independent_blocks(widths):
    """Blocks that are exchanged exchange their runs; one that is replaced changes no other run."""
    half = tuple(width // 2 for width in widths)
    N, p, n = len(widths) - 1, half[0], half[-1]

    @drawn
    @given(st.data())
    def check(data):
        blocks = [drawn_problem(data, half) for _ in range(3)]
        tau = blocks[0][3]
        orders = (0, 1), (1, 0), (0, 2), (2, 0)
        batch = tuple(
            jnp.asarray(np.stack([block_diag(blocks[a][2][j], blocks[b][2][j]) for a, b in orders]))
            for j in range(N)
        )
        targets = np.stack([block_diag(blocks[a][1], blocks[b][1]) for a, b in orders])
        probes, outcome = flow(batch, targets, np.full(4, tau), np.stack([TIMES] * 4))
        probes = jax.tree.map(np.asarray, probes)
        assert np.all(np.asarray(outcome) == 0)
        scale = max(size(product(layers), B, tau) for _, B, layers, _, _ in blocks)
        close, seen = SOLVED * np.sqrt(scale), {}
        for run, order in enumerate(orders):
            Ws = np.stack([product(state) for state in saved_layers(probes, N, run)])
            assert max(np.max(np.abs(Ws[:, :n, p:])), np.max(np.abs(Ws[:, n:, :p]))) <= close
            for block, W in zip(order, (Ws[:, :n, :p], Ws[:, n:, p:]), strict=True):
                assert np.max(np.abs(W - seen.setdefault(block, W))) <= close
        alone = [numpy_loss(product(layers), B, tau) for _, B, layers, _, _ in blocks]
        expected = [alone[a] + alone[b] for a, b in orders]
        assert np.max(np.abs(probes["loss"][:, 0] - expected)) <= 100 * EPS * 4 * scale

    check()


@by_shape
def test_descents(widths):
    @drawn
    @given(st.data())
    def check(data):
        near = min(widths) == widths[-1] and data.draw(st.booleans())
        problem = drawn_problem(data, widths, near=near)
        lam, B, layers, tau, _ = problem
        N, (L0, _, margin) = len(layers), margins(problem)
        balanced = all(
            np.allclose(b.T @ b, a @ a.T, rtol=0, atol=1e-10) for a, b in pairwise(layers)
        )
        h = data.draw(st.floats(0.05, 0.5))
        eta = h / (N * (np.sqrt(lam[0]) + np.sqrt(L0)) ** (2 * (N - 1) / N))
        run = jax.tree.map(np.asarray, descend(layers, B, tau, eta))
        losses, scale = run["loss"], size(product(layers), B, tau)
        if balanced:
            assert np.all(np.diff(losses) <= 1000 * EPS * scale)
        if N == 1:
            G = np.sum(run["gradient"] ** 2, axis=(1, 2))[:-1]
            assert np.all(np.diff(losses) <= -eta * (1 - eta) * G + 1000 * EPS * scale)
            if near and margin > 0:
                factor = 1 - 4 * eta * (1 - eta) * margin**2 / (margin**2 + tau)
                assert np.all(losses[1:] <= factor * losses[:-1] + 1000 * EPS * scale)
        elif near and margin > 0:  # observed at published step sizes
            target = bw.Target.from_factor(jnp.asarray(B))
            sizes = bw.theory.published_step_sizes(target, L0, depth=N, margin=margin)
            slow = np.asarray(descend(layers, B, tau, sizes.least)["loss"])
            pace = N * margin ** (2 - 2 / N) * margin**2 / (margin**2 + tau)
            factor = 1 - 2 * float(sizes.least) * pace
            assert np.all(slow[1:] <= factor * slow[:-1] + 100 * EPS * scale)
        for k in range(20):
            old = [run[f"layer_{j}"][k] for j in range(N)]
            new = [run[f"layer_{j}"][k + 1] for j in range(N)]
            steps = [(a - b) / eta for a, b in zip(old, new, strict=True)]
            for j in range(N - 1):
                before = old[j + 1].T @ old[j + 1] - old[j] @ old[j].T
                after = new[j + 1].T @ new[j + 1] - new[j] @ new[j].T
                change = eta**2 * (steps[j + 1].T @ steps[j + 1] - steps[j] @ steps[j].T)
                biggest = max(np.sum(W**2) for W in (*old, *new))
                assert np.max(np.abs(after - before - change)) <= 1000 * EPS * biggest

    check()


@pytest.mark.parametrize("widths", [w for w in SHAPES if len(w) == 2], ids=str)
def test_points(widths):
    @drawn
    @given(st.data())
    def check(data):
        lam, B, (W,), tau, rng = drawn_problem(data, widths)
        n, p = W.shape
        kept = data.draw(st.integers(0, min(n, p)))  # kinks, where tau = 0
        U, sv, Vt = np.linalg.svd(W, full_matrices=False)
        W = (U * np.where(np.arange(len(sv)) < kept, sv, 0.0)[None, :]) @ Vt
        D = rng.normal(size=W.shape) * 10.0 ** data.draw(st.floats(-3, 1))
        note(f"W={W.tolist()!r} D={D.tolist()!r}")
        L, G, bent = map(np.asarray, point(W, D, B, tau))
        scale = size(W, B, tau) + np.sum(D**2)
        if tau > 0 or kept == min(n, p):  # no eigenvalue of the Hessian is above 2
            assert bent <= 2 * np.sum(D**2) + 1e-7 * abs(bent)
        assert abs(L - numpy_loss(W, B, tau)) <= 100 * EPS * scale
        if data.draw(st.booleans()):
            D = -W  # ends of no rank at all
        upper = L + np.sum(G * D) + np.sum(D**2)
        assert numpy_loss(W + D, B, tau) <= upper + 1000 * EPS * scale
        sigma = np.zeros(n)
        sigma[: min(n, p)] = np.linalg.svd(W, compute_uv=False)
        lowest = np.sum((np.sqrt(sigma**2 + tau) - np.sqrt(lam)) ** 2)
        assert lowest - 1000 * EPS * scale <= L

    check()
