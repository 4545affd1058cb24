"""Maps, couplings, geodesics and tangent vectors against closed forms, scipy and sixty digits."""

from functools import cache, partial

import covariance_oracles as oracles
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from covariance_oracles import covariance, factor, orthogonal, symmetric
from helpers import array, assert_close, by_precision

import bwflow as bw
from bwflow import geometry
from bwflow.geometry import Factor

N, K = 4, 2
A, B = covariance(0, N), covariance(1, N)
F, G = factor(0, N, K), factor(1, N, K)
WIDER = factor(2, N, 3)
TIGHT, LOOSE = by_precision(1e-13, 2e-5), by_precision(1e-11, 2e-4)
REFLECTION = orthogonal(3, K) @ np.diag([1.0, -1.0]) @ orthogonal(3, K).T
TURNS = {
    "rotation": np.array([[0.6, 0.8], [-0.8, 0.6]]),
    "reflection": REFLECTION,
}
distance = jax.jit(geometry.bures_wasserstein_distance)


def dense(S):
    """A covariance as a matrix of numpy."""
    return np.asarray(S.covariance if isinstance(S, Factor) else S, np.float64)


def of_kind(kind, x):
    return Factor(array(x)) if kind == "factor" else array(x)


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [10.0, by_precision(1e6, 1e2)])
def test_map_is_the_positive_solution_of_its_equation(condition):
    A, B = covariance(4, N, condition), covariance(5, N)
    T = np.asarray(geometry.transport_map(array(A), array(B)), np.float64)
    assert_close(T, T.T, 0.0)
    assert np.linalg.eigvalsh(T)[0] > 0
    # Off by the rounding of T, of which A takes a part.
    assert_close(T @ A @ T, B, by_precision(1e-15, 1e-6) * condition)
    expected = oracles.rounded(oracles.transport_map(A, B))
    assert_close(T, expected, by_precision(1e-15, 1e-6) * condition * np.linalg.norm(expected))


def test_maps_there_and_back_are_inverses():
    there, back = (
        geometry.transport_map(array(A), array(B)),
        geometry.transport_map(array(B), array(A)),
    )
    assert_close(there @ back, np.eye(N), LOOSE)


def test_map_of_factors_is_that_of_their_covariances():
    L, M = (np.linalg.cholesky(S) for S in (A, B))
    expected = geometry.transport_map(array(A), array(B))
    for first, second in (
        (Factor(array(L)), Factor(array(M @ orthogonal(0, N)))),
        (Factor(array(L)), array(B)),
        (array(A), Factor(array(M))),
    ):
        assert_close(geometry.transport_map(first, second), expected, LOOSE)


@pytest.mark.parametrize("kind", ["factor", "matrix"])
def test_map_from_a_singular_covariance_is_right_on_its_range(kind):
    first, second = of_kind(kind, F), of_kind(kind, G)
    if kind == "matrix":
        first, second = (array(X @ X.T) for X in (F, G))
    T = np.asarray(geometry.transport_map(first, second), np.float64)
    assert_close(T, T.T, TIGHT)
    S = F @ F.T
    tolerance = by_precision(1e-11, 2e-3)
    assert_close(T @ S @ T, G @ G.T, tolerance)
    aligned = G @ oracles.rounded(oracles.polar(G.T @ F))
    assert_close(T @ F, aligned, tolerance)
    outside = np.eye(N) - F @ np.linalg.pinv(F)
    assert_close(outside @ T @ outside, np.zeros((N, N)), tolerance)


def test_map_to_a_larger_rank_reaches_a_part_of_it():
    T = np.asarray(geometry.transport_map(Factor(array(F)), array(B)), np.float64)
    reached = T @ F @ F.T @ T
    left = np.linalg.eigvalsh(B - reached)
    assert left[0] > -LOOSE
    assert np.sum(left > 1e-3) == N - K


@pytest.mark.parametrize("kinds", ["matrix matrix", "factor factor", "factor matrix"])
def test_transport_moves_points_by_the_map(kinds):
    X = array(np.random.default_rng(0).normal(size=(5, N)))
    given = {"matrix": (array(A), array(B)), "factor": (Factor(array(F)), Factor(array(G)))}
    first, second = (given[kind][i] for i, kind in enumerate(kinds.split()))
    T = geometry.transport_map(first, second)
    assert_close(geometry.transport(first, second, X), X @ T, LOOSE)
    several = geometry.transport(first, second, jnp.stack([X, 2 * X]))
    assert_close(several[1], 2 * X @ T, LOOSE)


