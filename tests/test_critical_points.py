"""Critical points against golden cases, enumeration, and Hessians by differences in numpy."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, array, assert_close, by_precision, golden_target
from landscapes import (
    LOSSES,
    SPECTRA,
    balanced,
    critical_sets,
    gradient,
    hessian,
    rotation,
    target_of,
)

import bwflow as bw
from bwflow import landscape

EPS = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
CRITICAL = [case for case in GOLDEN["static"] if case["id"].startswith("critical_")]
# Zero, below all, on one, between, on the largest, above all eigenvalues.
TAUS = (0.0, 0.1, 0.5, 0.75, 2.0, 3.0)
every_loss = pytest.mark.parametrize("loss", sorted(LOSSES))
every_spectrum = pytest.mark.parametrize("spectrum", sorted(SPECTRA))


def repeated(point):
    """The spectrum with every value as often as it occurs."""
    return np.repeat(point.hessian_eigenvalues, point.multiplicities)


def numpy_factor(target):
    return np.asarray(target.factor, np.float64)


@pytest.mark.parametrize("case", CRITICAL, ids=[case["id"] for case in CRITICAL])
def test_golden_critical_points(case):
    """Value, covariance, index and spectrum, known to 32 digits."""
    J = tuple(j - 1 for j in case["J_one_based"])
    points = landscape.critical_points(golden_target(case), case["widths"][0], tau=case["tau"])
    point = next(point for point in points if point.indices == J)
    scale = case["eigenvalues"][0]
    assert_close(point.value, np.float64(case["critical_value"]), 20 * EPS * scale)
    assert point.morse_index == case["morse_index"]
    assert point.is_minimum == (case["morse_index"] == 0)
    expected = np.array(case["hessian_eigenvalues"], np.float64)
    assert_close(np.unique(np.round(repeated(point), 4)), np.unique(np.round(expected, 4)), 1e-4)
    assert_close(repeated(point), np.sort(expected), 500 * EPS)
    W = np.array(case["W"][0], np.float64)
    assert_close(point.covariance, W @ W.T, 50 * EPS * scale)


@every_loss
@every_spectrum
def test_every_critical_point_is_listed_once_in_order_of_the_loss(spectrum, loss):
    """Against enumeration of all sets: repeated and zero eigenvalues, tau on and above them."""
    target, lam = target_of(spectrum), SPECTRA[spectrum]
    for rank in (1, 2, 3, 4, 6):
        for tau in TAUS:
            expected = critical_sets(lam, rank, tau, loss)
            points = list(landscape.critical_points(target, rank, tau=tau, loss=loss))
            values = [point.value for point in points]
            assert values == sorted(values)
            assert_close(values, [value for value, _ in expected], 50 * EPS * (1 + tau**2))
            assert sorted(p.indices for p in points) == sorted(J for _, J in expected)
            assert [p.is_minimum for p in points] == [True] + [False] * (len(points) - 1)
            minimum = landscape.minimum(target, rank, tau=tau, loss=loss)
            assert_close(values[0], np.asarray(minimum), 50 * EPS * (1 + tau**2))


def test_points_of_equal_value_are_all_listed():
    """At `tau = 0` learning 5 and 1 leaves what learning 4 and 2 does."""
    target = bw.covariances.from_spectrum([5.0, 4.0, 2.0, 1.0])
    points = list(landscape.critical_points(target, 2))
    assert [round(p.value, 4) for p in points] == [3, 5, 6, 6, 7, 9]
    assert {p.indices for p in points[2:4]} == {(0, 3), (1, 2)}


@pytest.mark.once
def test_first_points_of_a_large_target_are_found_without_the_others():
    """Of more than 10^47 sets the ten best; among the best fifty, exchanges of one for another."""
    n, k, tau = 200, 50, 1e-3
    target = bw.covariances.from_spectrum(bw.covariances.power_law(n))
    points = list(islice(landscape.critical_points(target, k, tau=tau), 10))
    cost = (np.arange(1, n + 1) ** -0.5 - tau**0.5) ** 2
    single = [cost[k:].sum() + cost[i] - cost[j] for i in range(k) for j in range(k, k + 10)]
    double = [
        cost[k:].sum() + cost[a] + cost[b] - cost[c] - cost[d]
        for a in range(k - 10, k)
        for b in range(a)
        for c in range(k, k + 10)
        for d in range(k, c)
    ]
    expected = np.sort([cost[k:].sum(), *single, *double])[:10]
    assert_close([point.value for point in points], expected, 1e-13)
    assert len({point.indices for point in points}) == 10


@every_loss
@every_spectrum
def test_losses_and_gradients_at_critical_points(spectrum, loss):
    """The library's own loss has the stated value there and no slope."""
    target = target_of(spectrum)
    evaluate = jax.jit(lambda W, tau: jax.value_and_grad(lambda W: LOSSES[loss](target, tau)(W))(W))
    for rank in (2, 4):
        for tau in (0.0, 0.1, 0.75):
            for point in landscape.critical_points(target, rank, tau=tau, loss=loss):
                value, slope = evaluate(point.end_to_end(), tau)
                assert_close(value, np.float64(point.value), by_precision(1e-13, 1e-5))
                assert_close(slope, np.zeros((4, rank)), by_precision(1e-13, 2e-5))


