"""Balanced flows in other coordinates against layers that scipy integrates, mpmath and limits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from diffrax import Dopri8
from helpers import array, assert_close, by_precision, random_target
from scipy.integrate import solve_ivp

import bwflow as bw
from bwflow._balanced import _multiplier

DEPTHS = np.arange(1, 33)
N, P, END, TAU = 4, 3, 0.5, 0.05
TARGET = random_target(0, N)
LOSS = bw.losses.BuresWasserstein(TARGET, TAU)
SOLVER = {"solver": Dopri8(), "rtol": by_precision(1e-11, 1e-5), "atol": by_precision(1e-12, 1e-6)}
RNG = np.random.default_rng(0)
# Singular values of both, of which two meet.
FULL = np.linalg.qr(RNG.normal(size=(N, P)))[0] * np.array([0.9, 0.9, 0.4])
LOW = np.outer(FULL[:, 0], [0.6, 0.8, 0.0]) + np.outer(FULL[:, 2], [0.8, -0.6, 0.0])


def split(W, rank, depth):
    """Balanced layers of a product, by numpy."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    U, s, Vt = U[:, :rank], s[:rank] ** (1 / depth), Vt[:rank]
    if depth == 1:
        return [U * s @ Vt]
    return [s[:, None] * Vt, *[np.diag(s)] * (depth - 2), U * s]


def end_to_end_gradient(W, tau):
    """`2 (I - T) W` for the optimal map `T = B (B^T S_tau B)^{-1/2} B^T`, by numpy."""
    B = np.asarray(TARGET.factor, np.float64)
    values, vectors = np.linalg.eigh(B.T @ (W @ W.T + tau * np.eye(N)) @ B)
    root = vectors / np.sqrt(values) @ vectors.T
    return 2 * (W - B @ root @ (B.T @ W))


def by_layers(W, rank, depth, time):
    """Product at the end of the flow of balanced layers, by scipy."""
    start = split(W, rank, depth)
    sizes = np.cumsum([layer.size for layer in start])[:-1]

    def layers(y):
        return [x.reshape(w.shape) for x, w in zip(np.split(y, sizes), start, strict=True)]

    def velocity(_, y):
        below = [np.eye(P)]
        for layer in layers(y):
            below.append(layer @ below[-1])
        above, moved = end_to_end_gradient(below[-1], TAU), []
        for layer, under in zip(layers(y)[::-1], below[-2::-1], strict=True):
            moved.append(-(above @ under.T))
            above = layer.T @ above
        return np.concatenate([x.ravel() for x in moved[::-1]])

    y0 = np.concatenate([x.ravel() for x in start])
    flow = solve_ivp(velocity, (0, time), y0, method="DOP853", rtol=1e-11, atol=1e-13)
    assert flow.success
    product = np.eye(P)
    for layer in layers(flow.y[:, -1]):
        product = layer @ product
    return product


def by_coordinates(W, depths, coordinates, times):
    """Parameters at the end for all depths, in one program."""

    def run(depth):
        flow = bw.gradient_flow(
            LOSS, array(W), times=times, coordinates=coordinates, depth=depth, **SOLVER
        )
        return flow.factors, flow.probes["loss"]

    return jax.vmap(run)(jnp.asarray(depths, dtype=float))


@pytest.mark.float64
@pytest.mark.parametrize(
    ("start", "rank", "depths"),
    [
        pytest.param(LOW, 2, np.array([1, 2, 5, 32]), id="some, rank two"),
        pytest.param(FULL, 3, DEPTHS, id="all, full rank", marks=pytest.mark.slow),
        pytest.param(LOW, 2, DEPTHS, id="all, rank two", marks=pytest.mark.slow),
    ],
)
def test_balanced_flows_of_depth_1_to_32_are_those_of_their_layers(start, rank, depths):
    """In both coordinates, at repeated singular values and at low rank."""
    times = jnp.array([0.0, END])
    W, loss = by_coordinates(start, depths, "end_to_end", times)
    S, same_loss = by_coordinates(start, depths, "covariance", times)
    assert_close(same_loss, loss, 1e-9)
    for depth, product, covariance in zip(depths, W, S, strict=True):
        expected = by_layers(start, rank, depth, END)
        assert np.abs(expected - start).max() > 0.1
        assert_close(product, expected, 1e-9)
        assert_close(covariance, expected @ expected.T, 1e-9)


def test_layers_may_be_given_and_their_number_is_the_depth():
    layers = tuple(array(layer) for layer in split(LOW, 2, 4))
    times = jnp.array([0.0, 0.1, 0.3])
    runs = {
        coordinates: bw.gradient_flow(LOSS, layers, times=times, coordinates=coordinates, **SOLVER)
        for coordinates in ("factors", "end_to_end", "covariance")
    }
    W = bw.end_to_end(runs["factors"].factors)
    tolerance = by_precision(1e-9, 2e-5)
    assert_close(runs["end_to_end"].factors, W, tolerance)
    assert_close(runs["covariance"].factors, W @ W.T, tolerance)
    for run in runs.values():
        for name in ("loss", "gap"):
            assert_close(run.probes[name], runs["factors"].probes[name], tolerance)


