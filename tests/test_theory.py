import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import GOLDEN, array, assert_close, by_precision
from scipy.integrate import solve_ivp

from bwflow import theory

FLOWS = {case["id"]: case for case in GOLDEN["flows"]}
TIGHT = by_precision(1e-12, 1e-5)
SOLVER = by_precision(1e-11, 2e-5)  # what DOP853 itself is good for


def drawn(seed, *shape):
    """Normal numbers that both precisions hold exactly."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def orthogonal(seed, n):
    return np.linalg.qr(drawn(seed, n, n))[0]


def exact(x):
    """`x` as the run's precision holds it, in float64."""
    return np.asarray(jnp.asarray(x, dtype=float), dtype=np.float64)


def relative(actual, expected):
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected)
    assert np.all(np.isfinite(actual))
    return np.max(np.abs(actual - expected) / np.abs(expected))


def integrate(velocity, start, time):
    """DOP853 on a flow of one array; `time` may be increasing, and then so is the answer."""
    times = np.atleast_1d(np.asarray(time, dtype=np.float64))
    flow = solve_ivp(
        lambda _, y: velocity(y.reshape(start.shape)).ravel(),
        (0.0, times[-1]),
        start.ravel(),
        method="DOP853",
        rtol=1e-13,
        atol=1e-15,
        t_eval=times,
    )
    assert flow.success
    path = flow.y.T.reshape((times.size, *start.shape))
    return path if np.ndim(time) else path[0]


def bures_velocity(factor, tau):
    """Minus the gradient of the smoothed loss in the end-to-end matrix."""

    def velocity(W):
        if tau == 0:
            U, _, Vt = np.linalg.svd(factor.T @ W, full_matrices=False)
            return -2 * (W - factor @ (U @ Vt))
        overlap = factor.T @ W
        values, vectors = np.linalg.eigh(overlap @ overlap.T + tau * factor.T @ factor)
        return -2 * (W - factor @ ((vectors / np.sqrt(values)) @ vectors.T) @ overlap)

    return velocity


# --- linear_flow -------------------------------------------------------------------------------


def test_linear_flow_matches_golden():
    case = FLOWS["flow_N1_tau0_generic"]
    W = theory.linear_flow(array(case["W0"][0]), array(case["B"]), case["t"])
    assert_close(W, array(case["end_to_end"]), TIGHT)


@pytest.mark.parametrize(("n", "p", "m"), [(4, 4, 4), (4, 5, 2), (5, 3, 1), (2, 6, 2)])
@pytest.mark.parametrize("time", [0.0, 0.3, 4.0])
def test_linear_flow_solves_the_layer_flow(n, p, m, time):
    W0, B = drawn(1, n, p), drawn(2, n, m)
    W = theory.linear_flow(array(W0), array(B), time)
    assert_close(W, integrate(bures_velocity(B, 0), W0, time) if time else W0, SOLVER)


def test_linear_flow_loss_decays_at_rate_four():
    W0, B, time = drawn(3, 4, 4), drawn(4, 4, 4), 0.7

    def loss(W):
        return np.sum(W**2) + np.sum(B**2) - 2 * np.linalg.norm(B.T @ W, "nuc")

    W = np.asarray(theory.linear_flow(array(W0), array(B), time), dtype=np.float64)
    assert abs(loss(W) / loss(W0) / np.exp(-4 * time) - 1) < SOLVER


# --- rank_one_flow -----------------------------------------------------------------------------


def test_rank_one_flow_matches_golden():
    case = FLOWS["flow_N1_k1_tau0_generic"]
    w = theory.rank_one_flow(array(case["W0"][0]), array(case["Sigma0"]), case["t"])
    assert_close(w, array(case["end_to_end"]), TIGHT)


@pytest.mark.parametrize("time", [0.0, 1e-3, 0.4, 6.0])
@pytest.mark.parametrize(
    "eigenvalues", [(4.0, 3.0, 1.0, 0.5), (9.0, 1e-2, 1e-4, 0.0), (1.0, 1.0, 1.0, 0.0)]
)
def test_rank_one_flow_solves_the_layer_flow(eigenvalues, time):
    Q = orthogonal(5, 4)
    Sigma = Q @ np.diag(eigenvalues) @ Q.T
    w0 = drawn(6, 4)
    w = theory.rank_one_flow(array(w0), array(Sigma), time)

    def velocity(w):
        return -2 * (w - Sigma @ w / np.sqrt(w @ Sigma @ w))

    assert_close(w, integrate(velocity, w0, time) if time else w0, SOLVER)