@pytest.mark.float64
@every_loss
@every_spectrum
def test_spectra_and_indices_against_differences(spectrum, loss):
    """All `n p` eigenvalues, for fewer and more columns than the target's rank."""
    target = target_of(spectrum)
    B = numpy_factor(target)
    for rank in (1, 2, 3, 4):
        for tau in (0.0, 0.1, 0.5, 0.75):
            for point in landscape.critical_points(target, rank, tau=tau, loss=loss):
                W = np.asarray(point.end_to_end()) @ rotation(1, rank)
                values = np.linalg.eigvalsh(hessian((W,), B, tau, loss))
                assert_close(repeated(point), values, 1e-8)
                assert point.morse_index == np.sum(values < -1e-6)
                assert point.is_strict == (point.morse_index > 0)


@pytest.mark.float64
@every_loss
@pytest.mark.parametrize("depth", [2, 3])
def test_deep_spectra_against_differences_at_balanced_layers(depth, loss):
    """The non-zero ones are as listed, and all others zero."""
    for spectrum in ("simple", "repeated"):
        target = target_of(spectrum)
        B = numpy_factor(target)
        for tau in (0.0, 0.1):
            points = landscape.critical_points(target, 2, tau=tau, loss=loss, depth=depth)
            for point in points:
                layers = balanced(np.asarray(point.end_to_end()), (2,) * depth + (4,))
                values = np.linalg.eigvalsh(hessian(layers, B, tau, loss, step=1e-3))
                listed = repeated(point)
                padded = np.pad(listed, (0, values.size - listed.size))
                assert_close(np.sort(padded), values, 1e-8)
                assert point.is_strict == (values[0] < -1e-6)


@pytest.mark.once
@every_loss
def test_deep_saddles_are_strict_unless_they_learn_the_largest_eigenvalues(loss):
    points = list(landscape.critical_points(target_of("simple"), 3, tau=0.1, loss=loss, depth=2))
    assert len(points) == 15
    for point in points:
        leading = point.indices == tuple(range(len(point.indices)))
        assert point.is_strict == (not leading)
        assert point.is_minimum == (point.indices == (0, 1, 2))


@pytest.mark.float64
@every_loss
def test_any_subspace_of_an_eigenspace_is_critical(loss):
    """The points of the Grassmannian have one value and one spectrum."""
    target, tau = target_of("repeated"), 0.1
    B = numpy_factor(target)
    points = landscape.critical_points(target, 2, tau=tau, loss=loss)
    point = next(point for point in points if point.indices == (0, 1))
    assert point.grassmannian == ((1, 2),)
    Q = np.linalg.eigh(B @ B.T)[1]
    for angle in (0.3, 1.2):
        line = np.cos(angle) * Q[:, 1] + np.sin(angle) * Q[:, 2]
        W = np.stack([Q[:, 3] * (2 - tau) ** 0.5, line * (1 - tau) ** 0.5], axis=1)
        assert_close(gradient(W, B, tau, loss), np.zeros((4, 2)), 1e-13)
        values = np.linalg.eigvalsh(hessian((W,), B, tau, loss))
        assert_close(repeated(point), values, 1e-8)


def test_isolated_points_have_no_grassmannian():
    for point in landscape.critical_points(target_of("repeated"), 3, tau=0.1):
        split = (1 in point.indices) != (2 in point.indices)
        assert point.grassmannian == (((1, 2),) if split else ())


