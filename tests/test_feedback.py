"""Feedback alignment against loops in numpy, its limit theorem and its exact modes."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from helpers import array, assert_close, by_precision, gaussian_factors
from scipy.integrate import solve_ivp

import bwflow as bw
from bwflow import diagnostics, theory
from bwflow.factors import Deep, FeedbackAlignment, FeedbackAlignmentStar

N, P, RANK = 12, 10, 3


def low_rank(seed, rank=RANK):
    """An `N x P` matrix with singular values evenly from 1 to 1/2."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.normal(size=(d, rank)))[0] for d in (N, P))
    return (U * np.linspace(1, 0.5, rank)) @ V.T


def decaying(n=20, ratio=0.6):
    return np.diag(ratio ** np.arange(n))


def feedback_of(seed, widths):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(b, a)) for a, b in pairwise(widths[1:]))


def sketch(Y, B):
    """`Y P` by the SVD of numpy."""
    _, s, Vt = np.linalg.svd(B.T @ Y, full_matrices=False)
    rows = Vt[s > 1e-10 * s[0]]
    return Y @ rows.T @ rows


def in_jax(matrices):
    return tuple(array(M) for M in matrices)


def descended(Y, start, factorization, *, rate=0.2, num_steps=4000, **options):
    return bw.gradient_descent(
        bw.losses.Approximation(array(Y)),
        start,
        optax.sgd(rate),
        num_steps=num_steps,
        save_every=num_steps,
        factorization=factorization,
        **options,
    )


# --- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(10, 12), (10, 4, 12), (10, 6, 4, 12), (10, 3, 5, 4, 12)])
def test_directions_are_those_of_the_loop_backwards(widths):
    layers, feedback = gaussian_factors(0, widths), feedback_of(1, widths)
    G = np.random.default_rng(2).normal(size=(12, 10))
    found = FeedbackAlignment(in_jax(feedback)).pullback(layers, array(G))
    expected, back = [], G
    for j in reversed(range(len(layers))):
        below = np.eye(10)
        for layer in layers[:j]:
            below = np.asarray(layer, np.float64) @ below
        expected.append(back @ below.T)
        if j:
            back = feedback[j - 1].T @ back
    for actual, value in zip(found, reversed(expected), strict=True):
        assert_close(actual, value, by_precision(1e-12, 1e-4))


def test_with_the_layers_for_feedback_it_is_the_gradient():
    layers = gaussian_factors(0, (10, 6, 4, 12))
    G = array(np.random.default_rng(2).normal(size=(12, 10)))
    found = FeedbackAlignment(layers[1:]).pullback(layers, G)
    for actual, expected in zip(found, Deep().pullback(layers, G), strict=True):
        assert_close(actual, expected, by_precision(1e-13, 1e-5))
    for actual, expected in zip(
        FeedbackAlignment(layers[1:]).grams(layers), Deep().grams(layers), strict=True
    ):
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b, by_precision(1e-13, 1e-5))


def test_the_second_layer_of_the_star_solves_least_squares():
    Y, B, W = low_rank(0), *feedback_of(1, (P, 4, N)), np.random.default_rng(2).normal(size=(4, P))
    star = FeedbackAlignmentStar(array(B), array(Y))
    Z = np.linalg.lstsq(W.T, Y.T)[0].T
    found = star.layers(array(W))
    assert_close(found[1], Z, by_precision(1e-12, 1e-5))
    assert_close(star.assemble(array(W)), Z @ W, by_precision(1e-12, 1e-5))
    run = descended(Y, array(W), star, rate=0.1, num_steps=3)
    for _ in range(3):
        Z = np.linalg.lstsq(W.T, Y.T)[0].T
        W = W + 0.1 * B.T @ (Y - Z @ W)
    assert_close(run.factors, W, by_precision(1e-12, 1e-5))