def test_rank_one_flow_resolves_a_late_turn():
    # The top eigenvector is nearly absent from the start and takes over long after.
    eigenvalues, w0 = np.array([64.0, 2.0**-6]), np.array([2.0**-12, 1.0])
    times = np.array([0.02, 0.06, 0.1, 0.3])

    def velocity(w):
        return -2 * w * (1 - eigenvalues / np.sqrt(eigenvalues @ w**2))

    path = jax.vmap(theory.rank_one_flow, (None, None, 0))(
        array(w0), array(np.diag(eigenvalues)), array(times)
    )
    assert_close(path, integrate(velocity, w0, exact(times)), by_precision(1e-11, 2e-4))


def test_rank_one_flow_reaches_the_best_column_and_not_infinity():
    Sigma = jnp.diag(array([9.0, 1.0, 0.0]))
    w = theory.rank_one_flow(array([0.5, -2.0, 1.0]), Sigma, 100.0)
    assert_close(w, [3.0, 0.0, 0.0], TIGHT)


@pytest.mark.parametrize(
    ("eigenvalues", "time"), [((1.0, 1e-12), 10.0), ((1e3, 1.0), 50.0), ((1.0, 1e-12), 0.1)]
)
def test_rank_one_flow_in_a_mode_below_the_largest_is_the_scalar_one(eigenvalues, time):
    w = theory.rank_one_flow(array([0.0, 1.0]), jnp.diag(array(eigenvalues)), time)
    end = np.sqrt(eigenvalues[1])
    expected = end + (1 - end) * np.exp(-2 * time)
    assert_close(w, [0.0, expected], TIGHT * expected)


def test_rank_one_flow_outside_the_range_decays():
    Sigma = jnp.diag(array([4.0, 0.0]))
    w = theory.rank_one_flow(array([0.0, 2.0]), Sigma, 1.5)
    assert_close(w, [0.0, 2 * np.exp(-3.0)], TIGHT)
    assert_close(theory.rank_one_flow(array([[0.0], [0.0]]), Sigma, 1.5), np.zeros((2, 1)), 0.0)


# --- aligned_flow ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["flow_aligned_N2_tau0", "flow_aligned_N4_tau0", "flow_aligned_N1_tau0.1"]
)
def test_aligned_flow_matches_golden(name):
    case = FLOWS[name]
    eigenvalues, Omega = np.linalg.eigh(np.array(case["Sigma0"]))
    W0 = np.eye(4)
    for layer in case["W0"]:
        W0 = np.array(layer) @ W0
    rows = Omega.T @ W0
    s0 = np.linalg.norm(rows, axis=1)
    s = theory.aligned_flow(
        array(s0), array(eigenvalues), case["t"], depth=case["N"], tau=case["tau"]
    )
    W = Omega @ (rows * (np.asarray(s, dtype=np.float64) / s0)[:, None])
    assert_close(W, np.array(case["end_to_end"], dtype=np.float64), TIGHT)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8])
def test_aligned_flow_solves_the_scalar_layer_flow(depth):
    grid = np.meshgrid([0.03, 0.5, 1.0, 3.0], [0.0, 0.25, 1.0, 4.0], [0.0, 0.1, 1.0, 2.5])
    s0, lam, tau = (exact(axis).ravel() for axis in grid)
    times = exact([0.01, 0.2, 1.0, 3.0])

    def velocity(layers):
        s = np.prod(layers, axis=0)
        return -2 * (s - s * np.sqrt(lam) / np.sqrt(s**2 + tau)) * s / layers

    # The layers' product may die out below the solver's absolute tolerance: so an absolute one.
    path = integrate(velocity, np.tile(s0 ** (1 / depth), (depth, 1)), times)
    s = jax.vmap(
        lambda t: theory.aligned_flow(array(s0), array(lam), t, depth=depth, tau=array(tau))
    )(array(times))
    assert_close(s, np.prod(path, axis=1), SOLVER)


@pytest.mark.parametrize(("depth", "tau"), [(1, 0.3), (2, 0.0), (3, 0.3)])
def test_aligned_layers_stay_aligned(depth, tau):
    Omega, V = orthogonal(7, 3), orthogonal(8, 3)
    s0, lam, time = np.array([0.4, 2.0, 1.0]), np.array([4.0, 1.0, 0.25]), 0.4
    middle = [np.diag(s0 ** (1 / depth))] * depth
    middle[0] = middle[0] @ V.T
    middle[-1] = Omega @ middle[-1]
    gradient_flow = bures_velocity(Omega * np.sqrt(lam), tau)

    def velocity(layers):
        velocities = gradient_flow(np.linalg.multi_dot([np.eye(3), *layers[::-1], np.eye(3)]))
        after, before = [np.eye(3)], [np.eye(3)]
        for left, right in zip(layers[:0:-1], layers[:-1], strict=True):
            after.insert(0, after[0] @ left)
            before.append(right @ before[-1])
        return np.stack([a.T @ velocities @ b.T for a, b in zip(after, before, strict=True)])

    layers = integrate(velocity, np.stack(middle), time)
    W = np.linalg.multi_dot([np.eye(3), *layers[::-1], np.eye(3)])
    s = theory.aligned_flow(array(s0), array(lam), time, depth=depth, tau=tau)
    assert_close(Omega @ np.diag(np.asarray(s, dtype=np.float64)) @ V.T, W, SOLVER)


