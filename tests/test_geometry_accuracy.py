"""Distances and their derivatives against sixty digits, and where they are not smooth."""

from functools import cache

import covariance_oracles as oracles
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from covariance_oracles import assert_accurate, covariance, factor, orthogonal, symmetric
from helpers import EPS, array, assert_close, by_precision, random_target

import bwflow as bw
from bwflow import geometry
from bwflow.geometry import Factor
from bwflow.geometry._operands import cached
from bwflow.geometry._residuals import residual

N, SEEDS = 6, (0, 1, 2)
value_and_gradient = jax.jit(jax.value_and_grad(bw.bures_wasserstein))
gradients = jax.jit(jax.grad(bw.bures_wasserstein, argnums=(0, 1)))


@jax.jit
@jax.value_and_grad
def of_factors(F, G):
    return bw.bures_wasserstein(Factor(F), Factor(G))


def minus(X):
    return -oracles.rounded(X)


@cache
def pair(seed, conditions, n=N):
    return tuple(covariance(2 * seed + i, n, c) for i, c in enumerate(conditions))


# --- from matrices -------------------------------------------------------------------------------

CONDITIONS = [(10.0, 10.0), (1e8, 1e8), (1e12, 1e12)]


@pytest.mark.float64
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("conditions", CONDITIONS)
def test_squared_distance_is_exact_to_rounding_at_any_condition(conditions, seed):
    A, B = pair(seed, conditions)
    assert_accurate(bw.bures_wasserstein(A, B), oracles.squared_distance(A, B), 1e-14)


@pytest.mark.float64
@pytest.mark.parametrize("conditions", CONDITIONS)
def test_squared_distance_of_larger_matrices_is_exact_to_rounding(conditions):
    A, B = pair(5, conditions, 16)
    assert_accurate(bw.bures_wasserstein(A, B), oracles.squared_distance(A, B), 1e-14)


@pytest.mark.float64
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("conditions", [(10.0, 1e8), (1e8, 10.0), (10.0, 1e12), (1e12, 10.0)])
def test_squared_distance_of_one_bad_matrix_loses_what_its_rounding_is_worth(conditions, seed):
    """A change of one rounding of the worse matrix changes it by `||T||` times that."""
    A, B = pair(seed, conditions)
    tolerance = EPS * np.sqrt(max(conditions))
    assert_accurate(bw.bures_wasserstein(A, B), oracles.squared_distance(A, B), tolerance)


@pytest.mark.float64
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("conditions", "tolerance"),
    [
        ((10.0, 10.0), 1e-14),
        ((1e8, 1e8), 1e-14),
        ((1e8, 10.0), 1e-14),
        ((10.0, 1e8), 1e-14),
        ((1e4, 1e8), 1e-14),
        ((1e12, 1e12), 1e-9),
        ((1e12, 10.0), 1e-9),
        ((10.0, 1e12), 1e-9),
    ],
)
def test_gradient_is_identity_minus_the_map(conditions, tolerance, seed):
    A, B = pair(seed, conditions)
    assert_accurate(value_and_gradient(A, B)[1], minus(oracles.deviation(A, B)), tolerance)


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_residual_of_a_map_has_twice_the_precision(condition):
    A, T = (np.asarray(array(covariance(seed, N, condition))) for seed in range(2))
    B = np.asarray(T @ A @ T, A.dtype)
    # Only rounding is left, which a product in one precision would get wrong altogether.
    expected = oracles.residual(A, B, T)
    assert 0 < np.max(np.abs(expected)) < 30 * EPS
    assert np.max(np.abs(residual(*map(jnp.asarray, (A, B, T))) - expected)) < 1e-3 * EPS


@pytest.mark.float64
@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_in_both_arguments_are_those_of_the_maps_both_ways(seed):
    A, B = pair(seed, (1e4, 10.0))
    in_A, in_B = gradients(A, B)
    assert_accurate(in_A, minus(oracles.deviation(A, B)), 1e-12)
    assert_accurate(in_B, minus(oracles.deviation(B, A)), 1e-12)