def test_transported_columns_of_a_factor_are_the_aligned_ones():
    moved = geometry.transport(Factor(array(F)), Factor(array(G)), array(F.T)).T
    assert_close(moved, G @ oracles.rounded(oracles.polar(G.T @ F)), LOOSE)


PAIRS = {
    "matrices": (array(A), array(B)),
    "factors": (Factor(array(F)), Factor(array(G))),
    "ranks that differ": (Factor(array(F)), Factor(array(WIDER))),
    "a factor and a matrix": (Factor(array(F)), array(B)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_optimal_coupling_has_its_marginals_and_the_least_cost(name):
    first, second = PAIRS[name]
    coupling = geometry.optimal_coupling(first, second)
    assert isinstance(coupling, Factor) == (name in ("factors", "ranks that differ"))
    joint = dense(coupling)
    assert_close(joint, joint.T, 0.0 if isinstance(coupling, Factor) else TIGHT)
    assert np.linalg.eigvalsh(joint)[0] > -TIGHT
    assert_close(joint[:N, :N], dense(first), TIGHT)
    assert_close(joint[N:, N:], dense(second), TIGHT)
    apart = np.hstack([np.eye(N), -np.eye(N)])
    cost = np.trace(apart @ joint @ apart.T)
    assert_close(cost, bw.bures_wasserstein(first, second), TIGHT)
    if name == "matrices":
        T = geometry.transport_map(array(A), array(B))
        assert_close(joint[:N, N:], A @ np.asarray(T), TIGHT)


TIMES = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("name", PAIRS)
def test_geodesics_have_constant_speed_and_their_ends(name):
    first, second = PAIRS[name]
    curve = geometry.geodesic(first, second, array(TIMES))
    assert isinstance(curve, Factor) == (name in ("factors", "ranks that differ"))
    assert_close(dense(curve)[0], dense(first), TIGHT)
    assert_close(dense(curve)[-1], dense(second), TIGHT)
    found = geometry.pairwise_distances(curve)
    whole = float(distance(first, second))
    expected = np.abs(TIMES[:, None] - TIMES) * whole
    # From matrices, eigenvalues that are zero come with their rounding, and lengths with its root.
    rounding = name == "a factor and a matrix"
    assert_close(found, expected, by_precision(1e-7 if rounding else 1e-12, 1e-3))


def test_geodesics_of_commuting_matrices_are_known():
    a, b = np.array([1.0, 4.0, 9.0, 2.0]), np.array([4.0, 1.0, 0.0, 2.0])
    found = geometry.geodesic(array(np.diag(a)), array(np.diag(b)), array(0.3))
    expected = np.diag((0.7 * np.sqrt(a) + 0.3 * np.sqrt(b)) ** 2)
    assert_close(found, expected, TIGHT * 10)


# --- tangent vectors -----------------------------------------------------------------------------

POINTS = {"matrix": (array(A), array(B)), "factor": (Factor(array(F)), Factor(array(G)))}


@pytest.mark.parametrize("kind", POINTS)
def test_exponential_undoes_the_logarithm(kind):
    first, second = POINTS[kind]
    V = geometry.log(first, second)
    assert_close(dense(geometry.exp(first, V)), dense(second), LOOSE)
    assert_close(geometry.norm(first, V), distance(first, second), TIGHT)
    at = geometry.geodesic(first, second, array(0.3))
    assert_close(dense(geometry.exp(first, 0.3 * V)), dense(at), LOOSE)


@pytest.mark.parametrize("kind", POINTS)
def test_logarithm_undoes_the_exponential_within_the_radius(kind):
    first = POINTS[kind][0]
    V = geometry.tangent_projection(
        first, array(np.random.default_rng(5).normal(size=(N, N if kind == "matrix" else K)))
    )
    V = V * (0.9 * geometry.injectivity_radius(first) / geometry.norm(first, V))
    end = geometry.exp(first, V)
    assert_close(geometry.log(first, end), V, LOOSE)
    assert_close(distance(first, end), geometry.norm(first, V), LOOSE)


def test_injectivity_radius_is_the_root_of_the_least_eigenvalue():
    values = np.linalg.eigvalsh(A)
    assert_close(geometry.injectivity_radius(array(A)), np.sqrt(values[0]), TIGHT)
    least = np.linalg.svd(F, compute_uv=False)[-1]
    assert_close(geometry.injectivity_radius(Factor(array(F))), least, TIGHT)
    assert_close(geometry.injectivity_radius(array(F @ F.T)), 0.0, by_precision(1e-12, 1e-5))
    wide = Factor(array(factor(0, 2, 3)))
    assert geometry.injectivity_radius(wide) == 0
    both = geometry.injectivity_radius(array(np.stack([A, B])))
    expected = [np.linalg.eigvalsh(S)[0] ** 0.5 for S in (A, B)]
    assert_close(both, np.array(expected), TIGHT)


def test_beyond_the_radius_the_exponential_is_no_shortest_curve():
    V = geometry.log(array(A), array(B))
    least = np.linalg.eigh(A)[1][:, :1]
    V = array(-2 * least @ least.T) * geometry.injectivity_radius(array(A)) ** 2
    assert_close(geometry.norm(array(A), V), geometry.injectivity_radius(array(A)), TIGHT)
    beyond = geometry.exp(array(A), 1.5 * V)
    length = 1.5 * geometry.norm(array(A), V)
    assert distance(array(A), beyond) < 0.9 * length


@pytest.mark.parametrize("condition", [10.0, 1e4])
def test_metric_is_that_of_the_equation(condition):
    A = covariance(0, N, condition)
    U, V = symmetric(1, N), symmetric(2, N)
    with mpmath.workdps(oracles.DIGITS):
        S, R = oracles.sylvester(A, U), oracles.sylvester(A, V)
        expected = oracles.trace(S * oracles.exact(A) * R)
    found = geometry.inner_product(array(A), array(U), array(V))
    assert_close(found, float(expected), by_precision(1e-14, 1e-6) * condition**1.5)
    by_scipy = scipy.linalg.solve_sylvester(A, A, U)
    assert_close(found, np.trace(by_scipy @ V) / 2, by_precision(1e-14, 1e-6) * condition**1.5)
    assert_close(geometry.norm(array(A), array(0 * U)), 0.0, 0.0)
    assert_close(jax.grad(lambda V: geometry.norm(array(A), V))(array(0 * U)), 0 * U, 0.0)


def test_metric_of_lifts_is_that_of_what_they_stand_for():
    """At a regular factor, where both are known."""
    L = np.linalg.cholesky(A)
    U, V = symmetric(1, N), symmetric(2, N)
    lifts = [scipy.linalg.solve_sylvester(A, A, X) @ L for X in (U, V)]
    found = geometry.inner_product(Factor(array(L)), *(array(Z) for Z in lifts))
    assert_close(found, geometry.inner_product(array(A), array(U), array(V)), LOOSE)


@pytest.mark.parametrize("singular", [False, True])
def test_projection_at_a_matrix_is_orthogonal_and_idempotent(singular):
    S = F @ F.T if singular else A
    V = array(np.random.default_rng(0).normal(size=(N, N)))
    P = geometry.tangent_projection(array(S), V)
    assert_close(P, P.T, TIGHT)
    assert_close(geometry.tangent_projection(array(S), P), P, TIGHT)
    R = S @ np.linalg.pinv(S, rcond=1e-4)
    outside = np.eye(N) - R
    assert_close(outside @ np.asarray(P) @ outside, np.zeros((N, N)), TIGHT)
    # What is taken away is orthogonal to every tangent vector F Z^T + Z F^T.
    Z = np.random.default_rng(1).normal(size=(N, N))
    tangent = S @ Z + Z.T @ S
    assert_close(np.vdot(np.asarray(V - P), tangent), 0.0, TIGHT * 100)


def test_projection_at_a_factor_is_horizontal_orthogonal_and_idempotent():
    V = array(np.random.default_rng(0).normal(size=(N, K)))
    at = Factor(array(F))
    Z = geometry.tangent_projection(at, V)
    assert_close(F.T @ np.asarray(Z), np.asarray(Z).T @ F, TIGHT * 10)
    assert_close(geometry.tangent_projection(at, Z), Z, TIGHT * 10)
    vertical = F @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    assert_close(np.vdot(vertical, Z), 0.0, TIGHT * 10)
    W = np.linalg.lstsq(F, np.asarray(V - Z, np.float64), rcond=None)[0]
    assert_close(W, -W.T, LOOSE)
    assert_close(F @ W, V - Z, LOOSE)


# --- derivatives of functions --------------------------------------------------------------------


def function(S):
    """A smooth function of covariances, which does not belong to the geometry."""
    C = array(covariance(7, N))
    return jnp.sum((S @ C) * (C @ S)) / 2 + jnp.sum(jnp.sin(S) * C)


def euclidean(S, V):
    """The symmetric gradient and its derivative along `V`."""
    return jax.jvp(jax.grad(function), (S,), (V,))


def along(first, V, t):
    return function(array(dense(geometry.exp(first, t * V))))


@cache
def tangent(kind):
    """A point, a tangent vector, and what it stands for."""
    first, second = POINTS[kind]
    V = 0.3 * geometry.log(first, second)
    if kind == "matrix":
        return first, V, V
    lifted = first.factor @ V.T
    return first, V, lifted + lifted.T


@pytest.mark.float64
@pytest.mark.parametrize("kind", POINTS)
def test_gradient_is_the_slope_along_geodesics(kind):
    first, V, D = tangent(kind)
    E = euclidean(array(dense(first)), D)[0]
    gradient = geometry.riemannian_gradient(first, E)
    slope = geometry.inner_product(first, gradient, V)
    h = 1e-5
    assert_close(slope, (along(first, V, h) - along(first, V, -h)) / (2 * h), 1e-8)
    assert_close(slope, jnp.vdot(E, D), 1e-13)


@pytest.mark.float64
@pytest.mark.parametrize("kind", POINTS)
def test_hessian_is_the_curvature_along_geodesics(kind):
    first, V, D = tangent(kind)
    E, dE = euclidean(array(dense(first)), D)
    hessian = geometry.riemannian_hessian(first, E, dE, V)
    h = 1e-3
    curvature = (along(first, V, h) - 2 * along(first, V, 0.0) + along(first, V, -h)) / h**2
    assert_close(geometry.inner_product(first, hessian, V), curvature, 1e-6)
    assert_close(geometry.tangent_projection(first, hessian), hessian, 1e-13)


@pytest.mark.parametrize("kind", POINTS)
def test_hessian_is_symmetric(kind):
    first = POINTS[kind][0]
    shape = (N, N) if kind == "matrix" else (N, K)
    rng = np.random.default_rng(6)
    U, V = (geometry.tangent_projection(first, array(rng.normal(size=shape))) for _ in range(2))

    def applied(V):
        D = V if kind == "matrix" else first.factor @ V.T + V @ first.factor.T
        return geometry.riemannian_hessian(first, *euclidean(array(dense(first)), D), V)

    one = geometry.inner_product(first, U, applied(V))
    other = geometry.inner_product(first, applied(U), V)
    assert_close(one, other, by_precision(1e-11, 1e-2))


@pytest.mark.parametrize("kind", POINTS)
def test_gradient_of_half_the_squared_distance_is_minus_the_logarithm(kind):
    first, second = POINTS[kind]
    if kind == "matrix":
        E = jax.grad(bw.bures_wasserstein)(first, second) / 2
        found = geometry.riemannian_gradient(first, E)
    else:
        found = jax.grad(lambda F: bw.bures_wasserstein(Factor(F), second))(first.factor) / 2
    assert_close(found, -geometry.log(first, second), LOOSE)


# --- parallel transport --------------------------------------------------------------------------


def random_tangents(kind, count):
    first = POINTS[kind][0]
    shape = (count, N, N) if kind == "matrix" else (count, N, K)
    return geometry.tangent_projection(first, array(np.random.default_rng(8).normal(size=shape)))


@cache
def transported(kind):
    """Vectors, among them the velocity; those at the end, and where that is."""
    first, second = POINTS[kind]
    V = jnp.concatenate([random_tangents(kind, 2), geometry.log(first, second)[None]])
    moved = geometry.parallel_transport(first, second, V)
    end = second
    if kind == "factor":
        end = Factor(first.factor + geometry.log(first, second))
    return V, moved, end


@pytest.mark.parametrize("kind", POINTS)
def test_parallel_transport_keeps_lengths_and_angles(kind):
    V, moved, end = transported(kind)
    first = POINTS[kind][0]
    before = geometry.inner_product(first, V[:, None], V[None])
    after = geometry.inner_product(end, moved[:, None], moved[None])
    assert_close(after, before, by_precision(1e-11, 1e-3))


@pytest.mark.parametrize("kind", POINTS)
def test_parallel_transport_takes_the_velocity_to_the_velocity(kind):
    _, moved, end = transported(kind)
    first = POINTS[kind][0]
    assert_close(moved[2], -geometry.log(end, first), by_precision(1e-11, 1e-3))


@pytest.mark.parametrize("kind", POINTS)
def test_parallel_transport_back_is_the_inverse(kind):
    V, moved, end = transported(kind)
    back = geometry.parallel_transport(end, POINTS[kind][0], moved)
    assert_close(back, V, by_precision(1e-11, 1e-3))


def test_parallel_transport_of_lifts_is_that_of_matrices():
    L, M = (np.linalg.cholesky(S) for S in (A, B))
    V, moved, _ = transported("matrix")
    S = np.stack([scipy.linalg.solve_sylvester(A, A, np.asarray(X, np.float64)) for X in V])
    first, second = Factor(array(L)), Factor(array(M))
    lifts = geometry.parallel_transport(first, second, array(S @ L))
    end = np.asarray(first.factor + geometry.log(first, second), np.float64)
    found = np.asarray(lifts, np.float64) @ end.T
    assert_close(found + np.swapaxes(found, -1, -2), moved, by_precision(1e-11, 1e-3))


def test_parallel_transport_of_commuting_matrices_is_known():
    """`S_t = (s_i r_j + ...)`: along diagonals, entries keep `V_ij^2 / (a_i + a_j)`."""
    a, b = np.array([1.0, 2.0, 3.0, 0.5]), np.array([4.0, 1.0, 2.0, 0.5])
    V = symmetric(0, N)
    found = geometry.parallel_transport(array(np.diag(a)), array(np.diag(b)), array(V))
    scale = np.sqrt((b[:, None] + b) / (a[:, None] + a))
    assert_close(found, V * scale, by_precision(1e-11, 1e-4))


# --- factors up to rotations ---------------------------------------------------------------------


@pytest.mark.parametrize("turn", TURNS)
def test_nothing_depends_on_which_factor_stands_for_a_covariance(turn):
    Q = TURNS[turn]
    first, second = POINTS["factor"]
    turned, other = Factor(array(F @ Q)), Factor(array(G @ Q))
    tolerance = by_precision(1e-12, 2e-4)
    for name in ("transport_map", "optimal_coupling"):
        expected = dense(getattr(geometry, name)(first, second))
        for pair in ((turned, second), (first, other), (turned, other)):
            assert_close(dense(getattr(geometry, name)(*pair)), expected, tolerance)
    at = array(0.3)
    expected = dense(geometry.geodesic(first, second, at))
    assert_close(dense(geometry.geodesic(turned, second, at)), expected, tolerance)
    assert_close(distance(turned, other), distance(first, second), tolerance)
    V = geometry.log(first, second)
    assert_close(geometry.log(first, other), V, tolerance)
    assert_close(geometry.log(turned, second), V @ array(Q), tolerance)
    moved = geometry.parallel_transport(first, second, V)
    assert_close(
        geometry.parallel_transport(turned, other, V @ array(Q)), moved @ array(Q), 10 * tolerance
    )
    E = array(symmetric(0, N))
    for function in (
        partial(geometry.riemannian_gradient, E=E),
        partial(geometry.riemannian_hessian, E=E, dE=E @ E),
    ):
        options = [{"V": V}, {"V": V @ array(Q)}] if "dE" in function.keywords else [{}, {}]
        expected = function(first, **options[0]) @ array(Q)
        assert_close(function(turned, **options[1]), expected, tolerance)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_factor_is_at_distance_zero(turn):
    turned = Factor(array(F @ TURNS[turn]))
    first = Factor(array(F))
    assert bw.bures_wasserstein(first, turned) <= by_precision(1e-29, 1e-11)
    assert_close(geometry.log(first, turned), 0 * F, by_precision(1e-14, 1e-5))