# --- the limit -----------------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths", [(20, 5, 20), (20, 5, 5, 20), (20, 7, 5, 6, 20)], ids=str)
def test_the_limit_is_a_sketch(widths, seed):
    """Of two layers and of more; with widths above the bottleneck behind it, too."""
    Y = decaying()
    bottleneck = min(widths[1:-1])
    feedback = feedback_of(seed, widths)
    total = np.linalg.multi_dot(feedback[::-1]) if len(feedback) > 1 else feedback[0]
    # Feedback of unit scale, so that one rate suits all depths.
    feedback = tuple(B / np.linalg.norm(B, 2) for B in feedback)
    start = gaussian_factors(seed + 10, widths, scale=0.2)
    run = descended(
        Y,
        start,
        FeedbackAlignment(in_jax(feedback)),
        num_steps=200_000,
        until=bw.until.gradient_norm(1e-9),
    )
    assert np.isfinite(run.hit)
    W = np.asarray(bw.end_to_end(run.factors))
    assert np.linalg.matrix_rank(total.T @ Y) == bottleneck
    assert_close(W, sketch(Y, total), 1e-5)
    assert_close(theory.sketch_limit(array(Y), array(total)), sketch(Y, total), 1e-12)


@pytest.mark.float64
@pytest.mark.parametrize("star", [False, True])
@pytest.mark.parametrize("r", [RANK - 1, RANK, RANK + 3])
def test_it_is_optimal_if_and_only_if_there_are_as_many_columns_as_ranks(r, star):
    """From zero; the star, which one step takes to the limit from there, from a random start."""
    Y, (B,) = low_rank(0), feedback_of(1, (P, r, N))
    B = B / np.linalg.norm(B, 2)
    if star:
        network = FeedbackAlignmentStar(array(B), array(Y))
        start = array(0.1 * np.random.default_rng(2).normal(size=(r, P)))
    else:
        network = FeedbackAlignment(array(B))
        start = (jnp.zeros((r, P)), jnp.zeros((N, r)))
    run = descended(Y, start, network, num_steps=20_000)
    W = np.asarray(network.assemble(run.factors))
    assert_close(W, sketch(Y, B), 1e-9)
    excess = float(run.probes["loss"][-1]) - float(bw.losses.Approximation(array(Y)).minimum(r))
    assert (excess < 1e-12) == (r >= RANK)


@pytest.mark.float64
def test_decaying_spectra_separate_it_from_gradient_descent():
    """`0.6^i`, rank 5 of 20: the best error is .6^5 / sqrt(1 - .36); feedback's is a sketch's."""
    Y, best = decaying(), 0.6**5 / np.sqrt(1 - 0.36)
    loss = bw.losses.Approximation(array(Y))
    assert_close(np.sqrt(2 * float(loss.minimum(5))), best, 1e-6)
    start = gaussian_factors(0, (20, 5, 20), scale=0.1)
    plain = descended(Y, start, Deep(), num_steps=4000)
    assert np.sqrt(2 * float(plain.probes["loss"][-1])) < 1.001 * best
    for seed in range(4):
        (B,) = feedback_of(seed, (20, 5, 20))
        network = FeedbackAlignment(array(B / np.linalg.norm(B, 2)))
        run = descended(Y, start, network, num_steps=40_000)
        error = np.sqrt(2 * float(run.probes["loss"][-1]))
        assert error > 1.3 * best
        assert_close(error, np.linalg.norm(Y - sketch(Y, B)), 1e-3 * best)


# --- the way there -------------------------------------------------------------------------------


def followed(Y, start, factorization, time, **options):
    return bw.gradient_flow(
        bw.losses.Approximation(array(Y)),
        start,
        times=[0.0, time],
        rtol=by_precision(1e-9, 1e-5),
        atol=by_precision(1e-11, 1e-6),
        factorization=factorization,
        **options,
    )


@pytest.mark.parametrize("widths", [(P, 4, N), (P, 4, 5, N)], ids=str)
def test_the_flow_conserves_its_imbalance(widths):
    Y, start, feedback = low_rank(0), gaussian_factors(1, widths), in_jax(feedback_of(2, widths))
    run = followed(Y, start, FeedbackAlignment(feedback), 3.0)
    before, after = (
        bw.factors.feedback_imbalance(layers, feedback) for layers in (start, run.factors)
    )
    for a, b, B, W, V in zip(before, after, feedback, start, start[1:], strict=False):
        B, W, V = (np.asarray(x, np.float64) for x in (B, W, V))
        assert_close(a, B.T @ V + V.T @ B - W @ W.T, by_precision(1e-12, 1e-5))
        assert_close(b, a, by_precision(1e-7, 1e-3))
    moved = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(start, run.factors, strict=True))
    assert moved > 0.1