def test_aligned_flow_has_the_elementary_solutions():
    grid = np.meshgrid(
        [1e-4, 0.3, 1.0, 2.0, 50.0], [1e-4, 0.25, 1.0, 16.0], [0.0, 1e-6, 1e-2, 1.0, 20.0]
    )
    s0, lam, t = (exact(axis) for axis in grid)
    b, args = np.sqrt(lam), tuple(array(axis) for axis in (s0, lam, t))
    one = b * -np.expm1(-2 * t) + s0 * np.exp(-2 * t)
    two = b * s0 / (s0 * -np.expm1(-4 * b * t) + b * np.exp(-4 * b * t))
    assert relative(theory.aligned_flow(*args, depth=1), one) < TIGHT
    assert relative(theory.aligned_flow(*args, depth=2), two) < TIGHT
    for depth in (2, 3, 4, 6):
        power = -(2 * depth - 2) / depth
        free = (s0**power + 4 * (depth - 1) * t) ** (1 / power)
        assert relative(theory.aligned_flow(args[0], 0.0, args[2], depth=depth), free) < TIGHT


def time_taken(depth, s, lam, tau):
    """An antiderivative of `1 / s'`, with the digits of mpmath's context."""
    b, r = mpmath.sqrt(lam), mpmath.sqrt(tau)
    if depth == 1:
        y = mpmath.sqrt(s**2 + tau)
        logs = r / (2 * (r - b)) * mpmath.log(y - r) + r / (2 * (r + b)) * mpmath.log(y + r)
        return -(logs + lam / (lam - tau) * mpmath.log(abs(y - b))) / 2
    if depth == 3:
        a, g = mpmath.cbrt(s), mpmath.cbrt(b)
        logs = mpmath.log(abs(a - g)) - mpmath.log(a**2 + a * g + g**2) / 2
        angle = mpmath.sqrt(3) * mpmath.atan((2 * a + g) / (mpmath.sqrt(3) * g))
        return -(1 / a + (logs + angle) / (3 * g)) / (2 * b)
    a = mpmath.root(s, 4)
    ratio = (a**2 - mpmath.sqrt(b)) / (a**2 + mpmath.sqrt(b))
    return -(1 / (b * a**2) + mpmath.log(abs(ratio)) / (2 * b ** mpmath.mpf("1.5"))) / 4


@pytest.mark.parametrize(
    ("depth", "tau"), [(1, 2.0**-20), (1, 0.125), (1, 1.5), (3, 0.0), (4, 0.0)]
)
def test_aligned_flow_satisfies_the_implicit_solution(depth, tau):
    for s0 in (2.0**-7, 0.75, 2.0, 64.0):
        for lam in (0.25, 1.0, 9.0):
            for t in (2.0**-6, 2.0**-3, 0.25):
                s = float(theory.aligned_flow(s0, lam, t, depth=depth, tau=tau))
                with mpmath.workdps(40):
                    at = [
                        time_taken(depth, mpmath.mpf(x), mpmath.mpf(lam), mpmath.mpf(tau))
                        for x in (s0, s)
                    ]
                    pull = 1 - mpmath.sqrt(mpmath.mpf(lam) / (mpmath.mpf(s) ** 2 + tau))
                    speed = 2 * depth * mpmath.mpf(s) ** (3 - mpmath.mpf(2) / depth) * abs(pull)
                    # A miss of the time, as the relative miss of s that it stands for.
                    assert abs(at[1] - at[0] - t) * speed / s < TIGHT


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_aligned_flow_at_the_edges(depth):
    s0 = array([0.0, 1.0, 1e-6, 1e4, 0.5, 0.5])
    lam = array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    for tau in (0.0, 0.5, 1.0, 5.0):
        for time in (0.0, 1e-9, 1.0, 1e9):
            s = theory.aligned_flow(s0, lam, time, depth=depth, tau=tau)
            assert np.all(np.isfinite(s))
            assert np.all(np.asarray(s) >= 0)
            assert s[0] == 0
            if time == 0:
                assert relative(s[1:], s0[1:]) < TIGHT
            if tau == 0:
                assert s[1] == 1
        rest = np.sqrt(max(1 - tau, 0))
        if tau < 1:
            assert_close(s[1:4], np.full(3, rest), TIGHT)
    s = theory.aligned_flow(array(0.0), array(0.0), 1.0, depth=depth)
    assert s == 0


