"""Semi-random measurements: the adversary's local minima, and what the weights make of them."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, by_precision

import bwflow as bw
from bwflow import losses, operators, precondition
from bwflow.experimental import _oracle, semirandom

N, M = 8, 50


@cache
def drawn(seed=0, n=N, rank=1, num_random=M):
    return semirandom.sensing_problem(jax.random.key(seed), n, rank=rank, num_random=num_random)


def error(W, truth):
    return float(jnp.linalg.norm(W @ W.T - truth @ truth.T) / jnp.linalg.norm(truth @ truth.T))


def hessian(loss, U):
    return jax.hessian(lambda x: loss(x.reshape(U.shape)))(U.ravel())


# --- the adversary -------------------------------------------------------------------------------


def test_all_measurements_are_right_and_most_are_random():
    loss, W = drawn()
    A = np.asarray(loss.operator.matrices, np.float64)
    assert A.shape == (M + 20, N, N)
    assert_close(A, np.swapaxes(A, 1, 2), by_precision(1e-15, 1e-6))
    assert_close(loss.y, np.einsum("mij,ij->m", A, W @ W.T), by_precision(1e-13, 1e-5))
    # Those of the adversary are long, and of rank two but for the jitter.
    s = np.linalg.svd(A, compute_uv=False)
    assert np.sum(s[:, 2] < 0.1 * s[:, 1]) == 20


@pytest.mark.float64
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.slow
def test_descents_from_the_spectral_start_end_in_a_bad_local_minimum(rank):
    """Gradient zero, Hessian positive but along rotations, and far from the truth."""
    for seed in range(3):
        loss, truth = drawn(seed, 12, rank, 6 * 12 * rank)
        start = bw.initializers.spectral(loss)(jax.random.key(0), (rank, 12))
        rate = 0.25 / float(loss.smoothness)
        rules = (
            optax.sgd(rate),
            precondition.scaledgd(rate),
            precondition.precgd(rate),
        )
        for rule in rules:
            run = bw.gradient_descent(loss, start, rule, num_steps=20_000, save_every=20_000)
            (U,) = run.factors
            assert error(U, truth) > 0.8
            assert float(run.probes["loss"][-1]) > 0.05
        assert float(run.probes["gradient_norm"][-1]) < 1e-8
        values = np.linalg.eigvalsh(hessian(loss, U))
        rotations = rank * (rank - 1) // 2
        assert np.all(np.abs(values[:rotations]) < 1e-7)
        assert values[rotations] > 1e-2


@pytest.mark.float64
def test_a_column_more_leads_out_of_it():
    """Where the gradient in `M` is not positive, a new column has a way down."""
    loss, truth = drawn(0, 12, 1, 72)
    start = bw.initializers.spectral(loss)(jax.random.key(0), (1, 12))
    wide = (jnp.concatenate([start[0], array(1e-3 * np.ones((12, 1)))], axis=1),)
    rate = 0.25 / float(loss.smoothness)
    run = bw.gradient_descent(
        loss, wide, precondition.precgd(rate), num_steps=5000, save_every=5000
    )
    assert error(run.factors[0], truth) < 1e-6


# --- recovery ------------------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize(("n", "rank", "count"), [(8, 1, 12), (10, 2, 6)])
def test_reweighting_recovers_and_its_radius_is_a_bound(n, rank, count):
    @jax.vmap
    def recovered(key):
        m = 8 * n * rank
        loss, W = semirandom.sensing_problem(key, n, rank=rank, num_random=m)
        found = semirandom.recover(loss.operator, loss.y, rank=rank, num_random=m)
        return found, W @ W.T

    found, truth = jax.jit(recovered)(jax.random.split(jax.random.key(1), count))
    errors = np.linalg.norm(found.matrix - truth, axis=(1, 2))
    assert np.all(found.converged)
    assert np.all(errors <= found.radius)
    assert np.all(errors <= 1e-8 * np.linalg.norm(truth, axis=(1, 2)))
    assert np.all(found.weights >= 0)
    assert np.all(np.linalg.matrix_rank(found.matrix, tol=1e-6) == rank)


@pytest.mark.float64
@pytest.mark.slow
def test_copies_do_not_slow_it_down():
    calls = []
    for copies in (5, 40):
        loss, _ = semirandom.sensing_problem(
            jax.random.key(0), N, rank=1, num_random=M, copies=copies
        )
        found = semirandom.recover(loss.operator, loss.y, rank=1, num_random=M)
        assert bool(found.converged)
        calls.append(int(found.num_calls))
    assert calls[1] <= 1.3 * calls[0]


@pytest.mark.float64
def test_what_cannot_be_recovered_is_told_and_does_not_harm_the_rest():
    """Measurements of noise beside good ones, in one batch; and a radius that is far too small."""
    loss, _ = drawn()
    y = jnp.stack([loss.y, array(np.random.default_rng(0).normal(size=loss.y.size))])
    run = partial(semirandom.recover, loss.operator, rank=1, num_random=M, max_restarts=60)
    found = jax.jit(jax.vmap(run))(y)
    assert found.converged.tolist() == [True, False]
    assert_close(found.matrix[0], run(loss.y).matrix, 1e-10)
    refuted = run(loss.y, radius=0.3)
    assert int(refuted.num_refuted) > 0
    zero = run(jnp.zeros_like(loss.y))
    assert bool(zero.converged)
    assert_close(zero.matrix, np.zeros((N, N)), 0.0)


def numpy_ball(X, size):
    """Projection on the nuclear ball by bisection on the threshold."""
    values, Q = np.linalg.eigh(X)
    low, high = 0.0, np.abs(values).max()
    if np.abs(values).sum() <= size:
        high = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if np.maximum(np.abs(values) - middle, 0).sum() > size:
            low = middle
        else:
            high = middle
    return (Q * (np.sign(values) * np.maximum(np.abs(values) - high, 0))) @ Q.T


@pytest.mark.float64
@pytest.mark.parametrize("size", [0.5, 3.0, 100.0])
def test_the_certificate_bounds_the_decrease(size):
    """For any weights and any matrix of the ball, and its oracle finds weights near the best."""
    rng = np.random.default_rng(0)
    loss, W = drawn()
    A, _ = _oracle.prepared(loss.operator.matrices)
    truth = numpy_ball(np.asarray(W @ W.T), size)
    X = numpy_ball(rng.normal(size=(N, N)) + rng.normal(size=(N, N)).T, size)
    residuals = A.rows @ array((truth - X).ravel())
    assert np.min(np.linalg.eigvalsh(np.diag(A.lengths) - A.rows @ A.rows.T)) > -1e-9
    assert_close(
        _oracle.on_ball(array(X + truth), jnp.asarray(size)), numpy_ball(X + truth, size), 1e-9
    )

    def certified(w):
        bound, step = _oracle.decrease(A, w * residuals, residuals, array(X), jnp.asarray(size))
        fallen = np.sum((X - truth) ** 2) - np.sum((X + step - truth) ** 2)
        assert fallen >= bound - 1e-9
        return float(bound)

    drawn_weights = [array(rng.uniform(size=residuals.size) * 10.0**s) for s in (-3, -2, -1, 0)]
    others = [certified(w) for w in drawn_weights]
    zero = jnp.zeros_like(residuals)
    few, many = (
        _oracle.oracle(A, zero, residuals, array(X), jnp.asarray(size), steps) for steps in (8, 400)
    )
    assert certified(few) > max(others)
    assert certified(few) > 0.5 * certified(many) > 0
    assert certified(many) <= np.sum((X - truth) ** 2)


# --- completion ----------------------------------------------------------------------------------


def observed(rng, n, rate):
    """A uniform sample, symmetric, and both halves of the diagonal revealed."""
    seen = rng.random((n, n)) < rate
    seen = np.triu(seen) | np.triu(seen).T
    seen[: n // 2, : n // 2] = seen[n // 2 :, n // 2 :] = True
    return seen


def test_weights_flatten_the_pattern():
    rng, n = np.random.default_rng(0), 30
    rows, columns = np.nonzero(observed(rng, n, 0.25))
    w = np.asarray(semirandom.completion_weights(rows, columns, (n, n)), np.float64)
    assert np.all(w >= 0)
    norms = []
    for weights in (np.ones_like(w), w):
        W = np.zeros((n, n))
        W[rows, columns] = weights * n * n / rows.size
        norms.append(np.linalg.norm(W - 1, 2) / n)
        found = semirandom.pattern_distance(rows, columns, (n, n), array(weights))
        assert_close(found, norms[-1], by_precision(1e-12, 1e-5))
    assert norms[1] < 0.6 * norms[0]
    complete = np.indices((6, 5)).reshape(2, -1)
    assert_close(
        semirandom.completion_weights(*complete, (6, 5)), np.ones(30), by_precision(1e-9, 1e-4)
    )


@pytest.mark.float64
def test_weights_remove_a_bad_minimum_of_completion():
    """Reflected in one block, plain descent stays in a strict minimum that the weights remove."""
    n = 40
    plain, truth = semirandom.completion_problem(jax.random.key(0), n)
    rows, columns = plain.operator.rows, plain.operator.columns
    weights = semirandom.completion_weights(rows, columns, (n, n))
    reflected = truth.at[: n // 2, 1].multiply(-1.0)
    ends = [
        bw.gradient_descent(
            loss, (reflected,), optax.sgd(1e-3), num_steps=6000, save_every=6000
        ).factors[0]
        for loss in (plain, losses.weighted(plain, weights))
    ]
    assert error(ends[0], truth) > 0.3
    assert error(ends[1], truth) < 1e-6
    assert float(jnp.linalg.norm(jax.grad(plain)(ends[0]))) < 1e-6
    assert np.linalg.eigvalsh(hessian(plain, ends[0]))[1] > 1e-3  # but for the rotation


def test_a_weighted_loss_is_the_weighted_sum():
    rng = np.random.default_rng(0)
    A, y, w = rng.normal(size=(7, 4, 3)), rng.normal(size=7), rng.uniform(size=7)
    w[2] = 0.0
    L, R = array(rng.normal(size=(4, 2))), array(rng.normal(size=(3, 2)))
    pair = bw.factors.Product(L, R)
    z = np.einsum("mij,ij->m", A, L @ R.T)
    loss = losses.weighted(losses.Sensing(operators.Dense(array(A)), array(y)), array(w))
    assert_close(loss(pair), np.sum(w * (z - y) ** 2) / 2, by_precision(1e-12, 1e-4))
    expected = np.einsum("m,mij->ij", w * (z - y), A)
    assert_close(loss.covariance_gradient(pair).as_matrix(), expected, by_precision(1e-12, 1e-4))
    assert_close(
        loss.operator.norms, np.sqrt(w) * np.linalg.norm(A, axis=(1, 2)), by_precision(1e-13, 1e-5)
    )
    assert_close(loss.operator.of_matrix(L @ R.T), np.sqrt(w) * z, by_precision(1e-12, 1e-4))
    slope = jax.grad(
        lambda w: losses.weighted(losses.Sensing(operators.Dense(array(A)), array(y)), w)(pair)
    )
    assert_close(slope(array(w))[3], (z[3] - y[3]) ** 2 / 2, by_precision(1e-10, 1e-3))


# --- refusals ------------------------------------------------------------------------------------

EYE = operators.Dense(jnp.eye(4).reshape(4, 2, 2))
Y = jnp.ones(4)


def recover(operator=EYE, y=Y, **change):
    return semirandom.recover(operator, y, **{"rank": 1, "num_random": 3} | change)


REFUSED = {
    "operator": (
        lambda: recover(operators.Entries([0], [0], (2, 2))),
        "operator must be a bwflow.operators.Dense",
    ),
    "square": (
        lambda: recover(operators.Dense(jnp.ones((4, 2, 3)))),
        r"operator must be one of square matrices; got shape \(2, 3\)",
    ),
    "y": (lambda: recover(y=jnp.ones(5)), "y must have 4 entries, one for each measurement"),
    "rank": (lambda: recover(rank=3), "rank must be at most 2; got 3"),
    "too few": (
        lambda: recover(num_random=1),
        "num_random must be at least 2, the freedom of matrices of size 2 and rank 1, and at most",
    ),
    "too many": (lambda: recover(num_random=5), "num_random must be .* at most 4, the number"),
    "tolerance": (lambda: recover(tolerance=0.0), "tolerance must be positive"),
    "radius": (lambda: recover(radius=-1.0), "radius must be positive"),
    "restarts": (lambda: recover(max_restarts=0), "max_restarts must be a positive integer"),
    "problem": (
        lambda: semirandom.sensing_problem(jax.random.key(0), 5, rank=3, num_random=9),
        "rank must be at most n / 2 = 2; got 3",
    ),
    "completion": (
        lambda: semirandom.completion_problem(jax.random.key(0), 3),
        "n must be an integer of at least 4",
    ),
    "row": (
        lambda: semirandom.completion_weights([0, 0], [0, 1], (2, 2)),
        "rows must name each of the 2 at least once, .* got no entry of number 1",
    ),
    "column": (
        lambda: semirandom.completion_weights([0, 1], [1, 1], (2, 2)),
        "columns must name each of the 2 at least once, .* got no entry of number 0",
    ),
    "index": (
        lambda: semirandom.completion_weights([0, 2], [0, 1], (2, 2)),
        "rows must be at least 0 and below 2",
    ),
    "weights": (
        lambda: semirandom.pattern_distance([0, 1], [0, 1], (2, 2), jnp.ones(3)),
        "weights must have 2 entries, one for each observed; got 3",
    ),
    "negative weights": (lambda: operators.Weighted(EYE, -Y), "weights must be at least 0"),
    "few weights": (lambda: operators.Weighted(EYE, jnp.ones(3)), "weights must have 4 entries"),
    "nothing to weight": (lambda: operators.Weighted(Y, Y), "operator must be an operator of"),
    "loss": (
        lambda: losses.weighted(losses.AbsoluteSensing(EYE, Y), Y),
        "loss must be one of squares, Sensing or Completion",
    ),
}


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_other_input_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