@pytest.mark.float64
@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-6, 1e-3, 0.03])
@pytest.mark.parametrize("seed", SEEDS)
def test_nearly_coinciding_matrices_keep_their_digits(distance, seed):
    A = covariance(seed, N, 3.0)
    B = A + distance * symmetric(seed + 10, N)
    value, gradient = value_and_gradient(A, B)
    assert_accurate(value, oracles.squared_distance(A, B), 1e-13)
    assert_accurate(gradient, minus(oracles.deviation(A, B)), 1e-12)


@pytest.mark.float64
def test_nearly_coinciding_scaled_identities_keep_their_digits():
    A = np.eye(N)
    B = A + 1e-9 * symmetric(3, N)
    value, gradient = value_and_gradient(A, B)
    assert_accurate(value, oracles.squared_distance(A, B), 1e-13)
    assert_accurate(gradient, minus(oracles.deviation(A, B)), 1e-12)


@pytest.mark.parametrize("condition", [1.0, 10.0, by_precision(1e8, 1e4)])
def test_coinciding_matrices_are_at_distance_zero_with_gradient_zero(condition):
    A = array(covariance(0, N, condition))
    value, gradient = value_and_gradient(A, A)
    assert 0 <= value <= by_precision(1e-27, 1e-12)
    assert_close(gradient, np.zeros((N, N)), by_precision(1e-13, 1e-5) * np.sqrt(condition))
    assert geometry.bures_wasserstein_distance(A, A) <= by_precision(1e-13, 1e-6)


COINCIDING = {
    "matrices": (lambda A: A, covariance(0, N)),
    "singular matrices": (lambda A: A, np.diag([3.0, 2.0, 1.0, 0.0, 0.0, 0.0])),
    "singular dense matrices": (lambda A: A, covariance(0, N)[:, :2] @ covariance(0, N)[:, :2].T),
    "factors": (Factor, covariance(0, N)),
}


@pytest.mark.parametrize("case", COINCIDING)
def test_distance_of_coinciding_covariances_has_derivative_zero(case):
    of, A = COINCIDING[case]
    distance = jax.grad(lambda X, A: geometry.bures_wasserstein_distance(of(X), of(A)))
    assert_close(distance(array(A), array(A)), np.zeros((N, N)), 0.0)


def test_squared_distance_of_coinciding_factors_is_rounding():
    F = array(factor(0, 16, 5))
    Q = array(orthogonal(1, 5))
    scale = float(jnp.sum(F**2))
    assert 0 <= of_factors(F, F)[0] <= by_precision(1e-27, 1e-10)
    assert 0 <= of_factors(F, F @ Q)[0] <= 100 * EPS**2 * scale


@pytest.mark.parametrize("B", [covariance(0, N), np.diag([4.0, 4, 4, 1, 1, 1.0])])
def test_gradient_at_the_identity_is_identity_minus_the_root(B):
    found = value_and_gradient(jnp.eye(N), array(B))[1]
    expected = np.eye(N) - scipy.linalg.sqrtm(B).real
    assert_close(found, expected, by_precision(1e-14, 2e-6))


@pytest.mark.once
@pytest.mark.parametrize("seed", SEEDS)
def test_single_precision_holds_five_digits_of_bad_matrices(seed):
    """Eigenvalues below `n eps` times the largest count as 0."""
    A, B = (np.float32(X) for X in pair(seed, (1e8, 1e8)))
    A, B = (A + A.T) / 2, (B + B.T) / 2
    found = bw.bures_wasserstein(A, B)
    assert found.dtype == np.float32
    assert_accurate(found, oracles.squared_distance(A, B), 1e-5)


@pytest.mark.once
@pytest.mark.parametrize("seed", SEEDS)
def test_single_precision_holds_six_digits_of_bad_factors(seed):
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 1e-4, N)
    F, G = (np.float32(rng.normal(size=(N, N)) * spread) for _ in range(2))
    found = bw.bures_wasserstein(Factor(F), Factor(G))
    assert found.dtype == np.float32
    assert_accurate(found, oracles.squared_distance_of_factors(F, G), 1e-6)


# --- from factors --------------------------------------------------------------------------------

RANKS = {"one rank": (5, 5), "more": (3, 5), "fewer": (5, 3), "one column": (5, 1)}