@pytest.mark.float64
@pytest.mark.parametrize(
    ("lam", "tau", "depths", "power"),
    [
        (0.25, 1.0, (2, 3, 5), lambda N: -N / (N - 1)),
        (0.0, 0.0, (2, 3, 5), lambda N: -N / (N - 1)),
        (1.0, 1.0, (1, 2, 3, 5), lambda N: -2 * N / (2 * N - 1)),
    ],
    ids=["below the smoothing", "zero", "at the smoothing"],
)
def test_gaps_of_values_that_die_out_have_the_stated_powers(lam, tau, depths, power):
    """What a value adds to the loss, above what it adds at zero, written without cancellation."""
    times = np.array([1e7, 2e7])
    for depth in depths:
        s = np.asarray(theory.aligned_flow(array(1.0), lam, array(times), depth=depth, tau=tau))
        root = np.sqrt(s**2 + tau)
        gap = s**2 * (1 - 2 * np.sqrt(lam) / (root + np.sqrt(tau)))
        if lam == tau > 0:
            gap = s**4 / (root + np.sqrt(tau)) ** 2
        assert abs(np.log(gap[1] / gap[0]) / np.log(2.0) - power(depth)) < 1e-3
    # One layer below the smoothing forgets the value exponentially.
    if lam < tau:
        s = np.asarray(theory.aligned_flow(array(1.0), lam, array([20.0, 21.0]), depth=1, tau=tau))
        assert abs(np.log(s[0] / s[1]) - 2 * (1 - np.sqrt(lam / tau))) < 1e-9


# --- scalar_unbalanced_flow --------------------------------------------------------------------


def test_scalar_unbalanced_flow_matches_golden():
    case = FLOWS["flow_scalar_N2_unbalanced_tau0"]
    w1, w2 = (array(layer).squeeze() for layer in case["W0"])
    s = theory.scalar_unbalanced_flow(w1, w2, array(case["Sigma0"]).squeeze(), case["t"])
    assert_close(s, array(case["end_to_end"]).squeeze(), TIGHT)


def test_scalar_unbalanced_flow_solves_the_layer_flow():
    grid = np.meshgrid([-2.0, -0.02, 0.5, 1.5], [0.01, 0.5, 2.0], [0.0, 0.01, 1.0, 9.0])
    w1, w2, lam = (exact(axis).ravel() for axis in grid)
    times = exact([0.01, 0.3, 1.0])

    def velocity(w):
        s = w[0] * w[1]
        return -2 * (s - np.sign(s) * np.sqrt(lam)) * w[::-1]

    path = integrate(velocity, np.stack([w1, w2]), times)
    s = jax.vmap(theory.scalar_unbalanced_flow, (None, None, None, 0))(
        array(w1), array(w2), array(lam), array(times)
    )
    assert_close(s, path[:, 0] * path[:, 1], SOLVER)


def test_scalar_unbalanced_flow_is_continuous_at_balance():
    a, lam = array([0.1, 0.9, 1.0, 3.0]), array([1.0, 0.0, 1.0, 4.0])
    balanced = theory.aligned_flow(a**2, lam, 0.8, depth=2)
    eps = float(jnp.finfo(float).eps)
    for shift in (0.0, eps, 100 * eps):
        s = theory.scalar_unbalanced_flow(a, a * (1 + shift), lam, 0.8)
        assert_close(s, balanced, max(TIGHT, 1e4 * eps))


def test_scalar_unbalanced_flow_at_the_edges():
    w1, w2 = array([0.0, 0.0, -1e-6, 1e3]), array([0.0, 2.0, 1e-6, 1e-3])
    for lam in (0.0, 1.0):
        for time in (0.0, 1e-9, 1.0, 1e9):
            s = theory.scalar_unbalanced_flow(w1, w2, lam, time)
            assert np.all(np.isfinite(s))
            assert_close(s[:2], [0.0, 0.0], 0.0)
            assert s[2] <= 0 <= s[3]
        assert_close(s[2:], [-lam, lam], TIGHT)


# --- frobenius_flow ----------------------------------------------------------------------------