@every_spectrum
def test_factors_and_covariances_belong_together(spectrum):
    target = target_of(spectrum)
    lam, tau = np.array(SPECTRA[spectrum]), 0.1
    for point in landscape.critical_points(target, 3, tau=tau):
        k = len(point.indices)
        for W in (point.end_to_end(), point.end_to_end(k), point.end_to_end(columns=5)):
            assert W.dtype == target.eigenvalues.dtype
            assert_close(W @ W.T, np.asarray(point.covariance), 50 * EPS)
        learnt = np.zeros(4)
        learnt[list(point.indices)] = lam[list(point.indices)] - tau
        values = np.linalg.eigvalsh(np.asarray(point.covariance, np.float64))
        assert_close(values, np.sort(learnt), 50 * EPS)
    with pytest.raises(ValueError, match="columns must be an integer of at least 0"):
        point.end_to_end(columns=-1)


@pytest.mark.float64
@every_loss
@every_spectrum
def test_minimizer_spectrum_against_differences(spectrum, loss):
    """Where all `rank` eigenvalues are learnt it has what is left when the gauge is taken out."""
    target = target_of(spectrum)
    B = numpy_factor(target)
    for rank, depth in ((1, 1), (2, 1), (2, 2), (4, 1)):
        for tau in (0.0, 0.1):
            k = min(rank, target.rank)
            found = landscape.minimizer_spectrum(target, rank, depth=depth, tau=tau, loss=loss)
            assert found.shape == (k * (k + 1) // 2 + (4 - k) * rank,)
            point = next(landscape.critical_points(target, rank, tau=tau, loss=loss))
            layers = balanced(np.asarray(point.end_to_end()), (rank,) * depth + (4,))
            values = np.linalg.eigvalsh(hessian(layers, B, tau, loss, step=1e-3))
            zeros = values.size - found.size
            expected = np.sort(values[np.argsort(np.abs(values))[zeros:]])
            assert_close(np.sort(found), expected, 1e-8)


@pytest.mark.float64
@every_loss
def test_minimizer_spectrum_lists_all_values_where_tau_is_above_an_eigenvalue(loss):
    """Against the closed form, some of the `rank` eigenvalues not being learnt."""
    target = target_of("simple")
    for depth in (1, 2):
        spectra = jax.jit(
            jax.vmap(
                lambda tau, depth=depth: landscape.minimizer_spectrum(
                    target, 3, depth=depth, tau=tau, loss=loss
                )
            )
        )
        for tau, found in zip(TAUS, spectra(array(TAUS)), strict=True):
            point = next(landscape.critical_points(target, 3, tau=tau, loss=loss, depth=depth))
            values, learnt = np.asarray(found), len(point.indices)
            apart = np.abs(np.append(values, 0)[:, None] - np.append(point.hessian_eigenvalues, 0))
            assert max(apart.min(0).max(), apart.min(1).max()) < 1e-6
            flat = (depth == 2 and learnt < 3) or (depth == 1 and tau in SPECTRA["simple"])
            assert (np.min(np.abs(values)) < 1e-4) == flat


@pytest.mark.once
def test_minimizer_spectrum_is_differentiable_in_the_smoothing():
    """`2 (2 lambda - 2 tau) / (2 lambda)` has the slope `-2 / lambda`, and so on."""
    target = bw.covariances.from_spectrum([4.0, 1.0, 0.0])
    for tau in (0.25, 2.0):
        slopes = jax.jacfwd(lambda tau: landscape.minimizer_spectrum(target, 1, tau=tau))(tau)
        across = -3.0 / (4 + tau**0.5) ** 2 / tau**0.5
        assert_close(slopes, [-2 / 4, across, 0.0], 20 * EPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.eye(2)}, "target must be a bwflow.Target"),
        ({"rank": 0}, "rank must be a positive integer; got 0"),
        ({"tau": -0.1}, "tau must be at least 0.0; got -0.1"),
        ({"tau": np.nan}, "tau must be a finite number"),
        ({"loss": "wasserstein"}, "loss must be one of bures_wasserstein, frobenius"),
        ({"depth": 1.5}, "depth must be a positive integer; got 1.5"),
    ],
)
@pytest.mark.once
@pytest.mark.parametrize("function", ["critical_points", "minimizer_spectrum"])
def test_refusals_come_before_the_first_point(function, change, message, as_installed):
    arguments = {"target": target_of("simple"), "rank": 2} | change
    with pytest.raises(ValueError, match=message):
        getattr(landscape, function)(**arguments)


@pytest.mark.once
def test_traced_values_are_refused():
    target = target_of("simple")
    with pytest.raises(ValueError, match="tau must not be traced"):
        jax.jit(lambda tau: next(landscape.critical_points(target, 2, tau=tau)).covariance)(0.1)
    with pytest.raises(ValueError, match="target must not be traced"):
        jax.jit(lambda t: next(landscape.critical_points(t, 2)).covariance)(target)