@pytest.mark.float64
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_values_and_gradients_of_factors_are_exact_to_rounding(ranks, seed):
    F, G = factor(seed, 16, ranks[0]), factor(seed + 10, 16, ranks[1])
    value, gradient = of_factors(F, G)
    assert_accurate(value, oracles.squared_distance_of_factors(F, G), 1e-14)
    assert_accurate(gradient, oracles.factor_gradient(F, G), 1e-12)


@pytest.mark.float64
@pytest.mark.parametrize("spread", [1e-4, 1e-6])
@pytest.mark.parametrize("seed", SEEDS)
def test_values_and_gradients_of_bad_factors_are_exact_to_rounding(spread, seed):
    """Covariances of condition 1e8 and 1e12."""
    scales = np.geomspace(1, spread, 5)
    F, G = factor(seed, 16, 5) * scales, factor(seed + 10, 16, 5) * scales
    value, gradient = of_factors(F, G)
    assert_accurate(value, oracles.squared_distance_of_factors(F, G), 1e-14)
    assert_accurate(gradient, oracles.factor_gradient(F, G), 1e-12)


@pytest.mark.float64
@pytest.mark.parametrize("condition", [1e8, 1e12])
@pytest.mark.parametrize("seed", SEEDS)
def test_gradient_in_a_square_factor_is_that_of_the_map(condition, seed):
    """`2 (I - T) F`."""
    scales = np.geomspace(1, condition**-0.5, N)
    F = orthogonal(seed, N) * scales @ orthogonal(seed + 20, N)
    G = orthogonal(seed + 10, N) * scales
    with mpmath.workdps(oracles.DIGITS):
        X, Y = oracles.exact(F), oracles.exact(G)
        expected = -2 * oracles.deviation(X * X.T, Y * Y.T) * X
    assert_accurate(of_factors(F, G)[1], expected, 1e-12)


@pytest.mark.float64
@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-6])
def test_a_factor_keeps_digits_that_its_covariance_has_lost(small):
    """Up to a condition of 1e6, of the covariance 1e12."""
    F, G = np.diag([1.0, small]), np.diag([1.0, 2 * small])
    value, gradient = of_factors(F, G)
    assert_accurate(value, mpmath.mpf(small) ** 2, 1e-12)
    assert_accurate(gradient, np.diag([0.0, -2 * small]), 1e-12)
    assert of_factors(F, F)[0] <= 1e-27 * small**2


@pytest.mark.float64
def test_a_factor_of_rank_below_its_columns_is_exact_to_rounding():
    F, G = factor(0, 16, 3) @ factor(1, 3, 5), factor(2, 16, 5)
    with mpmath.workdps(oracles.DIGITS):
        X = oracles.exact(F)
        # The rounding of F has rank 5: it is not seen, and what it is worth is not lost.
        expected = oracles.squared_distance_of_factors(X, G)
    assert_accurate(of_factors(F, G)[0], expected, 1e-13)


# --- losses of factors ---------------------------------------------------------------------------


def smoothed(W, B):
    return bw.bures_wasserstein(W @ W.T + 0.01 * jnp.eye(len(W)), B)


@pytest.mark.float64
@pytest.mark.parametrize("rank", [1, 3])
def test_gradient_in_a_low_rank_factor_with_smoothing_is_that_of_the_map(rank):
    W, B = factor(0, N, rank), covariance(1, N)
    with mpmath.workdps(oracles.DIGITS):
        X = oracles.exact(W)
        A = X * X.T + mpmath.mpf(0.01) * mpmath.eye(N)
        expected = -2 * oracles.deviation(A, B) * X
    assert_accurate(jax.grad(smoothed)(array(W), array(B)), expected, 1e-13)


@pytest.mark.float64
@pytest.mark.parametrize("rank", [1, 3])
def test_gradient_in_a_low_rank_factor_against_a_matrix_is_that_of_the_polar_factor(rank):
    W, B = factor(0, N, rank), covariance(1, N)
    loss = lambda W: bw.bures_wasserstein(Factor(W), B)
    with mpmath.workdps(oracles.DIGITS):
        expected = oracles.factor_gradient(oracles.exact(W), oracles.root(oracles.exact(B)))
    assert_accurate(jax.grad(loss)(array(W)), expected, 1e-13)


