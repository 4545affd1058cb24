"""Barycenters of data that come in batches, each seen once."""

import covariance_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covariance_oracles import covariance, factor, orthogonal
from helpers import array, assert_close, by_precision

from bwflow import geometry
from bwflow.geometry import Factor, RunningBarycenter

SIZE, COUNT = 3, 6
CLOSE = by_precision(1e-12, 2e-5)
DATA = np.stack([covariance(seed, SIZE, 5.0) for seed in range(COUNT)])
WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0, 0.25, 1.0])
BATCHES = {"at once": [COUNT], "one by one": [1] * COUNT, "of any size": [1, 3, 2]}


def commuting():
    """Matrices with one eigenbasis, and what their barycenter with weights is."""
    rng = np.random.default_rng(0)
    deviations, Q = rng.uniform(0.2, 3.0, (COUNT, SIZE)), orthogonal(0, SIZE)
    matrices = oracles.in_run_precision((Q * deviations[:, None, :] ** 2) @ Q.T)
    mean = lambda w: (Q * (w @ deviations / np.sum(w)) ** 2) @ Q.T
    return (matrices + np.swapaxes(matrices, 1, 2)) / 2, mean


def fed(running, data, sizes, weights=None, **options):
    data = array(data)
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        batch = slice(end - size, end)
        w = {} if weights is None else {"weights": array(weights[batch])}
        running = running.update(data[batch], **w, **options)
    return running


def begun(weight=0.0):
    return RunningBarycenter(jnp.eye(SIZE), array(weight))


def between(A, B, t):
    """The geodesic by roots of matrices, as McCann wrote it."""
    values, Q = np.linalg.eigh(A)
    root, inverse = ((Q * values**p) @ Q.T for p in (0.5, -0.5))
    middle, Q = np.linalg.eigh(root @ B @ root)
    T = inverse @ (Q * np.sqrt(middle)) @ Q.T @ inverse
    onto = (1 - t) * np.eye(len(A)) + t * T
    return onto @ A @ onto


