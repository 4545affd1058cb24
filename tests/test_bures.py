"""The loss and its derivatives: high-precision reference values, and degenerate points."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import (
    EPS,
    GOLDEN,
    X64,
    array,
    assert_close,
    by_precision,
    cases,
    first,
    gaussian_factors,
    golden_target,
    random_target,
)

import bwflow as bw
from bwflow.factors import Deep


def golden_factors(case):
    return tuple(array(W) for W in case["W"])


def scale(case, target):
    """`||W|| + ||B||`, in which gradient errors are measured."""
    W = bw.end_to_end(golden_factors(case))
    return float(jnp.linalg.norm(W) + jnp.linalg.norm(target.factor))


def bound_loss(case):
    target = golden_target(case)
    return target, lambda W: bw.smoothed_bures(W, target, tau=case["tau"])


@pytest.mark.parametrize("case", **cases("static"))
def test_golden_loss(case):
    target, loss = bound_loss(case)
    expected = float(case["loss"])
    tolerance = by_precision(1e-13, 2e-6) * expected
    if case["id"].startswith("near_optimum"):
        # A sum of squares is off by its inputs' rounding times the root of its value.
        rounding = 2 * np.sqrt(expected) * EPS * scale(case, target) * len(target.eigenvalues)
        tolerance = by_precision(1e-9 * expected, rounding)
    assert_close(loss(bw.end_to_end(golden_factors(case))), expected, tolerance)


@pytest.mark.parametrize("case", **cases("static"))
def test_golden_end_to_end_gradient(case):
    target, loss = bound_loss(case)
    expected = case["grad_end_to_end"] or case["grad_end_to_end_Z0"]
    gradient = jax.grad(loss)(bw.end_to_end(golden_factors(case)))
    assert_close(gradient, array(expected), by_precision(1e-13, 5e-6) * scale(case, target))


@pytest.mark.parametrize("case", **cases("static"))
def test_golden_layer_gradients(case):
    if case["grad_W"] is None:
        # Not differentiable there: the convention's subgradient has to be finite.
        target, loss = bound_loss(case)
        assert np.all(np.isfinite(jax.grad(loss)(golden_factors(case)[0])))
        return
    target, loss = bound_loss(case)
    factors = golden_factors(case)
    G = jax.grad(loss)(bw.end_to_end(factors))
    tolerance = by_precision(1e-13, 5e-6) * scale(case, target)
    for gradient, expected in zip(Deep().pullback(factors, G), case["grad_W"], strict=True):
        assert_close(gradient, array(expected), tolerance)
    direct = jax.grad(lambda factors: loss(bw.end_to_end(factors)))(factors)
    for gradient, expected in zip(direct, case["grad_W"], strict=True):
        assert_close(gradient, array(expected), tolerance)


WITH_DIRECTION = [case for case in GOLDEN["static"] if "hvp_direction" in case]


@pytest.mark.float64
@pytest.mark.parametrize("case", first(6, WITH_DIRECTION), ids=lambda case: case["id"])
def test_golden_hessian_vector_products_in_both_modes(case):
    _, loss = bound_loss(case)
    W, D = bw.end_to_end(golden_factors(case)), array(case["hvp_direction"])
    expected = array(case["hvp_end_to_end"])
    tolerance = 1e-11 * float(jnp.max(jnp.abs(expected)) + jnp.max(jnp.abs(D)))
    assert_close(jax.jvp(jax.grad(loss), (W,), (D,))[1], expected, tolerance)
    assert_close(jax.grad(lambda W: jnp.vdot(jax.grad(loss)(W), D))(W), expected, tolerance)


WITH_COVARIANCE = [case for case in GOLDEN["static"] if "grad_Sigma" in case]


@pytest.mark.float64
@pytest.mark.parametrize("case", WITH_COVARIANCE, ids=[case["id"] for case in WITH_COVARIANCE])
def test_golden_covariance_gradient_of_the_distance(case):
    """The gradient of `BW^2(S, Sigma0)` in `S` at `S = W W^T + tau I`, from matrices."""
    target = golden_target(case)
    W = bw.end_to_end(golden_factors(case))
    S = W @ W.T + case["tau"] * jnp.eye(W.shape[0])
    values = np.linalg.eigvalsh(S)
    if values[0] < 1e-14 * values[-1]:
        assert np.all(np.isfinite(jax.grad(bw.bures_wasserstein)(S, target.covariance)))
        return
    gradient = jax.grad(bw.bures_wasserstein)(S, target.covariance)
    # From matrices, T has lost as many digits as the conditions of the two together.
    spread = np.sqrt(target.eigenvalues[0] / values[0]) * (
        values[-1] / values[0] + target.eigenvalues[0] / target.eigenvalues[-1]
    )
    assert_close(gradient, array(case["grad_Sigma"]), 1e-14 * float(spread) + 1e-12)


def exact_distance(A, B):
    """`BW^2` in 60 digits, as the sum over eigenvalues of `A B`."""
    with mpmath.workdps(60):
        A, B = mpmath.matrix(A.tolist()), mpmath.matrix(B.tolist())
        roots = [mpmath.sqrt(abs(mpmath.re(x))) for x in mpmath.eig(A * B)[0]]
        trace = sum(A[i, i] + B[i, i] for i in range(A.rows))
        return float(trace - 2 * sum(roots))


def spd(seed, n, condition):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    S = (Q * np.geomspace(1, 1 / condition, n)) @ Q.T
    return np.asarray((S + S.T) / 2, dtype=np.float64 if X64 else np.float32).astype(np.float64)


@pytest.mark.parametrize("condition", [10.0, 1e4, by_precision(1e8, 1e4)])
def test_distance_of_matrices_agrees_with_sixty_digits(condition):
    A, B = spd(0, 5, condition), spd(1, 5, 10.0)
    # A matrix holds its smallest eigenvalue to eps * condition, and the distance its root.
    assert_close(
        bw.bures_wasserstein(array(A), array(B)),
        exact_distance(A, B),
        by_precision(1e-13, 1e-5) + EPS * np.sqrt(condition),
    )


def test_distance_is_symmetric_zero_when_coincident_and_never_negative():
    A, B = array(spd(0, 4, 10.0)), array(spd(1, 4, 10.0))
    assert_close(bw.bures_wasserstein(A, B), bw.bures_wasserstein(B, A), by_precision(1e-14, 1e-6))
    assert 0 <= bw.bures_wasserstein(A, A) <= by_precision(1e-27, 1e-10)
    assert_close(jax.grad(bw.bures_wasserstein)(A, A), np.zeros((4, 4)), by_precision(1e-13, 1e-4))


@pytest.mark.parametrize("A", [np.eye(3), np.diag([1.0, 0.0, 0.0]), np.zeros((3, 3))])
@pytest.mark.parametrize("B", [np.eye(3), np.diag([0.0, 2.0, 2.0]), np.zeros((3, 3))])
def test_distance_and_its_gradients_are_finite_at_degenerate_pairs(A, B):
    expected = np.trace(A) + np.trace(B) - 2 * np.sum(np.sqrt(np.diag(A) * np.diag(B)))
    assert_close(bw.bures_wasserstein(array(A), array(B)), expected, by_precision(1e-14, 1e-6))
    for gradient in jax.grad(bw.bures_wasserstein, argnums=(0, 1))(array(A), array(B)):
        assert np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(jax.hessian(bw.bures_wasserstein)(array(A), array(B))))


@pytest.mark.float64
def test_gradients_of_the_distance_match_differences_in_both_arguments():
    A, B = array(spd(0, 4, 10.0)), array(spd(1, 4, 10.0))
    D = array(np.diag([1.0, -1.0, 0.5, 0.2]) + 0.1)
    h = 2e-6
    for position in (0, 1):
        step = (D, 0 * D) if position == 0 else (0 * D, D)
        at = lambda t, step=step: bw.bures_wasserstein(A + t * step[0], B + t * step[1])
        expected = (at(h) - at(-h)) / (2 * h)
        gradient = jax.grad(bw.bures_wasserstein, argnums=position)(A, B)
        assert_close(jnp.vdot(gradient, D), expected, 1e-9)


DEGENERATE = {
    "identity": (np.eye(3), 0.1),
    "identity without smoothing": (np.eye(3), 0.0),
    "zero": (np.zeros((3, 3)), 0.1),
    "rank one": (np.outer([1.0, 2.0, 0.0], [1.0, 0.0, 1.0]), 0.1),
    "rank one without smoothing": (np.outer([1.0, 2.0, 0.0], [1.0, 0.0, 1.0]), 0.0),
    "at the target": (2 * np.eye(3), 0.0),
    "narrow": (np.eye(3)[:, :1], 0.0),
    "wide": (np.eye(3, 5), 0.1),
}
MODES = {
    "grad": jax.grad,
    "jacfwd": jax.jacfwd,
    "jacrev": jax.jacrev,
    "hessian": jax.hessian,
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", DEGENERATE)
def test_derivatives_are_finite_at_degenerate_points(point, mode):
    W, tau = DEGENERATE[point]
    target = bw.Target(4.0 * jnp.eye(3))
    derivative = MODES[mode](lambda W: bw.smoothed_bures(W, target, tau=tau))
    assert np.all(np.isfinite(jax.jit(derivative)(array(W))))
    batched = jax.vmap(derivative)(jnp.stack([array(W)] * 2))
    assert np.all(np.isfinite(batched))


def test_zero_layer_gives_finite_layer_hessian():
    factors = (jnp.zeros((3, 3)), jnp.eye(3))
    target = bw.Target(jnp.eye(3))
    hessian = jax.hessian(lambda f: bw.smoothed_bures(bw.end_to_end(f), target, tau=0.1))(factors)
    assert all(np.all(np.isfinite(block)) for block in jax.tree.leaves(hessian))


def test_loss_has_a_global_quadratic_upper_bound():
    """`L(W + D) <= L(W) + <G, D> + ||D||^2`, across kinks too."""
    target = random_target(0, 4)
    rng = np.random.default_rng(0)
    for tau in (0.0, 1e-3, 0.1):
        loss = lambda W, tau=tau: bw.smoothed_bures(W, target, tau=tau)
        for _ in range(20):
            W, D = (array(rng.normal(size=(4, 3)) * rng.uniform(0.01, 2)) for _ in range(2))
            value, G = jax.value_and_grad(loss)(W)
            assert loss(W + D) <= value + jnp.vdot(G, D) + jnp.vdot(D, D) + 50 * EPS * (1 + value)


def numpy_distance(W, B):
    return np.sum(W**2) + np.sum(B**2) - 2 * np.sum(np.linalg.svd(B.T @ W, compute_uv=False))


@pytest.mark.float64
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_slopes_at_a_kink_are_one_sided_and_bend_down(rank):
    """`2 <W, D> - 2 tr(U^T B^T D V) - 2 ||U_perp^T B^T D V_perp||_*`, against differences."""
    rng, h = np.random.default_rng(rank), 1e-7
    B = rng.normal(size=(5, 4))
    W = rng.normal(size=(5, rank)) @ rng.normal(size=(rank, 3))
    target = bw.Target.from_factor(array(B))
    found = np.asarray(jax.grad(lambda W: bw.smoothed_bures(W, target, tau=0.0))(array(W)))
    U, _, Vt = np.linalg.svd(B.T @ W)
    # The subgradient whose polar factor has the rank of B^T W.
    assert_close(found, 2 * (W - B @ U[:, :rank] @ Vt[:rank]), 1e-12)
    for _ in range(5):
        D = rng.normal(size=W.shape)
        jump = U[:, rank:].T @ B.T @ D @ Vt[rank:].T
        jump = np.sum(np.linalg.svd(jump, compute_uv=False))
        up, down = ((numpy_distance(W + e * D, B) - numpy_distance(W, B)) / h for e in (h, -h))
        assert_close(up, np.sum(found * D) - 2 * jump, 1e-4)
        assert_close(up + down, -4 * jump, 1e-4)
        assert jump > 0.1


@pytest.mark.float64
def test_layer_gradients_do_not_see_the_choice_at_a_kink():
    """Of a bottleneck as wide as the rank of the product; where the product is below, they do."""
    rng = np.random.default_rng(0)
    B, Z = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    for widths, seen in (((3, 2, 5), False), ((3, 2, 4, 5), False), ((3, 3, 3, 5), True)):
        layers = [np.array(W) for W in gaussian_factors(1, widths)]
        if seen:
            layers[1][:, 0] = layers[1][:, 1]
        W = np.linalg.multi_dot(layers[::-1])
        U, _, Vt = np.linalg.svd(B.T @ W)
        choice = (U[:, 2:] @ U[:, 2:].T) @ Z @ (Vt[2:].T @ Vt[2:])
        moved = Deep().pullback(tuple(array(W) for W in layers), array(B @ choice))
        assert np.linalg.norm(choice) > 0.1
        assert (max(float(jnp.max(jnp.abs(M))) for M in moved) > 1e-3) == seen


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_loss_does_not_see_rotations_of_the_latent_space(tau):
    target = random_target(0, 4)
    W = gaussian_factors(0, (3, 4))[0]
    Q = array(np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    assert_close(
        bw.smoothed_bures(W @ Q, target, tau=tau),
        bw.smoothed_bures(W, target, tau=tau),
        by_precision(1e-14, 2e-6),
    )


@pytest.mark.float64
@pytest.mark.parametrize("tau", [1e-3, 0.1])
def test_smoothing_derivative_matches_differences(tau):
    target = bw.Target(jnp.diag(array([3.0, 1.0, 0.0])))
    W = gaussian_factors(0, (2, 3))[0]
    loss = lambda tau: bw.smoothed_bures(W, target, tau=tau)
    h = 1e-4 * tau
    assert_close(jax.grad(loss)(tau), (loss(tau + h) - loss(tau - h)) / (2 * h), 1e-7)
    mixed = jax.jacfwd(jax.grad(lambda W, tau: bw.smoothed_bures(W, target, tau=tau)), argnums=1)
    gradient = lambda tau: jax.grad(lambda W: bw.smoothed_bures(W, target, tau=tau))(W)
    assert_close(mixed(W, tau), (gradient(tau + h) - gradient(tau - h)) / (2 * h), 1e-6)


@pytest.mark.float64
def test_smoothing_derivative_at_zero_is_a_trace_where_it_exists():
    target, W = random_target(0, 3), gaussian_factors(0, (3, 3))[0]
    loss = lambda tau, W=W: bw.smoothed_bures(W, target, tau=tau)
    h = 1e-7
    assert_close(jax.grad(loss)(0.0), (loss(h) - loss(0.0)) / h, 1e-4)
    assert jax.grad(loss)(0.0, W[:, :2]) == -jnp.inf


def test_smoothing_derivative_is_finite_where_columns_of_the_target_are_zero():
    """Under a trace a singular covariance keeps all its columns."""
    W, D = jnp.eye(3)[:, :2], jnp.diag(array([4.0, 1.0, 0.0]))
    slope = jax.grad(lambda tau, S: bw.smoothed_bures(W, bw.Target(S), tau=tau))
    expected = jax.grad(lambda tau: bw.smoothed_bures(W, bw.Target(D), tau=tau))(0.3)
    assert_close(jax.jit(slope)(0.3, D), expected, by_precision(1e-12, 1e-5))


@pytest.mark.float64
def test_minimum_differentiates_in_the_factor_of_the_target():
    B, D = gaussian_factors(0, (3, 4))[0], gaussian_factors(1, (3, 4))[0]
    minimum = lambda B: bw.landscape.minimum(bw.Target.from_factor(B, rank=3), 1, tau=0.01)
    h = 1e-5
    expected = (minimum(B + h * D) - minimum(B - h * D)) / (2 * h)
    assert_close(jax.jvp(minimum, (B,), (D,))[1], expected, 1e-8)


@pytest.mark.float64
def test_target_derivative_matches_differences_in_the_factor():
    B, W = gaussian_factors(0, (3, 4, 4))
    loss = lambda B: bw.smoothed_bures(W, bw.Target.from_factor(B, rank=3), tau=0.1)
    D, h = gaussian_factors(3, (3, 4))[0], 1e-5
    expected = (loss(B + h * D) - loss(B - h * D)) / (2 * h)
    assert_close(jnp.vdot(jax.grad(loss)(B), D), expected, 1e-8)


def test_one_program_serves_every_smoothing():
    target, traces = random_target(0, 3), []

    @jax.jit
    def value(W, tau):
        traces.append(tau)
        return bw.smoothed_bures(W, target, tau=tau)

    for tau in (0.0, 0.1, 0.2):
        value(jnp.eye(3), tau)
    assert len(traces) == 1