def test_the_flow_of_the_star_conserves_the_gram():
    Y, (B,) = low_rank(0), feedback_of(1, (P, 4, N))
    W = array(np.random.default_rng(2).normal(size=(4, P)))
    run = followed(Y, W, FeedbackAlignmentStar(array(B), array(Y)), 3.0)
    assert_close(run.factors @ run.factors.T, W @ W.T, by_precision(1e-7, 1e-3))
    assert float(jnp.max(jnp.abs(run.factors - W))) > 0.1


@pytest.mark.parametrize("time", [0.05, 0.7, 4.0])
def test_modes_from_zero_are_exact(time):
    Y, (B,) = low_rank(0), feedback_of(1, (P, 4, N))
    U, k, Vt = np.linalg.svd(B.T @ Y, full_matrices=False)
    strengths = array(np.append(k[:RANK], 0.0))
    w = np.asarray(theory.feedback_modes(strengths, time))
    for value, strength in zip(w, np.asarray(strengths, np.float64), strict=True):
        oracle = solve_ivp(
            lambda t, w, k=strength: k - w**3 / 2, (0, time), [0.0], rtol=1e-12, atol=1e-13
        )
        assert_close(value, oracle.y[0, -1], by_precision(1e-9, 1e-5))
    start = (jnp.zeros((4, P)), jnp.zeros((N, 4)))
    run = followed(Y, start, FeedbackAlignment(array(B)), time)
    assert_close(run.factors[0], (U * w) @ Vt, by_precision(1e-7, 1e-3))
    Z = np.asarray(run.factors[1])
    assert_close(B.T @ Z, (U * w**2 / 2) @ U.T, by_precision(1e-7, 1e-3))


def test_modes_end_where_they_should():
    k = array([0.0, 1e-12, 0.5, 4.0])
    assert_close(theory.feedback_modes(k, 0.0), np.zeros(4), 0.0)
    long = np.asarray(theory.feedback_modes(k, 1e3))
    assert_close(long[2:], np.cbrt([1.0, 8.0]), by_precision(1e-14, 1e-6))
    # Of a small one the time has not come: w = k t.
    assert abs(long[1] / 1e-9 - 1) < by_precision(1e-12, 1e-5)


