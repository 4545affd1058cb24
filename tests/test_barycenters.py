"""Barycenters and medians against sixty digits, closed forms, and their own invariances."""

from functools import cache

import covariance_oracles as oracles
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from covariance_oracles import assert_accurate, covariance, factor, orthogonal, symmetric
from helpers import EPS, array, assert_close, by_precision

import bwflow as bw
from bwflow import geometry
from bwflow.geometry import RESULTS, Factor

N, SIZE = 4, 3
SETS = {
    "easy": np.stack([covariance(seed, SIZE, 5.0) for seed in range(N)]),
    "bad": np.stack([covariance(seed, SIZE, 1e4) for seed in range(10, 10 + N)]),
}
EASY = SETS["easy"]
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
TIGHTEST = by_precision(1e-14, 1e-6)
# One program for whatever needs no other.
PRECISE = {"rtol": TIGHTEST, "throw": False, "max_steps": 400}
CLOSE = by_precision(1e-12, 2e-5)


def mean(covariances, weights=WEIGHTS, **options):
    options = PRECISE | options
    return geometry.barycenter(array(covariances), weights=array(weights), **options)


def covariance_of(covariances, weights=WEIGHTS, **options):
    return np.asarray(mean(covariances, weights, **options).covariance, np.float64)


@cache
def reference(name):
    """The barycenter and the least objective."""
    with mpmath.workdps(oracles.DIGITS):
        S = oracles.barycenter(SETS[name], WEIGHTS)
        return S, oracles.mean_objective(S, SETS[name], WEIGHTS)


# --- the barycenter ------------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("name", SETS)
def test_barycenter_agrees_with_sixty_digits(name):
    S, objective = reference(name)
    found = mean(SETS[name])
    assert_accurate(found.covariance, S, 1e-12)
    assert_accurate(found.objective, objective, 1e-13)


def test_barycenter_in_either_precision_agrees_with_sixty_digits():
    assert_accurate(covariance_of(EASY), reference("easy")[0], by_precision(1e-12, 1e-5))


def commuting(seed=0):
    Q = orthogonal(seed, SIZE)
    eigenvalues = np.array([[1.0, 4.0, 9.0], [2.0, 2.0, 1.0], [0.5, 0.1, 3.0], [4.0, 1.0, 1.0]])
    matrices = (Q * eigenvalues[:, None, :]) @ Q.T
    return (matrices + np.swapaxes(matrices, 1, 2)) / 2, eigenvalues, Q


def test_barycenter_of_commuting_matrices_averages_roots():
    matrices, eigenvalues, Q = commuting()
    expected = (Q * (WEIGHTS @ np.sqrt(eigenvalues)) ** 2) @ Q.T
    assert_close(covariance_of(matrices), expected, by_precision(1e-13, 1e-4))