@pytest.mark.float64
def test_end_to_end_flow_of_real_depth_moves_aligned_singular_values_by_their_equation():
    """`s' = -2N s^{3-2/N} (1 - b / (s^2 + tau)^{1/2})`, by scipy, between the integers."""
    lam, Omega = np.asarray(TARGET.eigenvalues), np.asarray(TARGET.eigenvectors)
    start, depths = np.array([0.9, 0.9, 0.2]), np.array([1.0, 1.5, 2.75, 11.3])
    W, _ = by_coordinates(Omega[:, :P] * start, depths, "end_to_end", jnp.array([0.0, END]))
    for depth, product in zip(depths, W, strict=True):

        def velocity(_, s, depth=depth):
            return -2 * depth * s ** (3 - 2 / depth) * (1 - np.sqrt(lam[:P] / (s**2 + TAU)))

        flow = solve_ivp(velocity, (0, END), start, method="DOP853", rtol=1e-12, atol=1e-14)
        assert_close(product, Omega[:, :P] * flow.y[:, -1], 1e-9)


def test_one_layer_in_covariance_follows_the_gradient_flow_of_the_bures_geometry():
    """Velocity `-2 (E S + S E)`, `E = (I - T)`."""
    W = array(RNG.normal(size=(N, N)))
    S = W @ W.T
    at = bw.factors.Covariance(1)
    velocity = -at.pullback(S, jax.grad(LOSS)(at.assemble(S)))
    B, S = np.asarray(TARGET.factor, np.float64), np.asarray(S, np.float64)
    values, vectors = np.linalg.eigh(B.T @ (S + TAU * np.eye(N)) @ B)
    E = np.eye(N) - B @ (vectors / np.sqrt(values) @ vectors.T) @ B.T
    assert_close(velocity, -2 * (E @ S + S @ E), by_precision(1e-11, 2e-4))


@pytest.mark.float64
@pytest.mark.parametrize("power", [1, 2])
def test_multipliers_keep_their_digits(power):
    """Against 60 digits, for eigenvalues that meet, nearly meet, or are far apart."""
    w = np.array([1e5, 1.0, 1.0, 1 - 1e-15, 1 - 1e-8, 0.3, 1e-20, 1e-120])
    with mpmath.workdps(60):
        for depth in (1, 1.5, 2, 32, 1e4):
            found = np.asarray(_multiplier(jnp.asarray(w), jnp.asarray(float(depth)), power))
            for i, a in enumerate(map(mpmath.mpf, w)):
                for j, b in enumerate(map(mpmath.mpf, w)):
                    root = mpmath.mpf(1) / mpmath.mpf(depth)
                    if a == b:
                        expected = power * depth * a ** (power - root)
                    else:
                        expected = (a**power - b**power) / (a**root - b**root)
                    assert abs(found[i, j] / expected - 1) < 1e-13


@pytest.mark.float64
def test_multipliers_of_deep_networks_tend_to_logarithmic_means():
    w, N = np.array([2.0, 0.5]), 1e7
    found = np.asarray(_multiplier(jnp.asarray(w), jnp.asarray(N))) / N
    mean = 1.5 / np.log(4.0)
    assert_close(found, [[2.0, mean], [mean, 0.5]], 1e-6)


def test_a_low_rank_start_moves_as_its_layers_do_where_the_rank_is_told():
    """Where it is not, fractional powers of rounding errors count as if they were small."""
    W = np.asarray(LOW @ np.linalg.qr(RNG.normal(size=(P, P)))[0], float)
    Z, expected, layers = RNG.normal(size=(N, P)), 0, split(W, 2, 8)
    for j in range(8):
        below = np.linalg.multi_dot(
            [np.eye(P), *[x.T for x in layers[:j]], np.eye(P if j == 0 else 2)]
        )
        above = np.linalg.multi_dot(
            [np.eye(2 if j < 7 else N), *[x.T for x in layers[j + 1 :]], np.eye(N)]
        )
        expected = expected + above.T @ above @ Z @ below @ below.T
    told = bw.factors.EndToEnd(8.0, rank=2).pullback(array(W), array(Z))
    untold = bw.factors.EndToEnd(8.0).pullback(array(W), array(Z))
    assert_close(told, expected, by_precision(1e-13, 1e-5))
    assert np.abs(np.asarray(untold) - expected).max() > by_precision(1e-6, 1e-3)


def test_null_spaces_move_with_one_layer_only():
    Z = array(RNG.normal(size=(N, P)))
    assert_close(
        bw.factors.EndToEnd(1, rank=2).pullback(array(LOW), Z), Z, by_precision(1e-14, 1e-5)
    )


def test_depths_share_one_program(compilations):
    def end(depth):
        return bw.gradient_flow(
            LOSS, array(FULL), times=[0.0, 0.01], coordinates="end_to_end", depth=depth, **SOLVER
        )

    end(2)
    before = len(compilations)
    for depth in (3, 4.5, np.float32(7)):
        end(depth)
    assert len(compilations) == before


@pytest.mark.float64
@pytest.mark.slow
def test_derivatives_in_the_depth_and_the_start_match_differences():
    W = array(FULL * np.array([1.0, 0.8, 1.0]))
    Z = array(RNG.normal(size=(N, P)))

    def end(depth, shift):
        run = bw.gradient_flow(
            LOSS, W + shift * Z, times=[0.0, 0.2], coordinates="end_to_end", depth=depth, **SOLVER
        )
        return run.probes["loss"][-1]

    point, h = (array(2.5), array(0.0)), 1e-5
    found = jax.grad(end, argnums=(0, 1))(*point)
    for i, slope in enumerate(found):
        moved = [[x + (i == j) * sign * h for j, x in enumerate(point)] for sign in (1, -1)]
        assert_close(slope, (end(*moved[0]) - end(*moved[1])) / (2 * h), 1e-7)
        assert abs(slope) > 1e-3
