"""Drawn problems: reproducible, with the truth where the loss is least."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, by_precision

import bwflow as bw
from bwflow import problems
from bwflow.factors import Product, Rectangular, Symmetric

KEY = jax.random.key(3)
MADE = {
    "dense": lambda key: problems.sensing(key, 5, rank=2, num_measurements=9, condition=4.0),
    "rank one": lambda key: problems.sensing(
        key, 5, rank=2, num_measurements=9, condition=4.0, operator="rank_one"
    ),
    "one-bit": lambda key: problems.one_bit(
        key, 5, rank=2, num_measurements=9, condition=4.0, sampled=False
    ),
    "phase retrieval": lambda key: problems.phase_retrieval(
        key, 5, rank=2, num_measurements=9, condition=4.0
    ),
    "completion": lambda key: problems.completion(
        key, (5, 4), rank=2, num_observed=9, condition=4.0
    ),
    "absolute": lambda key: problems.absolute_sensing(
        key, 5, rank=2, num_measurements=9, condition=4.0, outliers=0.0
    ),
}


def matrix(E):
    return E.matrix() if isinstance(E, Product) else E @ E.T


@pytest.mark.parametrize("kind", MADE)
def test_truth_is_a_minimum_of_the_asked_spectrum(kind):
    loss, truth = MADE[kind](KEY)
    again = MADE[kind](KEY)
    for x, y in zip(jax.tree.leaves((loss, truth)), jax.tree.leaves(again), strict=True):
        assert x.dtype == y.dtype
        assert bool(jnp.all(x == y))
    values = np.linalg.svd(np.asarray(matrix(truth), np.float64), compute_uv=False)[:3]
    assert_close(values, [1.0, 0.25, 0.0], by_precision(1e-14, 1e-6))
    if kind != "absolute":  # whose gradient does not vanish
        gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(truth))
        assert all(np.max(np.abs(g)) < by_precision(1e-14, 1e-6) for g in gradient)
    if kind != "one-bit":  # whose minimum is an entropy
        assert_close(loss(truth), 0.0, by_precision(1e-14, 1e-6))
    other = jax.tree.leaves(MADE[kind](jax.random.key(4)).truth)
    assert not np.allclose(other[0], jax.tree.leaves(truth)[0])


@pytest.mark.once
@pytest.mark.parametrize("rectangular", [False, True])
def test_least_squares_at_the_right_rank_errs_by_the_statistical_floor(rectangular):
    """To first order it projects the noise on the tangents: `sigma^2 tr (J^T J)^{-1}` is left."""
    n, p, r, m, sigma = 6, 4 if rectangular else 6, 2, 4000, 0.05
    operator = bw.operators.Dense(jnp.zeros((m, n, p)))
    loss = bw.losses.Sensing(operator, jnp.zeros(m), noise_energy=m * sigma**2 / 2)
    floor = float(loss.statistical_floor(r, rectangular=rectangular))
    rng = np.random.default_rng(0)
    W, V = rng.normal(size=(n, r)), rng.normal(size=(p, r))
    moves = np.eye(n * r).reshape(n * r, n, r), np.eye(p * r).reshape(p * r, p, r)
    if rectangular:
        tangents = np.concatenate([moves[0] @ V.T, W @ moves[1].transpose(0, 2, 1)])
    else:
        tangents = moves[0] @ W.T + W @ moves[0].transpose(0, 2, 1)
    _, s, basis = np.linalg.svd(tangents.reshape(-1, n * p))
    basis = basis[: np.sum(s > 1e-10 * s[0])]
    J = rng.normal(size=(m, n * p)) / np.sqrt(m) @ basis.T
    left = sigma**2 * np.trace(np.linalg.inv(J.T @ J))
    # Mean and deviation of the trace of the inverse of a Wishart matrix.
    k = len(basis)
    assert_close(left / floor, m / (m - k - 1), 4 * np.sqrt(2 / (m * k)))


@pytest.mark.once
def test_noise_labels_and_outliers_are_drawn_at_their_rates():
    m, size = 4000, {"shape": 5, "rank": 2, "num_measurements": 4000}
    loss, truth = problems.sensing(KEY, noise=0.1, **size)
    z = np.asarray(loss.operator(truth, truth))
    noise = (np.asarray(loss.y) - z) / 0.1
    assert abs(np.mean(noise)) < 4 / np.sqrt(m)
    assert abs(np.mean(noise**2) - 1) < 4 * np.sqrt(2 / m)
    assert_close(loss.noise_energy, m * 0.1**2 / 2, 1e-12)
    loss, truth = problems.one_bit(KEY, **size)
    assert set(np.unique(loss.y)) == {0.0, 1.0}
    chance = 1 / (1 + np.exp(-np.asarray(loss.operator(truth, truth))))
    deviation = np.sqrt(np.sum(chance * (1 - chance)))
    assert abs(np.sum(np.asarray(loss.y) - chance)) < 4 * deviation
    loss, truth = problems.absolute_sensing(KEY, outliers=0.2, size=3.0, **size)
    z = np.asarray(loss.operator(truth, truth))
    moved = np.abs(np.asarray(loss.y) - z) / np.max(np.abs(z))
    assert abs(np.mean(moved > 0) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / m)
    assert np.max(moved) <= 3.0
    assert abs(np.mean(moved[moved > 0]) - 1.5) < 4 * np.sqrt(0.75 / (0.2 * m))


def descent(make, transform, num_steps, seeds=12):
    """Relative errors of descents from spectral starts of the right rank, and the problems."""

    def error(truth, factorization):
        M = matrix(truth)
        return lambda _, params: {
            "error": jnp.linalg.norm(matrix(factorization.assemble(params)) - M)
            / jnp.linalg.norm(M)
        }

    def one(key):
        loss, truth = make(key)
        if isinstance(truth, Product):
            n, p = truth.shape
            factorization, widths = Rectangular(), (p, 2, n)
        else:
            factorization, widths = Symmetric(), (2, truth.shape[0])
        spectral = bw.initializers.spectral(loss, isinstance(truth, Product))
        start = spectral(jax.random.key(0), widths)
        run = bw.gradient_descent(
            loss,
            start if isinstance(truth, Product) else start[0],
            transform(loss, truth),
            num_steps=num_steps,
            probe=error(truth, factorization),
            factorization=factorization,
            throw=False,
        )
        return run.probes["error"], loss, matrix(truth)

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds))


def scaled(step):
    return lambda loss, truth: bw.precondition.scaledgd(step)


def polyak(loss, truth):
    return optax.chain(
        bw.precondition.scale_by_gram(),
        bw.precondition.scale_by_polyak(loss(truth)),
        optax.scale(-1.0),
    )


SIZE = {"rank": 2, "num_measurements": 600, "condition": 10.0}
# How, and in at most how many steps every one of a dozen problems is solved to 1e-8.
SOLVED = {
    "one-bit": (lambda key: problems.one_bit(key, 12, sampled=False, **SIZE), scaled(1.0), 70),
    "phase retrieval": (lambda key: problems.phase_retrieval(key, 12, **SIZE), scaled(0.05), 220),
    "rank one": (
        lambda key: problems.sensing(key, (12, 8), operator="rank_one", **SIZE),
        scaled(0.3),
        150,
    ),
    "redrawn": (
        lambda key: problems.sensing(key, 12, operator="gaussian", **SIZE),
        scaled(0.2),
        75,
    ),
    "cosine": (
        lambda key: problems.sensing(key, (30, 24), operator="cosine", **SIZE),
        scaled(0.5),
        75,
    ),
    "completion": (
        lambda key: problems.completion(key, (40, 30), rank=2, num_observed=2400, condition=10.0),
        scaled(0.3),
        250,
    ),
    "outliers": (
        lambda key: problems.absolute_sensing(key, 12, outliers=0.1, size=10.0, **SIZE),
        polyak,
        50,
    ),
    "outliers of a product": (
        lambda key: problems.absolute_sensing(key, (12, 8), outliers=0.1, **SIZE),
        polyak,
        50,
    ),
}


@pytest.mark.slow
@pytest.mark.float64
@pytest.mark.parametrize("kind", SOLVED)
def test_preconditioned_descent_finds_the_truth(kind):
    make, transform, num_steps = SOLVED[kind]
    errors = np.asarray(descent(make, transform, num_steps)[0])
    assert np.max(errors[:, -1]) < 1e-8
    assert np.min(errors[:, 0]) > 0.05


@pytest.mark.slow
@pytest.mark.float64
@pytest.mark.parametrize("shape", [12, (12, 8)])
def test_descent_ends_at_the_statistical_floor(shape):
    size = {"rank": 2, "num_measurements": 1000, "condition": 10.0, "noise": 0.01}
    errors, losses, truths = descent(
        lambda key: problems.sensing(key, shape, **size),
        scaled(0.2 if shape == 12 else 0.5),
        200,
        60,
    )
    rectangular = shape != 12
    floors = jax.vmap(lambda loss: loss.statistical_floor(2, rectangular=rectangular))(losses)
    found = np.asarray(errors[:, -1] * jnp.linalg.norm(truths, axis=(1, 2))) ** 2
    # Random matrices keep norms only so well: by the share of the freedom in the measurements.
    freedom = (12 + 8 - 2) * 2 if rectangular else 12 * 2 - 1
    ratio, deviation = np.mean(found / floors), np.std(found / floors) / np.sqrt(60)
    assert_close(ratio, 1 / (1 - freedom / 1000), 4 * deviation)
    assert 4 * deviation < 0.3


REFUSED = {
    "key": (lambda: problems.sensing(0, 3, rank=1, num_measurements=3), "key must be one random"),
    "rank": (lambda: problems.sensing(KEY, 3, rank=4, num_measurements=3), "rank must be at most"),
    "shape": (
        lambda: problems.sensing(KEY, (3,), rank=1, num_measurements=3),
        r"shape must be a pair \(n, p\)",
    ),
    "size": (lambda: problems.sensing(KEY, 0, rank=1, num_measurements=3), "shape must be a pos"),
    "condition": (
        lambda: problems.sensing(KEY, 3, rank=1, num_measurements=3, condition=0.5),
        "condition must be at least 1",
    ),
    "noise": (
        lambda: problems.phase_retrieval(KEY, 3, num_measurements=3, noise=-1.0),
        "noise must be at least 0",
    ),
    "operator": (
        lambda: problems.sensing(KEY, 3, rank=1, num_measurements=3, operator="sparse"),
        "operator must be one of gaussian, dense, rank_one, cosine; got 'sparse'",
    ),
    "count": (
        lambda: problems.completion(KEY, 3, rank=1, num_observed=0),
        "num_observed must be a positive integer",
    ),
    "outliers": (
        lambda: problems.absolute_sensing(KEY, 3, rank=1, num_measurements=3, outliers=2.0),
        "outliers must be at most 1",
    ),
}


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
