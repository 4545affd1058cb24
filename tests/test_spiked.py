"""Targets of low rank and an isotropic part against the dense formula, and against differences."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import array, assert_close, by_precision

import bwflow as bw
from bwflow.covariances import Spiked

N, R, P, DELTA = 12, 3, 4, 0.5
RNG = np.random.default_rng(0)
G, W, D = (RNG.normal(size=(N, k)) for k in (R, P, P))
POINTS = {
    "generic": W,
    "in the range of the spikes": G @ RNG.normal(size=(R, P)),
    "zero": np.zeros((N, P)),
    "zero columns": W * np.array([1.0, 1.0, 0.0, 0.0]),
    "dependent columns": W @ np.array([[1, 0, 1, 1], [0, 1, 1, 1], [0] * 4, [0] * 4]),
    "more columns than rows": RNG.normal(size=(N, N + 3)),
    "one column": W[:, :1],
}
# At tau = 0 the loss has a gradient where the columns are independent alone.
CASES = [(point, tau) for point in POINTS for tau in (0.3, 0.01)] + [
    (point, 0.0) for point in ("generic", "more columns than rows", "one column")
]


def power(S, exponent):
    values, Q = np.linalg.eigh(S)
    return (Q * values**exponent) @ Q.T


def dense(W, tau, G=G, delta=DELTA):
    """Value and gradient from `n x n` matrices; `Sigma0` has full rank."""
    Sigma0, S = G @ G.T + delta * np.eye(N), W @ W.T + tau * np.eye(N)
    root = power(Sigma0, 0.5)
    if tau == 0:
        U, s, Vt = np.linalg.svd(root @ W, full_matrices=False)
        return np.trace(S) + np.trace(Sigma0) - 2 * s.sum(), 2 * (W - root @ U @ Vt)
    M = root @ S @ root
    value = np.trace(S) + np.trace(Sigma0) - 2 * np.sqrt(np.linalg.eigvalsh(M)).sum()
    return value, 2 * (W - root @ power(M, -0.5) @ root @ W)


def loss(W, tau, G=G, delta=DELTA):
    return bw.smoothed_bures(W, Spiked(jnp.asarray(G, W.dtype), delta, rank=R), tau=tau)


@pytest.mark.parametrize(("point", "tau"), CASES)
def test_value_and_gradient_are_those_of_the_dense_formula(point, tau):
    W = POINTS[point]
    value, gradient = dense(W, tau)
    actual, slope = jax.jit(lambda W: jax.value_and_grad(loss)(W, tau))(array(W))
    assert_close(actual / value, 1.0, by_precision(1e-13, 1e-5))
    scale = np.linalg.norm(W) + np.linalg.norm(G)
    # The root of W W^T + tau I is known to the rounding of W over that of tau.
    assert_close(slope / scale, gradient / scale, by_precision(1e-12, 2e-5))


@pytest.mark.float64
@pytest.mark.parametrize(("point", "tau"), [case for case in CASES if case[1] != 0.01])
def test_hessian_products_in_both_modes_match_differences(point, tau):
    W = POINTS[point]
    D = np.random.default_rng(1).normal(size=W.shape)
    gradient = jax.grad(loss)
    products = jax.jit(
        lambda W, D: (
            jax.jvp(lambda W: gradient(W, tau), (W,), (D,))[1],
            jax.grad(lambda W: jnp.vdot(gradient(W, tau), D))(W),
        )
    )
    h = 1e-4
    steps = [dense(W + k * h * D, tau)[1] for k in (1, -1, 2, -2)]
    expected = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
    for actual in products(array(W), array(D)):
        assert_close(actual, expected, 1e-8)


@pytest.mark.float64
def test_third_derivatives_are_those_of_the_full_rank_target():
    """Which are those of a polar factor: they do not pass through the same formulas."""
    whole, at = bw.Target(array(G @ G.T + DELTA * np.eye(N))), array(POINTS["dependent columns"])

    def third(f):
        gradient = lambda t: jax.grad(f)(at + t * array(D))
        return jax.jit(jax.jacfwd(jax.jacfwd(gradient)))(0.0)

    expected = third(lambda W: bw.smoothed_bures(W, whole, tau=0.3))
    assert_close(third(lambda W: loss(W, 0.3)), expected, 1e-11 * np.abs(expected).max())


def test_value_is_right_to_many_digits():
    """By mpmath, with 40 digits."""
    mpmath.mp.dps = 40
    A, B = mpmath.matrix(W.tolist()), mpmath.matrix(G.tolist())
    S = A * A.T + mpmath.mpf(0.125) * mpmath.eye(N)
    Sigma0 = B * B.T + mpmath.mpf(DELTA) * mpmath.eye(N)
    values, Q = mpmath.eigsy(Sigma0)
    root = Q * mpmath.diag([mpmath.sqrt(x) for x in values]) * Q.T
    cross = mpmath.fsum(mpmath.sqrt(x) for x in mpmath.eigsy(root * S * root, eigvals_only=True))
    trace = mpmath.fsum(S[i, i] + Sigma0[i, i] for i in range(N))
    expected = float(trace - 2 * cross)
    assert_close(loss(array(W), 0.125) / expected, 1.0, by_precision(5e-15, 2e-6))


@pytest.mark.float64
@pytest.mark.parametrize("which", ["tau", "delta", "G"])
def test_derivatives_in_the_smoothing_and_the_target_match_differences(which):
    at = {"tau": 0.3, "delta": DELTA, "G": G}
    direction = RNG.normal(size=G.shape) if which == "G" else 1.0
    f = lambda x: loss(array(W), **{**at, which: x})
    h = 1e-5
    plus, minus = (dense(W, **{**at, which: at[which] + t * direction})[0] for t in (h, -h))
    gradient = jax.jit(jax.grad(f))(array(at[which]))
    assert_close(np.sum(gradient * direction), (plus - minus) / (2 * h), 1e-8)
    slope = lambda t: jax.grad(lambda W: loss(W, **{**at, which: at[which] + t * direction}))(
        array(W)
    )
    plus, minus = (dense(W, **{**at, which: at[which] + t * direction})[1] for t in (h, -h))
    assert_close(jax.jit(jax.jacfwd(slope))(0.0), (plus - minus) / (2 * h), 1e-7)


def test_traced_zero_smoothing_has_the_gradient_of_a_zero_that_is_seen():
    """Also where columns depend on each other, as behind a bottleneck: the truncated one."""
    target = Spiked(array(G), DELTA)
    gradient = jax.grad(lambda W, tau: bw.smoothed_bures(W, target, tau=tau))
    for point in ("generic", "dependent columns", "zero columns"):
        at = array(POINTS[point])
        assert_close(jax.jit(gradient)(at, 0.0), gradient(at, 0.0), by_precision(1e-13, 1e-4))


def test_a_batch_is_its_members():
    targets = jax.vmap(lambda G, delta: Spiked(G, delta, rank=R))(
        array(np.stack([G, 2 * G])), array([0.5, 0.2])
    )
    f = jax.value_and_grad(lambda target, W, tau: bw.smoothed_bures(W, target, tau=tau), 1)
    taus = array([0.1, 0.3])
    values, gradients = jax.jit(jax.vmap(f, (0, None, 0)))(targets, array(W), taus)
    for i, (scale, delta) in enumerate(((1, 0.5), (2, 0.2))):
        expected = dense(W, float(taus[i]), scale * G, delta)
        assert_close(values[i] / expected[0], 1.0, by_precision(1e-13, 1e-5))
        assert_close(gradients[i], expected[1], by_precision(1e-12, 2e-4))


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("rank", [1, 3, 5, 20])
def test_minimum_is_that_of_the_target_with_all_its_eigenvalues(rank, tau):
    whole = bw.Target(array(G @ G.T + DELTA * np.eye(N)))
    target = Spiked(array(G), DELTA)
    minimum = bw.losses.BuresWasserstein(target, tau).minimum(rank)
    expected = bw.landscape.minimum(whole, rank, tau=tau)
    assert_close(minimum, expected, by_precision(1e-12, 2e-5))


def test_loss_at_the_target_is_zero_and_not_negative():
    value, slope = jax.value_and_grad(loss)(array(G), DELTA)
    assert value >= 0
    assert_close(value, 0.0, by_precision(1e-13, 1e-4))
    assert_close(slope, np.zeros_like(G), by_precision(1e-13, 1e-4))


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Spiked(G, 0.0), "delta must be positive; got 0.0"),
        (lambda: Spiked(G, -1.0), "delta must be positive; got -1.0"),
        (lambda: Spiked(G, np.nan), "delta must be a finite number; got nan"),
        (lambda: Spiked(G, np.ones(2)), "delta must be a scalar"),
        (lambda: Spiked(G[:, 0], 1.0), "G must have 2 dimensions"),
        (lambda: Spiked(0 * G, 1.0), "G must not be zero"),
        (lambda: Spiked(G, 1.0, rank=4), "rank must be at most 3; got 4"),
        (lambda: bw.losses.Frobenius(Spiked(G, 1.0)), "target must be a bwflow.Target; got Sp"),
        (lambda: bw.landscape.minimizer(Spiked(G, 1.0), 1), "target must be a bwflow.Target; got"),
        (
            lambda: bw.losses.BuresWasserstein(Spiked(G, 1.0), 0.1).covariance_gradient(W),
            "target must be a bwflow.Target; got",
        ),
        (lambda: bw.smoothed_bures(W[:3], Spiked(G, 1.0), tau=0.1), "W must have 12 rows"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message, as_installed):
    with pytest.raises(ValueError, match=message):
        call()
