"""Thresholds, clipped rows and bounds of sparsity against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, by_precision
from scipy import stats

from bwflow import projections
from bwflow.projections import Sparsity


def cut(S, count, row, column):
    """Double thresholding by sorting; `row` and `column` are numbers of entries."""
    sizes = np.abs(S)
    S = np.where(sizes >= np.sort(sizes, axis=None)[-count], S, 0)
    sizes = np.abs(S)
    in_row = sizes >= np.sort(sizes, axis=1)[:, -row][:, None]
    in_column = sizes >= np.sort(sizes, axis=0)[-column][None]
    return np.where(in_row & in_column, S, 0)


@pytest.mark.parametrize(
    ("count", "row", "column"), [(1, 1, 1), (20, 3, 2), (60, 4, 5), (70, 9, 7)]
)
@pytest.mark.parametrize("excess", [1.0, 1.5])
def test_thresholds_are_those_of_sorting(count, row, column, excess):
    S = np.asarray(np.random.default_rng(0).normal(size=(8, 10)), by_precision(float, np.float32))
    bounds = Sparsity(count, row / 10, column / 8)
    found = projections.double_threshold(array(S), bounds, excess=excess)
    expected = cut(S, *(min(int(excess * k), m) for k, m in ((count, 80), (row, 10), (column, 8))))
    assert_close(found, expected, 0.0)
    assert_close(bounds.threshold(array(S), excess), expected, 0.0)


def test_large_small_and_equal_entries():
    S = np.zeros((4, 4))
    bounds = Sparsity(3, 0.5, 0.5)
    assert_close(projections.double_threshold(array(S), bounds), S, 0.0)
    S[0, 0], S[1, 1], S[2, 2], S[3, 3] = 1e30, -1e-30, 1e-35, -1.0
    expected = np.diag([1e30, -1e-30, 0, -1.0])
    assert_close(projections.double_threshold(array(S), bounds) - array(expected), 0 * S, 0.0)
    # Equal ones go together.
    assert_close(projections.double_threshold(jnp.eye(4), Sparsity(2, 0.5, 0.5)), np.eye(4), 0.0)


def test_bounds_may_be_traced_and_batched():
    S = array(np.random.default_rng(0).normal(size=(8, 10)))
    counts, rows = jnp.array([5, 40]), array([0.2, 0.4])

    @jax.jit
    @jax.vmap
    def both(count, row):
        f = lambda X: projections.double_threshold(X, Sparsity(count, row, 0.5), excess=1.2)
        return f(S), jax.grad(lambda X: jnp.sum(f(X) ** 2) / 2)(S)

    found, slopes = both(counts, rows)
    for i in range(2):
        expected = projections.double_threshold(
            S, Sparsity(int(counts[i]), float(rows[i]), 0.5), excess=1.2
        )
        assert_close(found[i], expected, 0.0)
        assert_close(slopes[i], expected, 0.0)
    text = (
        jax.jit(lambda X: projections.double_threshold(X, Sparsity(5, 0.2, 0.2))).lower(S).as_text()
    )
    assert "stablehlo.sort" not in text
    assert "top_k" not in text


def test_sparsity_of_a_matrix_is_that_of_its_worst_lines():
    S = np.zeros((10, 20))
    S[3, :6] = 1.0
    S[:4, 9] = -2.0
    found = Sparsity.of(array(S))
    assert (found.count, found.row, found.column) == (10, 7 / 20, 4 / 10)
    traced = jax.jit(Sparsity.of)(array(S))
    for name in ("count", "row", "column"):
        assert_close(getattr(traced, name), getattr(found, name), by_precision(1e-15, 1e-7))


def test_bounds_of_independent_entries_hold_and_means_do_not():
    rng, shape = np.random.default_rng(0), (60, 80)
    bounds = Sparsity.bernoulli(0.1, shape, failure=0.05)
    struck = rng.random((400, *shape)) < 0.1
    worst = [struck.sum((1, 2)), struck.mean(2).max(1), struck.mean(1).max(1)]
    ours = [bounds.count, bounds.row, bounds.column]
    holds = [np.mean(w <= b) for w, b in zip(worst, ours, strict=True)]
    assert min(holds) > 0.95
    assert np.mean(worst[1] <= 0.1) == np.mean(worst[2] <= 0.1) == 0.0
    # They are no larger than they have to be.
    tighter = Sparsity.bernoulli(0.1, shape, failure=0.99)
    assert np.mean(worst[1] <= tighter.row - 1 / 80) < 0.95


def test_clipped_rows_are_no_longer_than_the_bound():
    X = np.random.default_rng(0).normal(size=(6, 3))
    X[2] = 0
    norms = np.linalg.norm(X, axis=1)
    found = projections.clip_rows(array(X), 1.5)
    expected = X * np.where(norms > 1.5, 1.5 / np.where(norms > 0, norms, 1), 1)[:, None]
    assert_close(found, expected, by_precision(1e-14, 1e-6))
    slope = jax.grad(lambda X: jnp.sum(projections.clip_rows(X, 1.5) ** 2))(array(X))
    assert bool(jnp.all(jnp.isfinite(slope)))
    bound = projections.row_bound(array(X), 2.0)
    assert_close(bound, np.sqrt(2 * 3 / 6) * np.linalg.norm(X, 2), by_precision(1e-13, 1e-5))


def test_projected_steps_land_on_projections():
    params = (array(np.eye(3)), array(2 * np.ones((2, 2))))
    updates = jax.tree.map(lambda x: -0.3 * x, params)
    one = projections.projected(lambda x: jnp.clip(x, 0.9, 1.0))
    two = projections.projected(lambda x: x * 0, lambda x: x + 1)
    for transform, functions in (
        (one, 2 * [lambda x: np.clip(x, 0.9, 1.0)]),
        (two, [lambda x: x * 0, lambda x: x + 1]),
    ):
        steps, _ = transform.update(updates, transform.init(params), params)
        moved = optax.apply_updates(params, steps)
        for found, x, u, f in zip(moved, params, updates, functions, strict=True):
            assert_close(found, f(np.asarray(x + u)), by_precision(1e-15, 1e-6))


SQUARE = jnp.ones((4, 5))
REFUSED = {
    "count": (lambda: Sparsity(0, 0.1, 0.1), "count must be at least 1"),
    "row": (lambda: Sparsity(3, 0.0, 0.1), "row must be a share between 0 and 1; got 0.0"),
    "column": (lambda: Sparsity(3, 0.1, 1.0), "column must be a share between 0 and 1; got 1.0"),
    "nan": (lambda: Sparsity(3, np.nan, 0.1), "row must be a finite number"),
    "full row": (lambda: Sparsity.of(jnp.ones((1, 3))), "row must be a share"),
    "zero": (lambda: Sparsity.of(jnp.zeros((2, 3))), "count must be at least 1"),
    "rate": (lambda: Sparsity.bernoulli(1.0, (3, 3)), "rate must be between 0 and 1"),
    "failure": (lambda: Sparsity.bernoulli(0.1, (3, 3), failure=0.0), "failure must be between"),
    "nothing is left": (lambda: Sparsity.bernoulli(0.9, (5, 5)), "row must be a share"),
    "too many": (
        lambda: projections.double_threshold(SQUARE, Sparsity(21, 0.1, 0.1)),
        r"sparsity must have a count of at most 20, the entries of a matrix of shape \(4, 5\); "
        "got 21",
    ),
    "excess": (
        lambda: projections.double_threshold(SQUARE, Sparsity(2, 0.1, 0.1), excess=0.5),
        "excess must be at least 1",
    ),
    "bounds": (
        lambda: projections.double_threshold(SQUARE, (2, 0.1, 0.1)),
        "sparsity must be a bwflow.projections.Sparsity",
    ),
    "bound": (lambda: projections.clip_rows(SQUARE, 0.0), "bound must be positive"),
    "coherence": (lambda: projections.row_bound(SQUARE, 0.5), "coherence must be at least 1"),
    "no function": (lambda: projections.projected(3), "projections must be a function"),
    "none": (lambda: projections.projected(), "projections must be one function or more"),
    "no params": (
        lambda: projections.projected(jnp.abs).update(SQUARE, optax.EmptyState()),
        "params must be given",
    ),
    "leaves": (
        lambda: projections.projected(jnp.abs, jnp.abs).update(SQUARE, (), SQUARE),
        "projections must be one function or 1, one for each leaf",
    ),
    "rule": (lambda: projections.thresholded(1.0, 3), "sparsity must be a bwflow.projections"),
    "learning rate": (
        lambda: projections.thresholded(np.inf, Sparsity(3, 0.1, 0.1)),
        "learning_rate must be a finite number",
    ),
}


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_other_input_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.once
@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.6])
@pytest.mark.parametrize("size", [1, 7, 400, 250_000])
@pytest.mark.parametrize("failure", [1e-9, 1e-4, 0.3])
def test_counts_are_exceeded_as_rarely_as_they_should(rate, size, failure):
    count = projections._exceeded(size, rate, failure)
    assert count == int(stats.binom.isf(failure, size, rate))