def test_barycenter_of_diagonal_matrices_of_any_rank_averages_roots():
    eigenvalues = np.array([[1.0, 4.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [4.0, 1.0, 0.0]])
    expected = np.diag((WEIGHTS @ np.sqrt(eigenvalues)) ** 2)
    found = covariance_of(eigenvalues[:, None, :] * np.eye(SIZE))
    assert_close(found, expected, by_precision(1e-13, 1e-5))


def test_barycenter_of_one_matrix_is_that_matrix():
    found = mean(EASY[:1], np.ones(1))
    assert_close(found.covariance, EASY[0], CLOSE)
    assert found.objective <= by_precision(1e-25, 1e-9)


@pytest.mark.parametrize("t", [0.5, 0.2])
def test_barycenter_of_two_is_the_point_of_their_geodesic(t):
    """Those of weight zero are none."""
    expected = geometry.geodesic(array(EASY[0]), array(EASY[1]), array(t))
    assert_close(covariance_of(EASY, np.array([1 - t, t, 0.0, 0.0])), expected, CLOSE)


def test_barycenter_moves_with_its_data():
    expected, Q = covariance_of(EASY), orthogonal(5, SIZE)
    turned = Q @ EASY @ Q.T
    turned = (turned + np.swapaxes(turned, 1, 2)) / 2
    assert_close(covariance_of(turned), Q @ expected @ Q.T, CLOSE)
    order = [2, 0, 3, 1]
    assert_close(covariance_of(EASY[order], WEIGHTS[order]), expected, CLOSE)
    for scale in (1e-12, 1e12):
        assert_close(covariance_of(scale * EASY) / scale, expected, CLOSE)
    assert_close(covariance_of(EASY, 50 * WEIGHTS), expected, CLOSE)


def test_weights_are_repetitions():
    repeated = EASY[[0, 0, 0, 1]]
    expected = covariance_of(EASY, np.array([3.0, 1.0, 0.0, 0.0]))
    assert_close(covariance_of(repeated, np.ones(N)), expected, CLOSE)
    plain = geometry.barycenter(array(repeated), **PRECISE).covariance
    assert_close(plain, expected, CLOSE)


def test_barycenter_is_neither_the_arithmetic_nor_the_log_euclidean_mean():
    found = covariance_of(EASY)
    arithmetic = np.einsum("i,inm->nm", WEIGHTS, EASY)
    logs = [scipy.linalg.logm(A) for A in EASY]
    euclidean = scipy.linalg.expm(np.einsum("i,inm->nm", WEIGHTS, logs))
    for other in (arithmetic, euclidean):
        assert np.linalg.norm(found - other) > 0.01 * np.linalg.norm(found)
    # It lies below the arithmetic mean.
    assert np.linalg.eigvalsh(arithmetic - found)[0] > 0


def test_masked_covariances_do_not_count():
    expected = covariance_of(EASY, np.array([0.25, 0.0, 0.75, 0.0]))
    mask = np.array([True, False, True, False])
    spoilt = np.where(mask[:, None, None], EASY, np.nan)
    weights = np.array([0.1, 5.0, 0.3, 7.0])
    found = mean(spoilt, weights, mask=mask)
    assert_close(found.covariance, expected, CLOSE)
    assert np.isfinite(found.objective)


def test_means_are_averaged():
    points = np.random.default_rng(0).normal(size=(N, SIZE))
    found = mean(EASY, means=array(points))
    assert_close(found.mean, WEIGHTS @ points, by_precision(1e-15, 1e-6))
    assert mean(EASY).mean is None


BATCH = np.stack([EASY, SETS["bad"], commuting()[0]])


def test_barycenters_of_a_batch_are_those_of_each_set():
    found = mean(BATCH)
    assert found.covariance.shape == (3, SIZE, SIZE)
    for i, covariances in enumerate(BATCH):
        alone = mean(covariances)
        assert_close(found.covariance[i], alone.covariance, by_precision(1e-12, 1e-3))
        assert_close(found.objective[i], alone.objective, by_precision(1e-13, 1e-5))
    weights = np.stack([WEIGHTS, np.ones(N), WEIGHTS[::-1]])
    assert_close(mean(BATCH, weights).covariance[0], covariance_of(EASY), CLOSE)


@pytest.mark.float64
@pytest.mark.parametrize("name", SETS)
def test_memory_does_not_change_the_fixed_point(name):
    plain = mean(SETS[name], memory=0, max_steps=2000)
    accelerated = mean(SETS[name])
    assert_close(plain.covariance, accelerated.covariance, 1e-12)
    assert accelerated.num_steps <= plain.num_steps


def test_the_start_does_not_change_the_fixed_point():
    for diagonal in ([5.0, 0.1, 1.0], [1e-3, 1e-3, 1e3]):
        found = covariance_of(EASY, start=array(np.diag(diagonal)))
        assert_close(found, covariance_of(EASY), CLOSE)


def test_barycenter_of_factors_is_that_of_their_covariances():
    roots = np.stack([np.linalg.cholesky(A) @ orthogonal(i, SIZE) for i, A in enumerate(EASY)])
    found = geometry.barycenter(Factor(array(roots)), weights=array(WEIGHTS), **PRECISE)
    assert_close(found.covariance, covariance_of(EASY), CLOSE)


# --- certificates --------------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4, 1e-7, 1e-14])
@pytest.mark.parametrize("name", SETS)
def test_the_certificate_is_never_below_the_true_gap(name, rtol):
    found = mean(SETS[name], rtol=rtol)
    with mpmath.workdps(oracles.DIGITS):
        F = oracles.exact(found.factor)
        objective = oracles.mean_objective(F * F.T, SETS[name], WEIGHTS)
        true = float(objective - reference(name)[1])
    scale = np.einsum("i,inn->", WEIGHTS, SETS[name])
    assert true >= -1e-18
    assert found.gap >= true - 4 * EPS * scale
    assert np.isfinite(found.gap)


@pytest.mark.float64
@pytest.mark.parametrize(("name", "most"), [("easy", 1e-12), ("bad", 1e-8)])
def test_the_certificate_is_small_at_convergence(name, most):
    assert 0 <= mean(SETS[name]).gap <= most


def test_there_is_no_certificate_where_there_is_no_proof():
    assert low().gap == np.inf


# --- failure -------------------------------------------------------------------------------------


def test_too_few_steps_are_told():
    found = mean(SETS["bad"], max_steps=2)
    assert found.result == RESULTS.max_steps_reached
    assert found.num_steps == 2
    assert np.all(np.isfinite(found.factor))
    with pytest.raises(RuntimeError, match="maximum number of steps"):
        mean(SETS["bad"], max_steps=2, throw=True)


@pytest.mark.float64
def test_a_set_that_fails_does_not_spoil_its_neighbour():
    options = {"rtol": by_precision(1e-10, 1e-4), "max_steps": 8}
    found = mean(BATCH, **options)
    alone = mean(EASY, **options)
    succeeded, ran_out = (
        np.asarray(found.result == code) for code in (RESULTS.successful, RESULTS.max_steps_reached)
    )
    assert succeeded[0]
    assert ran_out[1]
    assert alone.result == RESULTS.successful
    assert_close(found.covariance[0], alone.covariance, by_precision(1e-13, 1e-5))
    assert found.num_steps[0] == alone.num_steps
    with pytest.raises(RuntimeError, match="maximum number of steps"):
        mean(BATCH, throw=True, **options)


def test_success_is_told_with_a_residual_below_the_tolerance():
    rtol = by_precision(1e-9, 1e-4)
    found = mean(EASY, rtol=rtol, throw=True)
    assert found.result == RESULTS.successful
    assert found.residual <= rtol * jnp.linalg.norm(found.factor)
    assert 0 < found.num_steps < PRECISE["max_steps"]


# --- low rank ------------------------------------------------------------------------------------

LOW = np.stack([factor(seed, 5, 2) for seed in range(20, 20 + N)])
LOW_OPTIONS = {"rtol": by_precision(1e-12, 1e-5), "throw": False, "max_steps": 400}


def low(**options):
    return geometry.barycenter(Factor(array(LOW)), rank=2, **(LOW_OPTIONS | options))


def low_objective(F):
    return jnp.mean(bw.bures_wasserstein(Factor(F), Factor(array(LOW))))


def test_a_low_rank_barycenter_is_stationary_and_of_full_column_rank():
    found = low()
    F = np.asarray(found.factor, np.float64)
    assert F.shape == (5, 2)
    assert np.linalg.cond(F) < 1e2
    turned = [L @ oracles.rounded(oracles.polar(L.T @ F)) for L in LOW]
    assert_close(F, np.mean(turned, axis=0), by_precision(1e-11, 1e-4))
    gradient = jax.grad(low_objective)(found.factor)
    assert_close(gradient, 0 * F, by_precision(1e-11, 1e-3))
    assert_close(found.objective, low_objective(found.factor), by_precision(1e-13, 1e-4))


def test_no_random_start_finds_a_much_better_low_rank_barycenter():
    """There are several stationary points, all of nearly one value here."""
    found = low()
    rng = np.random.default_rng(0)
    for _ in range(5):
        start = Factor(array(rng.normal(size=(5, 2))))
        other = low(start=start)
        assert other.objective >= 0.98 * found.objective
        assert other.objective <= low_objective(start.factor)


def test_every_further_step_lowers_the_objective():
    values = [float(low(rtol=0.0, max_steps=steps).objective) for steps in range(1, 8)]
    assert np.all(np.diff(values) <= 10 * EPS * values[0])
    assert values[-1] < values[0]


def test_a_low_rank_barycenter_may_be_asked_for_under_jit():
    found = jax.jit(lambda L: geometry.barycenter(Factor(L), rank=2, **LOW_OPTIONS).objective)
    assert_close(found(array(LOW)), low().objective, by_precision(1e-13, 1e-5))


# --- entropy -------------------------------------------------------------------------------------

GAMMA = 0.1


def test_the_entropic_barycenter_satisfies_its_first_order_condition():
    """`sum w (I - T_i) + gamma (I - S^{-1}) = 0`."""
    found = mean(EASY, entropy=GAMMA)
    S = np.asarray(found.covariance, np.float64)
    maps = [oracles.rounded(oracles.transport_map(S, A)) for A in EASY]
    slope = np.eye(SIZE) - np.einsum("i,inm->nm", WEIGHTS, maps)
    slope = slope + GAMMA * (np.eye(SIZE) - np.linalg.inv(S))
    assert_close(slope, np.zeros((SIZE, SIZE)), by_precision(1e-11, 1e-3))
    distances = [float(oracles.squared_distance(S, A)) for A in EASY]
    penalty = np.trace(S) - np.linalg.slogdet(S)[1] - SIZE
    assert_close(found.objective, WEIGHTS @ distances + GAMMA * penalty, by_precision(1e-13, 1e-5))
    assert -EPS <= found.gap <= by_precision(1e-10, 1e-2)


def test_the_entropic_barycenter_of_multiples_of_identity_is_known():
    """`(1 + gamma) s - gamma / s = sum w sqrt(a)` for the root `s`."""
    values = np.array([0.5, 1.0, 2.0, 4.0])
    b = WEIGHTS @ np.sqrt(values)
    s = (b + np.sqrt(b**2 + 4 * GAMMA * (1 + GAMMA))) / (2 * (1 + GAMMA))
    found = covariance_of(values[:, None, None] * np.eye(SIZE), entropy=GAMMA)
    assert_close(found, s**2 * np.eye(SIZE), by_precision(1e-13, 1e-5))


def test_the_certificate_with_entropy_is_never_below_the_true_gap():
    best = mean(EASY, entropy=GAMMA)
    for rtol in (1e-1, 1e-3):
        found = mean(EASY, entropy=GAMMA, rtol=rtol)
        assert found.gap >= found.objective - best.objective - 10 * EPS


# --- medians -------------------------------------------------------------------------------------


def median(covariances, weights=WEIGHTS, smoothing=1e-3):
    options = PRECISE | {"rtol": by_precision(1e-12, 1e-5), "weights": array(weights)}
    return geometry.geometric_median(array(covariances), smoothing=smoothing, **options)


def test_the_median_satisfies_its_first_order_condition():
    """`sum w (I - T_i) / (eps^2 + BW^2_i)^{1/2} = 0`."""
    found = median(EASY)
    S = np.asarray(found.covariance, np.float64)
    lengths = np.sqrt([1e-6 + float(oracles.squared_distance(S, A)) for A in EASY])
    slopes = np.stack([oracles.rounded(oracles.deviation(S, A)) for A in EASY])
    slope = np.einsum("i,inm->nm", WEIGHTS / lengths, slopes)
    assert_close(slope, np.zeros((SIZE, SIZE)), by_precision(1e-9, 1e-2))
    assert_close(found.objective, WEIGHTS @ lengths, by_precision(1e-13, 1e-5))
    assert found.gap == np.inf


def test_the_median_hardly_moves_for_outliers_which_the_mean_follows():
    """Of 30 percent of the weight."""
    contaminated = np.concatenate([EASY[:3], 100 * EASY[3:]])
    weights = np.array([0.2, 0.2, 0.3, 0.3])
    centre = mean(EASY, weights * np.array([1, 1, 1, 0])).covariance
    distance = geometry.bures_wasserstein_distance
    spread = float(jnp.max(distance(array(EASY[:3]), centre)))
    assert distance(median(contaminated, weights, 1e-2).covariance, centre) < 1.5 * spread
    assert distance(mean(contaminated, weights).covariance, centre) > 5 * spread


# --- derivatives ---------------------------------------------------------------------------------


def described(found):
    return found.factor @ found.factor.T, found.objective


def of_matrices(covariances, weights):
    return described(geometry.barycenter(covariances, weights=weights, **PRECISE))


def of_factors(factors, weights):
    return described(
        geometry.barycenter(Factor(factors), weights=weights, **(PRECISE | LOW_OPTIONS))
    )


def of_entropy(covariances, weights):
    return described(geometry.barycenter(covariances, weights=weights, entropy=GAMMA, **PRECISE))


def of_median(covariances, weights):
    return described(
        geometry.geometric_median(covariances, weights=weights, smoothing=0.1, **PRECISE)
    )


DIRECTIONS = np.stack([symmetric(seed, SIZE) for seed in range(30, 30 + N)]) * 0.1
DIFFERENTIATED = {
    "matrices": (of_matrices, EASY, DIRECTIONS),
    "factors": (of_factors, LOW, np.stack([factor(seed, 5, 2) for seed in range(30, 30 + N)]) / 10),
    "entropy": (of_entropy, EASY, DIRECTIONS),
    "median": (of_median, EASY, DIRECTIONS),
}
TILT = np.array([0.1, -0.05, 0.02, -0.03])


@cache
def derivatives(name):
    """Forward and reverse, in one program."""
    function = DIFFERENTIATED[name][0]

    @jax.jit
    def both(arguments, steps, cotangents):
        _, push = jax.linearize(function, *arguments)
        return push(*steps), jax.linear_transpose(push, *arguments)(cotangents)

    return both


@pytest.mark.float64
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_derivatives_match_differences_in_data_and_weights(name):
    function, data, direction = DIFFERENTIATED[name]
    arguments, steps = (array(data), array(WEIGHTS)), (array(direction), array(TILT))
    cotangents = (array(symmetric(9, data.shape[1])), array(1.0))
    forward, pulled = derivatives(name)(arguments, steps, cotangents)
    h = 1e-5
    ahead, behind = (
        function(*(x + s * d for x, d in zip(arguments, steps, strict=True))) for s in (h, -h)
    )
    expected = jax.tree.map(lambda a, b: (a - b) / (2 * h), ahead, behind)
    for actual, wanted in zip(forward, expected, strict=True):
        assert_close(actual, wanted, 1e-8)
    reverse = sum(jnp.vdot(x, d) for x, d in zip(pulled, steps, strict=True))
    wanted = sum(jnp.vdot(x, d) for x, d in zip(cotangents, expected, strict=True))
    assert_close(reverse, wanted, 1e-8)


@pytest.mark.float64
@pytest.mark.parametrize("name", ["matrices", "factors"])
def test_second_derivatives_match_differences(name):
    function, data, direction = DIFFERENTIATED[name]
    data, direction = array(data), array(direction)
    C = array(symmetric(9, data.shape[1]))
    gradient = jax.grad(lambda x: jnp.vdot(C, function(x, array(WEIGHTS))[0]))
    program = jax.jit(lambda x: jax.jvp(gradient, (x,), (direction,)))
    h = 1e-5
    expected = (program(data + h * direction)[0] - program(data - h * direction)[0]) / (2 * h)
    assert_close(program(data)[1], expected, 1e-6)


@pytest.mark.float64
def test_the_objective_differentiates_as_a_minimum():
    """Its gradient in a covariance is `w (I - T)` for the map from that to the barycenter."""
    arguments, steps = (array(EASY), array(WEIGHTS)), (array(DIRECTIONS), array(TILT))
    cotangents = (jnp.zeros((SIZE, SIZE)), array(1.0))
    gradient = derivatives("matrices")(arguments, steps, cotangents)[1][0]
    S = reference("easy")[0]
    for w, A, found in zip(WEIGHTS, EASY, gradient, strict=True):
        symmetrised = (found + found.T) / 2
        assert_close(symmetrised, -w * oracles.rounded(oracles.deviation(A, S)), 1e-11)


@pytest.mark.float64
@pytest.mark.parametrize("exponent", [-300, -150, 150, 300])
def test_units_do_not_matter(exponent):
    found = covariance_of(array(EASY * 10.0**exponent))
    assert_close(found / 10.0**exponent, oracles.rounded(reference("easy")[0]), 1e-9)


@pytest.mark.parametrize("kind", ["barycenter", "median"])
@pytest.mark.parametrize("entry", [(0, 0), (0, 1), (2, 2)])
def test_reverse_mode_of_single_entries_agrees_with_forward_mode(kind, entry):
    """Whatever direction the gradient comes from, the linear solve behind it ends."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 5, 10))
    C, V = (array(x + x.swapaxes(1, 2)) for x in (X @ X.swapaxes(1, 2), rng.normal(size=(8, 5, 5))))

    def read(C):
        if kind == "median":
            return geometry.geometric_median(C, smoothing=0.1).covariance[entry]
        return geometry.barycenter(C).covariance[entry]

    slope = jax.jvp(read, (C,), (V,))[1]
    assert_close(jnp.sum(jax.grad(read)(C) * V), slope, by_precision(1e-6, 2e-2) * (1 + abs(slope)))