@pytest.mark.parametrize("weights", [np.ones(COUNT), WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_of_matrices_that_commute_any_batches_give_the_exact_barycenter(sizes, weights):
    matrices, mean = commuting()
    found = fed(begun(), matrices, sizes, weights)
    assert_close(found.covariance, mean(weights), CLOSE)
    assert_close(found.weight, np.sum(weights), by_precision(1e-14, 1e-6))


@pytest.mark.parametrize("weights", [np.ones(COUNT), WEIGHTS], ids=["equal", "weighted"])
def test_one_at_a_time_moves_along_the_geodesic_by_its_share(weights):
    found = fed(begun(), DATA, [1] * COUNT, weights)
    expected, total = np.eye(SIZE), 0.0
    for A, w in zip(DATA, weights, strict=True):
        total += w
        expected = between(expected, A, w / total)
    assert_close(found.covariance, expected, CLOSE)


def test_the_weight_of_the_start_is_that_of_data():
    matrices, mean = commuting()
    started = RunningBarycenter(array(matrices[0]), array(WEIGHTS[0]))
    found = fed(started, matrices[1:], [2, 3], WEIGHTS[1:])
    assert_close(found.covariance, mean(WEIGHTS), CLOSE)
    assert_close(found.weight, np.sum(WEIGHTS), by_precision(1e-14, 1e-6))
    forgotten = fed(begun(), matrices[1:], [2, 3], WEIGHTS[1:])
    assert_close(forgotten.covariance, mean(WEIGHTS * (np.arange(COUNT) > 0)), CLOSE)


def test_before_any_data_it_is_its_start():
    for start in (array(DATA[0]), Factor(array(np.linalg.cholesky(DATA[0])))):
        running = RunningBarycenter(start, 2.0)
        assert_close(running.covariance, DATA[0], by_precision(1e-15, 1e-6))
        assert running.weight == 2.0


def test_masked_covariances_do_not_count():
    mask = np.array([True, False, True, False, True, True])
    spoilt = np.where(mask[:, None, None], DATA, np.nan)
    found = begun().update(array(spoilt), weights=array(WEIGHTS), mask=mask)
    expected = begun().update(array(DATA[mask]), weights=array(WEIGHTS[mask]))
    assert_close(found.covariance, expected.covariance, CLOSE)
    assert_close(found.weight, expected.weight, by_precision(1e-14, 1e-6))
    weighted = begun().update(array(DATA), weights=array(WEIGHTS * mask))
    assert_close(weighted.covariance, expected.covariance, CLOSE)


def test_factors_keep_the_rank_of_the_start():
    L = np.stack([factor(seed, 5, 2) for seed in range(4)])
    start = factor(9, 5, 2)
    found = RunningBarycenter(Factor(array(start)), 1.0).update(Factor(array(L)))
    turned = [X @ oracles.rounded(oracles.polar(X.T @ start)) for X in L]
    expected = start + 4 / 5 * (np.mean(turned, axis=0) - start)
    assert_close(found.factor, expected, CLOSE)
    assert np.linalg.matrix_rank(found.covariance, tol=1e-4) == 2


def test_updates_leave_the_old_object_as_it_was():
    running = begun(1.0)
    running.update(array(DATA))
    assert np.array_equal(running.covariance, np.eye(SIZE))
    assert running.weight == 1.0


def test_it_is_carried_by_a_scan_and_jitted_with_the_results_of_a_loop():
    batches = array(DATA.reshape(3, 2, SIZE, SIZE))
    expected = fed(begun(1.0), DATA, [2] * 3)

    def step(running, batch):
        running = running.update(batch)
        return running, running.weight

    found, weights = jax.lax.scan(step, begun(1.0), batches)
    assert_close(found.factor, expected.factor, CLOSE)
    assert_close(weights, [3.0, 5.0, 7.0], 0.0)
    update = jax.jit(lambda running, batch: running.update(batch))
    jitted = begun(1.0)
    for batch in batches:
        jitted = update(jitted, batch)
    assert_close(jitted.factor, expected.factor, CLOSE)
    assert jitted.weight == expected.weight


@pytest.mark.once
def test_the_error_falls_as_the_root_of_the_number_of_batches():
    """Of matrices drawn from a list, by a factor of 10 for a hundred times as many."""
    rng = np.random.default_rng(0)
    X = np.eye(SIZE) + 0.4 * rng.normal(size=(100, SIZE, SIZE))
    data = array(X @ np.swapaxes(X, 1, 2))
    centre = geometry.barycenter(data, rtol=1e-8).covariance

    def step(running, i):
        running = running.update(data[i][None])
        return running, jnp.linalg.norm(running.covariance - centre)

    order = jnp.asarray(rng.integers(100, size=(16, 1000)))
    errors = jax.jit(jax.vmap(lambda order: jax.lax.scan(step, begun(), order)[1]))(order)
    after_ten, after_all = jnp.mean(errors[:, 9]), jnp.mean(errors[:, -1])
    assert 0.05 < after_all / after_ten < 0.2
    assert after_all < 0.05 * jnp.linalg.norm(centre)


TWO = np.stack([np.eye(2)] * 2)
BAD = {
    "list": (lambda: RunningBarycenter(TWO), "start must be one covariance; got shape"),
    "start": (lambda: RunningBarycenter(-np.eye(2)), "start must be positive semi-definite"),
    "weight": (lambda: RunningBarycenter(np.eye(2), -1.0), "weight must be at least 0"),
    "weights": (
        lambda: RunningBarycenter(np.eye(2), np.ones(2)),
        "weight must be .*got shape",
    ),
    "one": (
        lambda: RunningBarycenter(np.eye(2)).update(np.eye(2)),
        "covariances must be a list of covariances",
    ),
    "batch of lists": (
        lambda: RunningBarycenter(np.eye(2)).update(TWO[None]),
        "covariances must be a list of covariances of size 2",
    ),
    "size": (
        lambda: RunningBarycenter(np.eye(3)).update(TWO),
        "covariances must be a list of covariances of size 3",
    ),
    "no data": (
        lambda: RunningBarycenter(np.eye(2)).update(TWO[:0]),
        "covariances must be a list of covariances",
    ),
    "NaN": (lambda: RunningBarycenter(np.eye(2)).update(np.nan * TWO), "covariances must .*finite"),
    "number of weights": (
        lambda: RunningBarycenter(np.eye(2)).update(TWO, weights=np.ones(3)),
        r"weights must be of shape \(2,\), as covariances has; got \(3,\)",
    ),
    "negative weights": (
        lambda: RunningBarycenter(np.eye(2)).update(TWO, weights=np.array([1.0, -1.0])),
        "weights must be at least 0",
    ),
    "nothing counts": (
        lambda: RunningBarycenter(np.eye(2)).update(TWO, mask=np.zeros(2, bool)),
        "weights and mask must leave a positive weight",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, as_installed):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