@pytest.mark.parametrize("rank", [2, N])
def test_gradient_vanishes_at_the_optimum(rank):
    """Of factors of a rank: with smoothing `W W^T = Q_r (Lambda_r - tau) Q_r^T`."""
    eigenvalues, Q = np.geomspace(1, 0.1, N), orthogonal(0, N)
    B = (Q * eigenvalues) @ Q.T
    B = array((B + B.T) / 2)
    turn = orthogonal(1, rank)
    tolerance = by_precision(1e-13, 1e-5)
    W = array((Q[:, :rank] * np.sqrt(eigenvalues[:rank] - 0.01)) @ turn)
    assert_close(jax.grad(smoothed)(W, B), np.zeros((N, rank)), tolerance)
    W = array((Q[:, :rank] * np.sqrt(eigenvalues[:rank])) @ turn)
    loss = lambda W: bw.bures_wasserstein(Factor(W), B)
    assert_close(jax.grad(loss)(W), np.zeros((N, rank)), tolerance)


# --- second derivatives --------------------------------------------------------------------------

REPEATED = {
    "identities": (np.eye(3), 4 * np.eye(3)),
    "one matrix": (np.diag([2.0, 2.0, 1.0]), np.diag([2.0, 2.0, 1.0])),
    "commuting": (np.diag([2.0, 2.0, 1.0]), np.diag([3.0, 3.0, 3.0])),
    "one of them": (np.diag([1.0, 1.0, 5.0]), covariance(3, 3)),
}


@pytest.mark.float64
@pytest.mark.parametrize("case", REPEATED)
def test_second_derivatives_at_repeated_eigenvalues_match_sixty_digits(case):
    """Differences of the exact gradient, in 60 digits."""
    A, B = REPEATED[case]
    D, E = symmetric(0, 3), symmetric(1, 3)
    gradient = jax.grad(bw.bures_wasserstein)
    along = jax.jvp(gradient, (array(A), array(B)), (array(D), array(E)))[1]
    with mpmath.workdps(oracles.DIGITS):
        h = mpmath.mpf(10) ** -20
        A, B, D, E = (oracles.exact(X) for X in (A, B, D, E))
        ahead, behind = (oracles.transport_map(A + s * D, B + s * E) for s in (h, -h))
        expected = (behind - ahead) / (2 * h)
        expected = oracles.rounded(expected)
    assert_close(along, expected, 1e-13)


@pytest.mark.float64
@pytest.mark.parametrize("case", REPEATED)
def test_reverse_over_reverse_agrees_with_forward_over_reverse(case):
    A, B = (array(X) for X in REPEATED[case])
    forward = jax.hessian(bw.bures_wasserstein)(A, B)
    reverse = jax.jacrev(jax.jacrev(bw.bures_wasserstein))(A, B)
    assert_close(forward, reverse, 1e-13)