def test_frobenius_flow_matches_golden():
    case = FLOWS["flow_fro_N1_lowrank"]
    S = theory.frobenius_flow(array(case["W0"][0]), array(case["Sigma0"]), case["t"])
    W = np.array(case["end_to_end"], dtype=np.float64)
    assert_close(S, array(case["Sigma_end_riccati"]), TIGHT)
    assert_close(S, W @ W.T, TIGHT)


@pytest.mark.parametrize(("p", "rank"), [(1, 3), (2, 2), (3, 3), (5, 1), (2, 0)])
@pytest.mark.parametrize("time", [0.0, 0.05, 1.0])
def test_frobenius_flow_solves_the_layer_flow(p, rank, time):
    W0, B = drawn(9, 3, p), drawn(10, 3, rank)
    Sigma = exact(B @ B.T)
    S = theory.frobenius_flow(array(W0), array(Sigma), time)
    W = W0
    if time:
        W = integrate(lambda W: -4 * (W @ W.T - Sigma) @ W, W0, time)
    assert_close(S, W @ W.T, SOLVER)


def test_frobenius_flow_of_aligned_starts_is_logistic():
    s0, lam, time = np.array([0.5, 2.0, 1.0]), np.array([4.0, 1.0, 0.25]), 0.3
    Q, V = orthogonal(11, 3), orthogonal(12, 3)
    variance = lam / (1 + (lam / s0**2 - 1) * np.exp(-8 * lam * time))
    S = theory.frobenius_flow(array(Q @ np.diag(s0) @ V), array(Q @ np.diag(lam) @ Q.T), time)
    assert_close(S, Q @ np.diag(variance) @ Q.T, TIGHT)


def test_frobenius_flow_keeps_the_leading_directions():
    Q = orthogonal(13, 4)
    lam = np.array([4.0, 2.0, 1.0, 0.0])
    Sigma = array(Q @ np.diag(lam) @ Q.T)
    S = theory.frobenius_flow(array(drawn(14, 4, 2)), Sigma, 50.0)
    assert_close(S, Q @ np.diag([4.0, 2.0, 0.0, 0.0]) @ Q.T, TIGHT)


# --- all of them -------------------------------------------------------------------------------

SOLUTIONS = {
    "linear": (theory.linear_flow, (drawn(1, 3, 4), drawn(2, 3, 2))),
    "rank_one": (theory.rank_one_flow, (drawn(3, 3), np.diag([4.0, 1.0, 0.0]))),
    "aligned": (
        lambda *args: theory.aligned_flow(*args, depth=3, tau=0.1),
        (np.array([0.5, 2.0]), np.array([1.0, 0.0])),
    ),
    "smoothed": (
        lambda s, tau, time: theory.aligned_flow(s, 1.0, time, depth=2, tau=tau),
        (np.array([0.5, 2.0]), np.array([0.0, 3.0])),
    ),
    "scalar": (
        lambda *args: theory.scalar_unbalanced_flow(*args),
        (np.array([0.5, 2.0]), np.array([1.0, -1.0]), np.array([0.0, 4.0])),
    ),
    "frobenius": (theory.frobenius_flow, (drawn(4, 3, 2), np.diag([4.0, 1.0, 0.0]))),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_jit_and_vmap_agree_with_plain_calls(name):
    solution, start = SOLUTIONS[name]
    start, times = [array(x) for x in start], array([0.0, 0.2, 1.0])
    rows = [solution(*start, t) for t in times]
    assert all(row.dtype == times.dtype for row in rows)
    by_time = jax.jit(jax.vmap(solution, in_axes=(*(None for _ in start), 0)))(*start, times)
    assert_close(by_time, np.stack(rows), TIGHT)
    stacked = [jnp.stack([x, x / 2]) for x in start]
    by_start = jax.vmap(solution, in_axes=(*(0 for _ in start), None))(*stacked, times[1])
    assert_close(by_start[0], rows[1], TIGHT)
    assert_close(by_start[1], solution(*(x / 2 for x in start), times[1]), TIGHT)


@pytest.mark.parametrize("name", ["linear", "rank_one", "aligned", "smoothed"])
def test_flows_form_a_semigroup(name):
    solution, (start, *rest) = SOLUTIONS[name]
    rest = [array(x) for x in rest]
    halfway = solution(array(start), *rest, 0.3)
    assert_close(solution(halfway, *rest, 0.5), solution(array(start), *rest, 0.8), TIGHT)


def test_values_are_not_looked_at_under_a_trace():
    s = jax.jit(lambda t: theory.aligned_flow(jnp.ones(2), 4.0, t, depth=2))(-1.0)
    assert s.shape == (2,)
