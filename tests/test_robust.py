"""Low rank plus sparse: the rule against numpy, recovery, and where it stops."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, by_precision, first
from test_projections import cut

import bwflow as bw
from bwflow import losses, operators, precondition, problems
from bwflow.factors import LowRankPlusSparse
from bwflow.projections import Sparsity, clip_rows, projected, thresholded

NETWORK = LowRankPlusSparse()
N, P, R = 7, 6, 2


def parts(seed=0):
    rng = np.random.default_rng(seed)
    L, Q, S = rng.normal(size=(N, R)), rng.normal(size=(P, R)), rng.normal(size=(N, P))
    return (array(L), array(Q)), array(S)


OPERATORS = {
    "dense": operators.Dense(array(np.random.default_rng(1).normal(size=(9, N, P)))),
    "entries": operators.Entries([0, 3, 6, 3], [1, 5, 0, 5], (N, P)),
    "rank_one": operators.RankOne(
        array(np.random.default_rng(2).normal(size=(5, N))),
        array(np.random.default_rng(3).normal(size=(5, P))),
    ),
    "cosine": operators.Cosine(jax.random.key(0), 20, (N, P)),
    "gaussian": operators.Gaussian(jax.random.key(0), 20, (N, P)),
}


# --- the factorisation ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["approximation", *OPERATORS])
def test_gradients_are_those_of_the_dense_sum(name):
    params = parts()
    (L, Q), S = params
    if name == "approximation":
        loss, of_matrix = (
            losses.Approximation(jnp.ones((N, P))),
            losses.Approximation(jnp.ones((N, P))),
        )
    else:
        A = OPERATORS[name]
        y = array(np.random.default_rng(4).normal(size=A.num_measurements))
        loss = losses.Sensing(A, y)
        of_matrix = lambda M: jnp.sum((A(M, jnp.eye(P)) - y) ** 2) / 2
    value, G = jax.value_and_grad(loss)(NETWORK.assemble(params))
    M = L @ Q.T + S
    Z = jax.grad(of_matrix)(M)
    assert_close(value, of_matrix(M), by_precision(1e-12, 1e-4) * float(value))
    size = float(jnp.max(jnp.abs(Z)))
    expected = (Z @ Q, Z.T @ L), Z
    for found, right in zip(
        jax.tree.leaves(NETWORK.pullback(params, G)), jax.tree.leaves(expected), strict=True
    ):
        assert_close(found, right, by_precision(1e-12, 1e-5) * 10 * size)
    slope = loss.covariance_gradient(NETWORK.assemble(params)).as_matrix()
    assert_close(slope, Z, by_precision(1e-12, 1e-5) * size)


def test_two_steps_are_those_of_the_loop_in_numpy():
    """`S` first, then the pair from where it has gone, both balanced and clipped."""
    bounds, rate, bound = Sparsity(9, 0.4, 0.3), 0.05, 1.3
    Y = np.random.default_rng(5).normal(size=(N, P))
    pair = optax.chain(
        precondition.add_balancing(0.5), optax.sgd(rate), projected(lambda X: clip_rows(X, bound))
    )
    run = bw.gradient_descent(
        losses.Approximation(array(Y)),
        parts(),
        (pair, thresholded(0.8, bounds, excess=1.2)),
        num_steps=2,
        order=(1, 0),
        factorization=NETWORK,
    )
    (L, Q), S = jax.tree.map(lambda x: np.asarray(x, np.float64), parts())
    for _ in range(2):
        S = cut(S - 0.8 * (L @ Q.T + S - Y), 10, int(1.2 * 0.4 * P), int(1.2 * 0.3 * N))
        Z, D = L @ Q.T + S - Y, L.T @ L - Q.T @ Q
        moved = L - rate * (Z @ Q + L @ D / 2), Q - rate * (Z.T @ L - Q @ D / 2)
        norms = [np.linalg.norm(X, axis=1, keepdims=True) for X in moved]
        L, Q = (X * np.minimum(1, bound / s) for X, s in zip(moved, norms, strict=True))
    for found, right in zip(jax.tree.leaves(run.factors), (L, Q, S), strict=True):
        assert_close(found, right, by_precision(1e-12, 1e-5))


@pytest.mark.float64
def test_balancing_is_the_gradient_of_its_regulariser():
    (L, Q), _ = parts()
    zero = jax.tree.map(jnp.zeros_like, (L, Q))
    found, _ = precondition.add_balancing(0.7).update(zero, optax.EmptyState(), (L, Q))
    energy = lambda pair: 0.7 / 4 * jnp.sum((pair[0].T @ pair[0] - pair[1].T @ pair[1]) ** 2)
    for a, b in zip(found, jax.grad(energy)((L, Q)), strict=True):
        assert_close(a, b, 1e-12)


# --- recovery ------------------------------------------------------------------------------------


def gradient(energy):
    return optax.chain(precondition.add_balancing(0.5), optax.sgd(0.5 / energy))


def scaled(energy):
    return precondition.scaledgd(0.9)


RULES = {"gradient": gradient, "scaled": scaled}


@cache
def problem(condition):
    return problems.low_rank_plus_sparse(
        jax.random.key(0), (60, 50), rank=3, rate=0.08, condition=condition
    )


def recovered(loss, truth, bounds, rule, *, excess=1.2, num_steps=2500, step=1.0, rank=3):
    """Steps to a relative error of 1e-10 (in the sum), and the error of the low-rank part."""
    n, p = truth.shape
    start = bw.initializers.low_rank_plus_sparse(loss, bounds, excess=excess, step=step)
    start = start(jax.random.key(1), (p, rank, n))
    M = truth.product.matrix()
    size = float(jnp.linalg.norm(M))
    run = bw.gradient_descent(
        loss,
        start,
        (
            RULES[rule](float(jnp.linalg.norm(start[0][0], 2)) ** 2),
            thresholded(step, bounds, excess=excess),
        ),
        num_steps=num_steps,
        save_every=num_steps,
        order=(1, 0),
        factorization=NETWORK,
        until=bw.until.gap(0.02e-20 * size**2, minimum=0.0, absolute=True),
        throw=False,
    )
    (L, Q), _ = run.factors
    return float(run.hit), float(jnp.linalg.norm(L @ Q.T - M)) / size


@pytest.mark.float64
@pytest.mark.parametrize(
    ("condition", "rule", "most"),
    [
        (10.0, "scaled", 250),
        (1.0, "gradient", 150),
        pytest.param(1.0, "scaled", 80, marks=pytest.mark.slow),
        pytest.param(10.0, "gradient", 2500, marks=pytest.mark.slow),
    ],
)
def test_robust_principal_components_are_recovered(condition, rule, most):
    loss, truth = problem(condition)
    steps, error = recovered(loss, truth, Sparsity.of(truth.sparse), rule)
    assert steps <= most
    assert error < 1e-10
    if (condition, rule) == (10.0, "gradient"):
        assert steps > 600  # what the scaled rule does not need


@pytest.mark.float64
def test_bounds_from_the_rate_suffice_and_means_stall():
    """`gamma` times the mean is less than the worst row has: it stalls far away."""
    loss, truth = problem(1.0)
    worst = Sparsity.of(truth.sparse)
    assert worst.row > 1.5 * 0.08
    safe = Sparsity.bernoulli(0.08, truth.shape)
    steps, error = recovered(loss, truth, safe, "gradient", excess=1.0)
    assert steps < 400
    assert error < 1e-10
    mean = Sparsity(worst.count, 0.08, 0.08)
    steps, error = recovered(loss, truth, mean, "gradient", excess=1.5, num_steps=400)
    assert steps == np.inf
    assert error > 1e-3


@pytest.mark.float64
def test_robust_sensing_recovers():
    loss, truth = problems.low_rank_plus_sparse(
        jax.random.key(0), (20, 18), rank=1, rate=0.02, num_measurements=300
    )
    steps, error = recovered(
        loss, truth, Sparsity.of(truth.sparse), "scaled", step=0.5, rank=1, num_steps=400
    )
    assert steps < 400
    assert error < 1e-10


@pytest.mark.float64
@pytest.mark.slow
def test_with_much_corruption_it_breaks_down():
    """Recovery is lost between a rate of 0.1 and one of 0.45, of which the safe bound knows."""
    outcome = {}
    for rate in (0.1, 0.45):
        loss, truth = problems.low_rank_plus_sparse(jax.random.key(3), (50, 40), rank=3, rate=rate)
        bounds = Sparsity.of(truth.sparse)
        outcome[rate] = recovered(loss, truth, bounds, "scaled", excess=1.2, num_steps=400)[1]
    assert outcome[0.1] < 1e-10
    assert outcome[0.45] > 1e-2


# --- covariances ---------------------------------------------------------------------------------


@cache
def covariance(condition=10.0, n=40):
    loss, truth = problems.low_rank_plus_sparse(
        jax.random.key(2), n, rank=3, rate=0.04, condition=condition, size=5.0
    )
    return loss.Y, truth.product.left @ truth.product.left.T, Sparsity.of(truth.sparse)


def test_the_trimmed_loss_is_the_distance_to_what_is_left():
    Sigma, _, bounds = covariance()
    W = array(np.random.default_rng(0).normal(size=(40, 4)))
    loss = losses.TrimmedBuresWasserstein(Sigma, bounds, 0.1)
    M = np.asarray(W @ W.T + 0.1 * jnp.eye(40), np.float64)
    k = (int(1.2 * bounds.count), int(1.2 * bounds.row * 40), int(1.2 * bounds.column * 40))
    S = cut(np.asarray(Sigma, np.float64) - M, *k)
    assert_close(loss.corruption(W), S, by_precision(1e-12, 1e-5))
    values, Q = np.linalg.eigh(np.asarray(Sigma) - S)
    left = (Q * np.maximum(values, 0)) @ Q.T
    expected, slope = jax.value_and_grad(
        lambda W: bw.smoothed_bures(W, bw.Target(array((left + left.T) / 2), rank=40), tau=0.1)
    )(W)
    value, found = jax.jit(jax.value_and_grad(loss))(W)
    assert_close(value, expected, by_precision(1e-9, 1e-2))
    assert_close(found, slope, by_precision(1e-7, 1e-2))


@pytest.mark.float64
@pytest.mark.parametrize("depth", first(1, [2, 1]))
@pytest.mark.parametrize("condition", first(1, [10.0, 1.0]))
def test_a_corrupted_covariance_is_fitted_whatever_its_conditioning(condition, depth):
    Sigma, truth, bounds = covariance(condition)
    loss = losses.TrimmedBuresWasserstein(Sigma, bounds)
    start = bw.initializers.split_evenly(loss.initial(rank=3), (3, *depth * [40]))
    plain = bw.gradient_descent(
        losses.BuresWasserstein(bw.Target(bw_psd(Sigma))), start, optax.sgd(0.2), num_steps=200
    )
    optimizer = optax.sgd(0.5) if depth == 1 else precondition.deep_precgd()
    run = bw.gradient_descent(loss, start, optimizer, num_steps=120, save_every=120)
    errors = [
        float(jnp.linalg.norm(W @ W.T - truth) / jnp.linalg.norm(truth))
        for W in (bw.end_to_end(run.factors), bw.end_to_end(plain.factors))
    ]
    assert errors[0] < 1e-10
    assert errors[1] > 0.05


def bw_psd(Sigma):
    values, Q = np.linalg.eigh(Sigma)
    return array((Q * np.maximum(values, 0)) @ Q.T)


# --- refusals ------------------------------------------------------------------------------------

Y = losses.Approximation(jnp.ones((N, P)))
BOUNDS = Sparsity(3, 0.2, 0.2)


def run(**change):
    arguments = {
        "params": parts(),
        "optimizer": (optax.sgd(0.1), thresholded(1.0, BOUNDS)),
        "order": (1, 0),
    } | change
    return bw.gradient_descent(Y, num_steps=1, factorization=NETWORK, **arguments)


REFUSED = {
    "no parts": (lambda: run(params=parts()[0][0]), r"params must be \(\(L, R\), S\)"),
    "three parts": (
        lambda: run(params=(*parts(), jnp.ones(2))),
        r"order must name|\(\(L, R\), S\)",
    ),
    "shapes": (
        lambda: run(params=(parts()[0], jnp.ones((P, N)))),
        r"S must have shape \(7, 6\), as L R\^T has; got \(6, 7\)",
    ),
    "too few optimizers": (
        lambda: run(optimizer=(optax.sgd(0.1),)),
        "optimizer must be an optax transformation, .*, or 2 of them, one for each block",
    ),
    "optimizers without order": (
        lambda: run(order=None),
        r"optimizer must be an optax transformation, such as optax.sgd\(0.1\); got",
    ),
    "no optimizers": (lambda: run(optimizer=(1, 2)), "optimizer must be an optax transformation"),
    "certificate": (
        lambda: bw.certificate.optimality_gap(Y, parts(), trace_bound=1.0, factorization=NETWORK),
        "with a sparse part",
    ),
    "balancing": (
        lambda: precondition.add_balancing().update((1,), (), (jnp.eye(2),)),
        r"params must be a pair \(L, R\)",
    ),
    "weight": (lambda: precondition.add_balancing(-1.0), "weight must be at least 0"),
    "matrix": (
        lambda: OPERATORS["dense"].of_matrix(jnp.ones((P, N))),
        r"M must have shape \(7, 6\), as the operator has; got \(6, 7\)",
    ),
    "start loss": (
        lambda: bw.initializers.low_rank_plus_sparse(jnp.sum, BOUNDS),
        "loss must offer `covariance_gradient`",
    ),
    "start bounds": (
        lambda: bw.initializers.low_rank_plus_sparse(Y, 3),
        "sparsity must be a bwflow.projections.Sparsity",
    ),
    "start count": (
        lambda: bw.initializers.low_rank_plus_sparse(Y, Sparsity(100, 0.1, 0.1))(
            jax.random.key(0), (P, R, N)
        ),
        "sparsity must have a count of at most 42",
    ),
    "few measurements": (
        lambda: bw.initializers.low_rank_plus_sparse(
            losses.Sensing(OPERATORS["dense"], jnp.ones(9)), BOUNDS
        )(jax.random.key(0), (P, R, N)),
        "loss must have at least 22 measurements, the freedom of matrices of rank 2, .* got 9",
    ),
    "rate": (
        lambda: problems.low_rank_plus_sparse(jax.random.key(0), 5, rank=1, rate=2.0),
        "rate must be at most 1",
    ),
    "asymmetric": (
        lambda: losses.TrimmedBuresWasserstein(jnp.ones((3, 3)).at[0, 1].set(2.0), BOUNDS),
        "covariance must be symmetric",
    ),
    "trimmed count": (
        lambda: losses.TrimmedBuresWasserstein(jnp.eye(3), Sparsity(10, 0.1, 0.1)),
        "sparsity must have a count of at most 9",
    ),
    "trimmed tau": (
        lambda: losses.TrimmedBuresWasserstein(jnp.eye(3), BOUNDS, -1.0),
        "tau must be at least 0",
    ),
    "trimmed rows": (
        lambda: losses.TrimmedBuresWasserstein(jnp.eye(3), BOUNDS)(jnp.ones((2, 1))),
        "W must have 3 rows",
    ),
    "trimmed rank": (
        lambda: losses.TrimmedBuresWasserstein(jnp.eye(3), BOUNDS).initial(4),
        "rank must be at most 3",
    ),
}


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_other_input_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