@pytest.mark.float64
@pytest.mark.parametrize("spectrum", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_second_derivatives_in_factors_match_differences(spectrum):
    F = np.eye(4, 3) * np.array(spectrum)
    G, D = factor(0, 4, 3), factor(1, 4, 3)
    gradient = jax.jit(jax.grad(lambda F: bw.bures_wasserstein(Factor(F), Factor(G))))
    along = jax.jvp(gradient, (array(F),), (array(D),))[1]
    h = 1e-5
    expected = (gradient(F + h * D) - gradient(F - h * D)) / (2 * h)
    assert_close(along, expected, 1e-8)


@pytest.mark.float64
def test_third_derivatives_match_differences():
    A, B, D = (array(X) for X in (np.eye(3), covariance(0, 3), symmetric(0, 3)))
    gradient = jax.grad(bw.bures_wasserstein)
    hvp = lambda A: jax.jvp(lambda A: gradient(A, B), (A,), (D,))[1]
    third = jax.jvp(hvp, (A,), (D,))[1]
    h = 1e-4
    assert_close(third, (hvp(A + h * D) - hvp(A - h * D)) / (2 * h), 1e-6)


# --- forms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["matrices", "factors"])
def test_the_form_by_traces_agrees_to_rounding_of_the_traces(kind):
    for seed in SEEDS:
        if kind == "matrices":
            A, B = (array(covariance(seed + i, N)) for i in (0, 10))
            traces = jnp.trace(A) + jnp.trace(B)
        else:
            F, G = (array(factor(seed + i, 16, 5)) for i in (0, 10))
            traces = jnp.sum(F**2) + jnp.sum(G**2)
            A, B = Factor(F), Factor(G)
        found = bw.bures_wasserstein(A, B, form="trace")
        assert_close(found, bw.bures_wasserstein(A, B), 4 * EPS * float(traces))
        assert abs(bw.bures_wasserstein(A, A, form="trace")) <= 8 * EPS * float(traces)


@pytest.mark.parametrize("size", [(14, 14), (40, 34)])
def test_both_forms_have_one_gradient_at_sizes_computed_differently(size):
    F, G = (array(factor(seed, *size) / 8) for seed in (0, 1))
    grads = [
        jax.grad(lambda F, form=form: bw.bures_wasserstein(Factor(F), Factor(G), form=form))(F)
        for form in ("residual", "trace")
    ]
    assert_close(*grads, by_precision(1e-11, 1e-3))


@pytest.mark.float64
@pytest.mark.parametrize("distance", [1.0, 1e-6])
def test_larger_factors_are_exact_to_the_rounding_of_their_difference(distance):
    """Beyond some size what cancels decides how they are computed."""
    F = factor(0, 36, 33)
    G = F + distance * factor(1, 36, 33)
    value = bw.bures_wasserstein(Factor(F), Factor(G))
    tolerance = 1e-14 + EPS * np.linalg.norm(F) / np.linalg.norm(F - G)
    assert_accurate(value, oracles.squared_distance_of_factors(F, G), tolerance)


# --- lists and batches ---------------------------------------------------------------------------

LIST = np.stack([covariance(seed, 3) for seed in range(5)])
OTHERS = np.stack([covariance(seed, 3, 4.0) for seed in range(5, 8)])


@cache
def one_by_one():
    distance = jax.jit(bw.bures_wasserstein)
    return tuple(
        np.array([[distance(array(A), array(B)) for B in others] for A in LIST])
        for others in (LIST, OTHERS)
    )


@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
def test_pairwise_distances_are_those_of_each_pair(batch_size):
    own, others = one_by_one()
    tolerance = by_precision(1e-15, 1e-6)
    options = {"batch_size": batch_size}
    found = geometry.pairwise_distances(array(LIST), squared=True, **options)
    assert_close(found, own, tolerance)
    assert np.array_equal(found, found.T)
    assert not np.any(np.diagonal(found))
    found = geometry.pairwise_distances(array(LIST), array(OTHERS), **options)
    assert_close(found, np.sqrt(others), tolerance)


def test_pairwise_distances_are_roots_of_the_squared_ones():
    found = geometry.pairwise_distances(array(LIST))
    squared = geometry.pairwise_distances(array(LIST), squared=True)
    assert_close(found**2, squared, by_precision(1e-15, 1e-6))
    gradient = jax.grad(lambda A: jnp.sum(geometry.pairwise_distances(A)))(array(LIST))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", ["factors", "factors against matrices"])
def test_pairwise_distances_take_factors(kind):
    F = array(np.stack([factor(seed, 4, 2) for seed in range(3)]))
    G = array(np.stack([factor(seed, 4, 3) for seed in range(3, 5)]))
    B = Factor(G) if kind == "factors" else Factor(G).covariance
    found = geometry.pairwise_distances(Factor(F), B, squared=True)
    for i in range(3):
        for j in range(2):
            other = Factor(G[j]) if kind == "factors" else Factor(G[j]).covariance
            expected = bw.bures_wasserstein(Factor(F[i]), other)
            assert_close(found[i, j], expected, by_precision(1e-13, 1e-4))


def test_pairwise_distances_of_nothing_and_of_one():
    assert geometry.pairwise_distances(array(LIST[:0])).shape == (0, 0)
    assert_close(geometry.pairwise_distances(array(LIST[:1])), np.zeros((1, 1)), 0.0)
    assert geometry.pairwise_distances(array(LIST), array(OTHERS[:0])).shape == (5, 0)


def test_leading_dimensions_broadcast():
    found = bw.bures_wasserstein(array(LIST[:, None]), array(OTHERS[None]))
    assert_close(found, one_by_one()[1], by_precision(1e-15, 1e-6))
    found = bw.bures_wasserstein(array(LIST), array(OTHERS[0]))
    assert_close(found, one_by_one()[1][:, 0], by_precision(1e-15, 1e-6))
    F = array(np.stack([np.linalg.cholesky(A) for A in LIST]))
    found = bw.bures_wasserstein(Factor(F[:, None]), Factor(array(np.linalg.cholesky(OTHERS))))
    assert_close(found, one_by_one()[1], by_precision(1e-14, 1e-6))
    assert bw.bures_wasserstein(array(LIST[:0]), array(LIST[0])).shape == (0,)


@pytest.mark.parametrize("other", ["one", "as many"])
@pytest.mark.slow
def test_a_large_batch_is_that_of_its_parts(other):
    n, count = 16, cached() // 16**2 + 45
    distance = jax.jit(bw.bures_wasserstein)
    roots = np.random.default_rng(0).normal(size=(2, count, n, 2 * n))
    A, B = (array(R @ np.swapaxes(R, 1, 2) / n) for R in roots)
    given = (A, B[0] if other == "one" else B)
    some = np.array([0, 1, count // 2, count // 2 + 1, count - 1])

    def total(A, B):
        values = distance(A, B)
        return jnp.sum(values), values

    slope, values = jax.grad(total, has_aux=True)(*given)
    part, expected = jax.grad(total, has_aux=True)(A[some], B[0] if other == "one" else B[some])
    assert values.shape == (count,)
    assert_close(values[some], expected, by_precision(1e-13, 1e-4))
    assert_close(slope[some], part, by_precision(1e-13, 1e-4))


def test_matrices_factors_and_targets_are_one_covariance():
    target = random_target(0, 4)
    A, F = target.covariance, target.factor
    B = array(covariance(1, 4))
    expected = bw.bures_wasserstein(A, B)
    for one in (target, Factor(F), Factor(jnp.concatenate([F, F], axis=1) / np.sqrt(2))):
        assert_close(bw.bures_wasserstein(one, B), expected, by_precision(1e-14, 2e-6))
        assert_close(bw.bures_wasserstein(B, one), expected, by_precision(1e-14, 2e-6))
        assert abs(bw.bures_wasserstein(one, A)) <= by_precision(1e-27, 1e-10)


# --- Gaussians and samples -----------------------------------------------------------------------


def test_distance_of_gaussians_adds_that_of_their_means():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    A, B = array(LIST), array(OTHERS[0])
    found = geometry.gaussian_wasserstein(array(a), A, array(b), B)
    expected = np.sum((a - b) ** 2, axis=1) + bw.bures_wasserstein(A, B)
    assert_close(found, expected, by_precision(1e-14, 1e-5))
    found = geometry.gaussian_wasserstein(array(a[0]), B, array(b), Factor(array(np.eye(3))))
    root = bw.bures_wasserstein(B, jnp.eye(3))
    assert_close(found, np.sum((a[0] - b) ** 2, axis=1) + root, by_precision(1e-13, 1e-5))


def fid(X, Y, ddof):
    """As implementations of FID compute it."""
    A, B = (np.atleast_2d(np.cov(Z, rowvar=False, ddof=ddof)) for Z in (X, Y))
    root = scipy.linalg.sqrtm(A @ B)
    means = X.mean(axis=0) - Y.mean(axis=0)
    return means @ means + np.trace(A) + np.trace(B) - 2 * np.trace(root).real


def samples(seed, num, n):
    rng = np.random.default_rng(seed)
    return oracles.in_run_precision(rng.normal(size=(num, n)) @ rng.normal(size=(n, n)) / n + 1)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("numbers", [(30, 30), (30, 21)])
def test_frechet_distance_is_that_of_implementations_of_fid(numbers, ddof):
    X, Y = (samples(seed, num, 6) for seed, num in enumerate(numbers))
    expected = fid(X, Y, ddof)
    forms = (
        lambda Z: array(Z),
        lambda Z: bw.covariances.Moments(array(Z[:7])).update(array(Z[7:])),
        lambda Z: (array(Z.mean(axis=0)), array(np.cov(Z, rowvar=False, ddof=ddof))),
    )
    for form in forms:
        found = geometry.frechet_distance(form(X), form(Y), ddof=ddof)
        assert_close(found, expected, by_precision(1e-11, 2e-5) * expected)
    found = geometry.frechet_distance(forms[0](X), forms[1](Y), ddof=ddof)
    assert_close(found, expected, by_precision(1e-11, 2e-5) * expected)


def exact_fid(X, Y, ddof):
    """Of factors of the two covariances, without rounding."""
    with mpmath.workdps(oracles.DIGITS):
        means, roots = [], []
        for Z in (X, Y):
            Z = oracles.exact(Z)
            mean = [mpmath.fsum(Z[:, j]) / Z.rows for j in range(Z.cols)]
            centred = mpmath.matrix(Z.cols, Z.rows)
            for i in range(Z.rows):
                for j in range(Z.cols):
                    centred[j, i] = (Z[i, j] - mean[j]) / mpmath.sqrt(Z.rows - ddof)
            means.append(mean)
            roots.append(centred)
        apart = mpmath.fsum((a - b) ** 2 for a, b in zip(*means, strict=True))
        return apart + oracles.squared_distance_of_factors(*roots)


@pytest.mark.parametrize("numbers", [(4, 4), (4, 7), (5, 30)])
def test_frechet_distance_of_fewer_samples_than_features_is_exact_to_rounding(numbers):
    X, Y = (samples(seed, num, 10) for seed, num in enumerate(numbers))
    found = geometry.frechet_distance(array(X), array(Y), ddof=1)
    assert_accurate(found, exact_fid(X, Y, 1), by_precision(1e-14, 2e-6))
    # A root of a product of singular matrices has half of the digits.
    assert_close(found, fid(X, Y, 1), by_precision(1e-5, 1e-2))


@pytest.mark.parametrize("other", [1, 4, 30])
def test_a_single_sample_has_no_covariance(other):
    X, Y = samples(0, 1, 6), samples(1, other, 6)
    apart = X[0] - Y.mean(axis=0)
    expected = apart @ apart + np.trace(np.cov(Y, rowvar=False, ddof=0))
    for given in ((X, Y), (Y, X)):
        found = geometry.frechet_distance(*map(array, given))
        assert_close(found, expected, by_precision(1e-14, 1e-5) * expected)
    slope = jax.grad(geometry.frechet_distance)(array(X), array(Y))
    assert_close(slope[0], 2 * apart, by_precision(1e-14, 1e-5))


@pytest.mark.float64
@pytest.mark.parametrize("num", [4, 30])
def test_gradient_of_the_frechet_distance_matches_differences(num):
    X, Y, D = (array(samples(seed, num, 6)) for seed in (0, 1, 2))
    distance = jax.jit(lambda X: geometry.frechet_distance(X, Y))
    h = 1e-5
    expected = (distance(X + h * D) - distance(X - h * D)) / (2 * h)
    assert_close(jnp.vdot(jax.grad(distance)(X), D), expected, 1e-8)


def test_frechet_distance_of_a_sample_to_itself_is_rounding():
    X = array(samples(0, 30, 6))
    assert 0 <= geometry.frechet_distance(X, X) <= by_precision(1e-27, 1e-11)


# --- programs ------------------------------------------------------------------------------------


def test_the_squared_distance_has_one_value_in_a_batch_and_alone():
    stacked = bw.bures_wasserstein(array(LIST[:, None]), array(OTHERS))
    found = jax.jit(jax.vmap(jax.vmap(bw.bures_wasserstein, (None, 0)), (0, None)))(
        array(LIST), array(OTHERS)
    )
    assert_close(found, stacked, by_precision(1e-15, 1e-6))
