"""Drawn problems: reproducible, with the truth where the loss is least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, by_precision

from bwflow import problems
from bwflow.factors import Product

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


@pytest.mark.parametrize("kind", MADE)
def test_truth_is_a_minimum_of_the_asked_spectrum(kind):
    loss, truth = MADE[kind](KEY)
    again = MADE[kind](KEY)
    for x, y in zip(jax.tree.leaves((loss, truth)), jax.tree.leaves(again), strict=True):
        assert x.dtype == y.dtype
        assert bool(jnp.all(x == y))
    M = truth.matrix() if isinstance(truth, Product) else truth @ truth.T
    values = np.linalg.svd(np.asarray(M, np.float64), compute_uv=False)[:3]
    assert_close(values, [1.0, 0.25, 0.0], by_precision(1e-14, 1e-6))
    if kind != "absolute":  # whose gradient does not vanish
        gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(truth))
        assert all(np.max(np.abs(g)) < by_precision(1e-14, 1e-6) for g in gradient)
    if kind != "one-bit":  # whose minimum is an entropy
        assert_close(loss(truth), 0.0, by_precision(1e-14, 1e-6))
    other = jax.tree.leaves(MADE[kind](jax.random.key(4)).truth)
    assert not np.allclose(other[0], jax.tree.leaves(truth)[0])


@pytest.mark.once
def test_least_squares_at_the_right_rank_errs_by_the_statistical_floor():
    """Gauss-Newton at the truth: the error is the projection of the noise on the tangents."""
    n, r, m, sigma = 6, 2, 4000, 0.05
    floor = problems.sensing(KEY, n, rank=r, num_measurements=m, noise=sigma).loss
    rng, errors = np.random.default_rng(0), []
    W = np.linalg.qr(rng.normal(size=(n, r)))[0]
    D = np.eye(n * r).reshape(n * r, n, r)
    tangents = D @ W.T + W @ D.transpose(0, 2, 1)
    for _ in range(60):
        J = rng.normal(size=(m, n * n)) / np.sqrt(m) @ tangents.reshape(-1, n * n).T
        step = np.linalg.lstsq(J, sigma * rng.normal(size=m), rcond=1e-10)[0]
        errors.append(np.sum(np.einsum("k,kij->ij", step, tangents) ** 2))
    expected = float(floor.statistical_floor(r))
    deviation = np.std(errors) / np.sqrt(60)
    assert_close(np.mean(errors), expected, 4 * deviation)
    assert 4 * deviation < 0.3 * expected


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