@pytest.mark.float64
@pytest.mark.parametrize("r", [5, 8, 20])
def test_iterations_from_zero_are_those_of_the_slowest_mode(r):
    """A step is `w += eta e, z += eta e w` with `e = k - z w` in each mode, and none is slow."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(d, 5)))[0] for d in (30, 25))
    Y, (B,), rate = (U * np.linspace(1, 0.6, 5)) @ V.T, feedback_of(1, (25, r, 30)), 0.2
    B = B / 30**0.5
    run = bw.gradient_descent(
        bw.losses.Approximation(array(Y)),
        (jnp.zeros((r, 25)), jnp.zeros((30, r))),
        optax.sgd(rate),
        num_steps=4000,
        factorization=FeedbackAlignment(array(B)),
        until=bw.until.gap(1e-20, minimum=0.0),
        probe=lambda loss, layers: {"W": layers[0], "error": jnp.sqrt(loss(bw.end_to_end(layers)))},
    )
    P, k, Qt = np.linalg.svd(B.T @ Y, full_matrices=False)
    P, k, Qt = P[:, :5], k[:5], Qt[:5]
    w, z = np.zeros(5), np.zeros(5)
    end = int(run.hit)
    for step in range(end):
        assert_close(run.probes["W"][step], (P * w) @ Qt, 1e-12)
        error = k - z * w
        w, z = w + rate * error, z + rate * error * w
    late = 1 - rate * np.min(w**2 + z)
    assert abs(run.probes["error"][end] / run.probes["error"][end - 1] - late) < 2e-3
    # As the flow has it, but for the size of the steps, and so the number of them.
    slowest = 1.5 * (2 * k[-1]) ** (2 / 3)
    assert abs((1 - late) / (rate * slowest) - 1) < 0.03
    assert 0.7 < end / (np.log(1e-10) / np.log(late)) < 1.2


@pytest.mark.float64
def test_columns_to_spare_make_it_slow_from_a_random_start():
    """What the first layer has outside of the rows of `Y` decays slowly, if at all."""
    Y, (B,) = low_rank(0), feedback_of(1, (P, 2 * RANK, N))
    network = FeedbackAlignment(array(B / np.linalg.norm(B, 2)))
    zero = (jnp.zeros((2 * RANK, P)), jnp.zeros((N, 2 * RANK)))
    noisy = tuple(W + 1e-2 for W in gaussian_factors(3, (P, 2 * RANK, N), scale=1e-2))
    outside = np.eye(P) - np.linalg.pinv(Y) @ Y
    end = {}
    for name, start in (("zero", zero), ("noisy", noisy)):
        run = descended(Y, start, network, num_steps=4000, probe=lambda loss, W: {"W": W[0]})
        end[name] = np.linalg.norm(np.asarray(run.factors[0]) @ outside)
        loss = float(bw.losses.Approximation(array(Y))(bw.end_to_end(run.factors)))
        assert (loss < 1e-20) == (name == "zero")
    assert end["zero"] < 1e-12
    assert end["noisy"] > 1e-3


@pytest.mark.float64
@pytest.mark.parametrize(("w", "b", "z"), [(1.0, 1.0, 0.5), (1.5, 1.0, 0.5), (0.5, 1.0, 0.5)])
def test_a_mode_to_spare_falls_as_its_conserved_number_says(w, b, z):
    """`w^2 - 2 b z = d`: like `t^{-3/2}` for `d = 0`, else at the rate `d`, or `|d| / 2`."""
    d = w**2 - 2 * b * z
    times = array([0.0, 1.0, 15.0, 16.0])
    run = bw.gradient_flow(
        bw.losses.Approximation(array([[0.0]])),
        (array([[w]]), array([[z]])),
        times=times,
        rtol=1e-11,
        atol=1e-16,
        factorization=FeedbackAlignment(array([[b]])),
        probe=lambda loss, layers: {"w": layers[0][0, 0], "z": layers[1][0, 0]},
    )
    w, z = (np.asarray(run.probes[name]) for name in "wz")
    assert_close(w**2 - 2 * b * z, np.full(4, d), 1e-9)
    error = z * w
    if d == 0:
        assert_close(error, 0.5 * (1 + np.asarray(times)) ** -1.5, 1e-9)
        assert_close(w, (1 + np.asarray(times)) ** -0.5, 1e-9)
    else:
        rate = d if d > 0 else -d / 2
        assert abs(np.log(error[2] / error[3]) / rate - 1) < 1e-3


# --- the Bures-Wasserstein loss ------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_at_rest_of_the_last_layer_the_gradient_vanishes(tau):
    """`(I - T) W A A^T = 0` for the product `A` of the layers below makes `(I - T) W_N A = 0`."""
    target = bw.covariances.from_spectrum([1.0, 0.5, 0.2], key=jax.random.key(0))
    loss = bw.losses.BuresWasserstein(target, tau)
    for seed in range(3):
        (B,) = feedback_of(seed, (3, 2, 3))
        network = FeedbackAlignment(array(0.02 * B))
        start = gaussian_factors(seed, (3, 2, 3))
        run = bw.gradient_descent(
            loss, start, optax.sgd(0.1), num_steps=6000, save_every=6000, factorization=network
        )
        assert float(run.probes["gradient_norm"][-1]) < 1e-9
        assert_close(jax.grad(loss)(bw.end_to_end(run.factors)), np.zeros((3, 3)), 1e-7)
        # Weak feedback leads to the best rank.
        assert float(run.probes["gap"][-1]) < 1e-12


@pytest.mark.float64
@pytest.mark.parametrize(("b", "survives"), [(-0.3, False), (-0.15, True), (0.5, True)])
def test_a_mode_dies_where_feedback_is_strong_and_opposed(b, survives):
    """If `b < -s^3 / (3 sqrt(3) sigma)`, not if it is more, for a `W_1` of length `s`."""
    tau, sigma = 0.03, (1 - 0.03) ** 0.5
    assert survives == (b > -1 / (3 * 3**0.5 * sigma))
    loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([1.0, 0.4, 0.1]))), tau)
    first = array(np.eye(3)[:, :1])
    run = bw.gradient_descent(
        loss,
        (first.T, 1e-3 * first),
        optax.sgd(0.02),
        num_steps=20_000,
        save_every=20_000,
        factorization=FeedbackAlignment(b * first),
    )
    assert_close(bw.end_to_end(run.factors)[0, 0], sigma if survives else 0.0, 1e-3)


@pytest.mark.float64
@pytest.mark.parametrize("J", [(0, 1), (0, 2), (1, 3), (0,), (1,)])
def test_eigenvectors_that_are_left_out_grow_at_a_rate_without_feedback(J):
    """`-A H_i A^T` for each of them: its eigenvalues are among those of the linearised rule."""
    rng, lam, tau = np.random.default_rng(len(J)), np.array([2.0, 1.0, 0.5, 0.2]), 0.05
    loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(array(lam))), tau)
    A, (B,) = rng.normal(size=(2, 3)), feedback_of(3, (3, 2, 4))
    rows = np.linalg.qr(A.T)[0] @ np.linalg.qr(rng.normal(size=(2, 2)))[0]
    V, learnt = rows[:, : len(J)], lam[list(J)]
    W = np.eye(4)[:, list(J)] @ (np.sqrt(learnt - tau)[:, None] * V.T)
    point = array(A), array(W @ np.linalg.pinv(A))
    network = FeedbackAlignment(array(B))

    def direction(x):
        layers = x[:6].reshape(2, 3), x[6:].reshape(4, 2)
        found = network.pullback(layers, jax.grad(loss)(network.assemble(layers)))
        return -jnp.concatenate([g.ravel() for g in found])

    at = jnp.concatenate([W.ravel() for W in point])
    assert_close(direction(at), np.zeros(14), 1e-12)
    rates = np.linalg.eigvals(np.asarray(jax.jacfwd(direction)(at)))
    growing = False
    for i in sorted(set(range(4)) - set(J)):
        H = V @ np.diag(2 * (learnt - lam[i]) / (learnt + np.sqrt(lam[i] * tau))) @ V.T
        H += 2 * (1 - np.sqrt(lam[i] / tau)) * (np.eye(3) - V @ V.T)
        for rate in np.linalg.eigvalsh(-A @ H @ A.T):
            assert np.min(np.abs(rates - rate)) < 1e-6
            growing |= rate > 1e-6
    assert growing == (J != (0, 1))


# --- diagnostics ---------------------------------------------------------------------------------


def cosine(a, b):
    return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)


def test_feedback_quantities_are_those_of_numpy():
    widths = (P, 5, 4, N)
    layers, feedback = gaussian_factors(0, widths), feedback_of(1, widths)
    Y = low_rank(2)
    network = FeedbackAlignment(in_jax(feedback))
    probe = diagnostics.record("feedback_alignment", "direction_alignment", "sketch_distance")
    found = probe.bind(network)(bw.losses.Approximation(array(Y)), layers)
    W1, W2, W3 = (np.asarray(W, np.float64) for W in layers)
    B2, B3 = feedback
    expected = [cosine(W2, B2), cosine(W3, B3)]
    assert_close(found["feedback_alignment"], expected, by_precision(1e-13, 1e-6))
    E = W3 @ W2 @ W1 - Y
    true = [(W3 @ W2).T @ E, W3.T @ E @ W1.T, E @ (W2 @ W1).T]
    used = [(B3 @ B2).T @ E, B3.T @ E @ W1.T, E @ (W2 @ W1).T]
    flat = [np.concatenate([x.ravel() for x in xs]) for xs in (true, used)]
    assert_close(found["direction_alignment"], cosine(*flat), by_precision(1e-13, 1e-6))
    distance = np.linalg.norm(W3 @ W2 @ W1 - sketch(Y, B3 @ B2))
    assert_close(found["sketch_distance"], distance, by_precision(1e-12, 1e-4))


@pytest.mark.float64
def test_layers_turn_towards_their_feedback():
    """From zero `B^T W_2` ends at `W_1 W_1^T / 2`, `W_1` at the limit of the modes."""
    Y, (B,) = low_rank(0), feedback_of(1, (P, RANK, N))
    B = B / np.linalg.norm(B, 2)
    start = (jnp.zeros((RANK, P)), jnp.zeros((N, RANK)))
    probe = diagnostics.record("feedback_alignment", "direction_alignment")
    run = followed(Y, start, FeedbackAlignment(array(B)), 2000.0, probe=probe)
    U, k, Vt = np.linalg.svd(B.T @ Y, full_matrices=False)
    W = (U * np.cbrt(2 * k)) @ Vt
    found = run.probes["feedback_alignment"][:, 0]
    assert_close(found, [0.0, cosine(B, Y @ np.linalg.pinv(W))], 1e-6)
    assert float(found[1]) > 0.15


def test_similarity_of_representations():
    rng = np.random.default_rng(0)
    A, C = rng.normal(size=(3, 7)), rng.normal(size=(5, 7))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    similarity = diagnostics.representation_similarity
    assert_close(similarity(array(A), array(2 * rotation @ A)), 1.0, by_precision(1e-13, 1e-6))
    # By samples: correlation of the kernels of white inputs.
    X = np.linalg.qr(rng.normal(size=(40, 7)))[0]
    K, L = (X @ M.T @ M @ X.T for M in (A, C))
    assert_close(similarity(array(A), array(C)), cosine(K, L), by_precision(1e-13, 1e-6))
    orthogonal = np.linalg.svd(A)[2][3:]
    assert_close(similarity(array(A), array(orthogonal)), 0.0, by_precision(1e-13, 1e-6))


def test_principal_angles_are_those_of_scipy():
    rng = np.random.default_rng(0)
    A, C = rng.normal(size=(3, 7)), rng.normal(size=(5, 7))
    C[0] = A[1]
    found = diagnostics.principal_angles(array(A), array(C))
    expected = scipy.linalg.subspace_angles(A.T, C.T)[::-1]
    # Cosines do not see angles below a root of the rounding.
    assert_close(found, expected, by_precision(1e-7, 2e-3))
    assert_close(found[1:], expected[1:], by_precision(1e-12, 1e-5))
    # A row too many counts as orthogonal.
    repeated = np.concatenate([A[:2], A[:1]])
    assert_close(
        diagnostics.principal_angles(array(repeated), array(A)),
        [0.0, 0.0, np.pi / 2],
        by_precision(1e-7, 2e-3),
    )


# --- transformations and refusals ----------------------------------------------------------------


def test_feedback_is_batched_and_differentiated():
    Y, start = low_rank(0), gaussian_factors(0, (P, 3, N))
    batch = array([feedback_of(seed, (P, 3, N))[0] for seed in range(3)])

    def final(B, shift=0.0):
        run = descended(Y, start, FeedbackAlignment(B + shift), num_steps=5)
        star = descended(Y, start[0], FeedbackAlignmentStar(B + shift, array(Y)), num_steps=2)
        return run.probes["loss"][-1] + star.probes["loss"][-1]

    shifts = jnp.zeros(3)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(final, argnums=1)))(batch, shifts)
    h = by_precision(1e-5, 1e-2)
    for B, value, slope in zip(batch, values, slopes, strict=True):
        assert_close(value, final(B), by_precision(1e-12, 1e-4))
        difference = (float(final(B, h)) - float(final(B, -h))) / (2 * h)
        assert_close(slope, difference, by_precision(1e-6, 0.05))


def test_a_sweep_knows_the_axes_of_feedback_quantities():
    loss = bw.losses.Approximation(array(low_rank(0)))

    def experiment(*, seed):
        key = jax.random.key(seed)
        layers = bw.initializers.gaussian()(key, (P, 4, 5, N))
        feedback = bw.initializers.gaussian()(jax.random.fold_in(key, 1), (P, 4, 5, N))[1:]
        return bw.gradient_descent(
            loss,
            layers,
            optax.sgd(0.1),
            num_steps=4,
            save_every=2,
            factorization=FeedbackAlignment(feedback),
            probe=diagnostics.record("loss", "feedback_alignment", "sketch_distance"),
            throw=False,
        )

    ds = bw.sweep(experiment, static={}, traced={"seed": jnp.arange(3)}, progress=False)
    assert ds["feedback_alignment"].dims == ("seed", "save", "layer")
    assert ds["feedback_alignment"].shape == (3, 3, 2)
    assert "cosine" in ds["feedback_alignment"].attrs["long_name"]
    assert bool(np.isfinite(ds["sketch_distance"]).all())


LAYERS = gaussian_factors(0, (P, 3, N))
REFUSED = {
    "shape": (
        lambda: descended(low_rank(0), LAYERS, FeedbackAlignment(jnp.ones((N, 4)))),
        r"feedback must have the shapes .* of the layers above the first, "
        r"\[\(\(12, 3\), 'float\d\d'\)\]; got \[\(\(12, 4\)",
    ),
    "count": (
        lambda: descended(low_rank(0), LAYERS, FeedbackAlignment(())),
        r"feedback must have the shapes .*; got \[\]",
    ),
    "no matrix": (lambda: FeedbackAlignment(jnp.ones(3)), r"feedback\[0\] must have 2 dimensions"),
    "no number": (lambda: FeedbackAlignment((jnp.ones((3, 3)), None)), r"feedback\[1\] must be"),
    "not finite": (
        lambda: FeedbackAlignmentStar(jnp.full((N, 3), jnp.nan), array(low_rank(0))),
        "feedback must be finite",
    ),
    "rows": (
        lambda: FeedbackAlignmentStar(jnp.ones((N + 1, 3)), array(low_rank(0))),
        "feedback must have 12 rows",
    ),
    "star with both layers": (
        lambda: descended(
            low_rank(0), LAYERS[1], FeedbackAlignmentStar(jnp.ones((N, 3)), array(low_rank(0)))
        ),
        r"params must be the first layer, of shape \(3, 10\)",
    ),
    "quantity": (
        lambda: descended(
            low_rank(0), LAYERS, Deep(), probe=diagnostics.record("feedback_alignment")
        ),
        r"factorization must be bwflow.factors.FeedbackAlignment\(feedback\)",
    ),
    "target": (
        lambda: bw.gradient_descent(
            bw.losses.Frobenius(bw.Target(jnp.eye(N))),
            LAYERS,
            optax.sgd(0.1),
            num_steps=1,
            factorization=FeedbackAlignment(LAYERS[1:]),
            probe=diagnostics.record("sketch_distance"),
        ),
        "loss must offer `Y`",
    ),
    "approximation": (
        lambda: bw.losses.Approximation(jnp.eye(3))(jnp.ones((3, 2))),
        r"W must have shape \(3, 3\), as Y has; got \(3, 2\)",
    ),
    "certificate": (
        lambda: bw.certificate.optimality_gap(
            bw.losses.Approximation(jnp.eye(N)), (jnp.eye(N),), trace_bound=1.0
        ),
        "W must be a bwflow.factors.Product",
    ),
    "sketch": (lambda: theory.sketch_limit(jnp.eye(3), jnp.eye(4)), "feedback must have 3 rows"),
    "strengths": (
        lambda: theory.feedback_modes(jnp.array([-1.0]), 1.0),
        "strengths must be at least 0",
    ),
    "time": (lambda: theory.feedback_modes(jnp.ones(1), -1.0), "time must be at least 0"),
    "representations": (
        lambda: diagnostics.principal_angles(jnp.ones((2, 3)), jnp.ones((2, 4))),
        "second must have 3 columns",
    ),
}


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_other_input_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
