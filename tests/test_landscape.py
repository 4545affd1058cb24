"""Minima and minimisers against golden critical points, enumeration, sampling and local search."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, assert_close, by_precision, golden_target
from landscapes import SPECTRA, target_of
from scipy.optimize import minimize

import bwflow as bw
from bwflow import landscape

EPS = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
TOL = 100 * EPS
CRITICAL = [case for case in GOLDEN["static"] if case["id"].startswith("critical_")]
LOSSES = {"bures_wasserstein": bw.smoothed_bures, "frobenius": bw.frobenius}
# Zero, below all, on one, between, on the largest, above all eigenvalues.
TAUS = (0.0, 0.1, 0.5, 0.75, 2.0, 3.0)
every_loss = pytest.mark.parametrize("loss", sorted(LOSSES))
every_spectrum = pytest.mark.parametrize("spectrum", sorted(SPECTRA))


def critical_value(lam, J, tau, loss):
    """Loss where the eigenvalues in `J` are learnt and nothing else is."""
    outside = [x for i, x in enumerate(lam) if i not in J]
    if loss == "frobenius":
        return sum((x - tau) ** 2 for x in outside)
    return sum((x**0.5 - tau**0.5) ** 2 for x in outside)


def least_critical_value(lam, rank, tau, loss):
    """By enumeration of the sets of at most `rank` eigenvalues above tau."""
    learnable = [i for i, x in enumerate(lam) if x > tau]
    sets = (J for k in range(rank + 1) for J in combinations(learnable, k))
    return min(critical_value(lam, J, tau, loss) for J in sets)


def golden(identifier):
    return next(case for case in CRITICAL if case["id"] == identifier)


@pytest.mark.parametrize("identifier", ["critical_J12_p2", "critical_J12_p4"])
def test_minimum_of_rank_two_is_the_golden_critical_value(identifier):
    """Known to 32 digits, as is the critical point, which has the covariance of the minimiser."""
    case = golden(identifier)
    target, tau = golden_target(case), case["tau"]
    value = landscape.minimum(target, 2, tau=tau)
    assert_close(value, np.float64(case["critical_value"]), TOL)
    W = np.array(case["W"][0], np.float64)
    assert_close(landscape.minimizer(target, 2, tau=tau), W @ W.T, TOL)


def test_minimum_lies_below_the_golden_critical_points_that_are_no_minima():
    """By as much as the formula for their values says; those of index 0 are the minima."""
    for case in CRITICAL:
        target, tau, p = golden_target(case), case["tau"], case["widths"][0]
        lam = case["eigenvalues"]
        J = [j - 1 for j in case["J_one_based"]]
        excess = float(case["critical_value"]) - float(landscape.minimum(target, p, tau=tau))
        expected = critical_value(lam, J, tau, "bures_wasserstein") - critical_value(
            lam, range(p), tau, "bures_wasserstein"
        )
        assert_close(excess, expected, 4 * TOL)
        assert (case["morse_index"] == 0) == (excess < 1e-4)


def test_frobenius_minimum_lies_below_the_golden_losses():
    """Golden Frobenius losses leave tau out; the minimum over their rank is the tail sum."""
    for case in CRITICAL:
        p, lam = case["widths"][0], np.array(case["eigenvalues"])
        value = landscape.minimum(golden_target(case), p, loss="frobenius")
        assert_close(value, (lam[p:] ** 2).sum(), TOL * 10)
        assert float(value) < float(case["fro_loss"])


@every_loss
@every_spectrum
def test_minimum_is_the_least_critical_value(spectrum, loss):
    """Against enumeration, for every rank and smoothing."""
    target, lam = target_of(spectrum), SPECTRA[spectrum]
    for rank in range(1, 6):
        for tau in TAUS:
            expected = least_critical_value(lam, min(rank, 4), tau, loss)
            value = landscape.minimum(target, rank, tau=tau, loss=loss)
            assert_close(value, np.float64(expected), TOL * (1 + tau**2))


@every_loss
@every_spectrum
def test_minimum_is_attained_at_a_factor_of_the_minimizer(spectrum, loss):
    """At a factor with as many columns as the rank, taken from scipy's view of `S*`."""
    target = target_of(spectrum)
    for rank in (1, 2, 3, 4):
        for tau in TAUS:
            S = np.asarray(landscape.minimizer(target, rank, tau=tau), np.float64)
            values, vectors = np.linalg.eigh((S + S.T) / 2)
            assert values[0] >= -TOL
            assert np.sum(values > TOL) <= rank
            W = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :rank]
            attained = LOSSES[loss](jnp.asarray(W, dtype=float), target, tau=tau)
            minimum = landscape.minimum(target, rank, tau=tau, loss=loss)
            assert_close(attained, np.asarray(minimum), by_precision(1e-13, 5e-6) * (1 + tau))


@every_spectrum
def test_minimizer_shrinks_the_leading_eigenvalues_by_tau(spectrum):
    """Against numpy's eigenvectors where the cut is unique."""
    target = target_of(spectrum)
    lam, Omega = np.linalg.eigh(np.asarray(target.covariance, np.float64))
    lam, Omega = lam[::-1], Omega[:, ::-1]
    for rank in (1, 3, 4):
        for tau in TAUS:
            kept = np.where(np.arange(4) < rank, np.maximum(lam - tau, 0), 0.0)
            expected = (Omega * kept) @ Omega.T
            assert_close(landscape.minimizer(target, rank, tau=tau), expected, 4 * TOL)
            m = target.rank
            eigenvalues = landscape.minimizing_eigenvalues(target, rank, tau=tau)
            assert_close(eigenvalues, kept[:m], TOL)


@every_loss
@every_spectrum
def test_no_matrix_of_the_rank_is_below_the_minimum(spectrum, loss):
    """20000 draws per case, from far away down to perturbations of a minimiser."""
    target = target_of(spectrum)
    evaluate = jax.jit(jax.vmap(lambda W, tau: LOSSES[loss](W, target, tau=tau), (0, None)))
    rng = np.random.default_rng(1)
    for rank in (1, 2, 4):
        for tau in (0.0, 0.1, 0.75):
            lam = np.asarray(landscape.minimizing_eigenvalues(target, rank, tau=tau))
            best = np.zeros((4, rank))
            columns = min(rank, lam.size)
            best[:, :columns] = (np.asarray(target.eigenvectors) * np.sqrt(lam))[:, :columns]
            size = 10.0 ** rng.uniform(-4, 0.3, size=(20000, 1, 1))
            near = rng.integers(0, 2, size=(20000, 1, 1))
            W = near * best + size * rng.normal(size=(20000, 4, rank))
            values = np.asarray(evaluate(jnp.asarray(W, dtype=float), tau), np.float64)
            minimum = float(landscape.minimum(target, rank, tau=tau, loss=loss))
            slack = by_precision(1e-13, 1e-5)
            assert values.min() >= minimum - slack
            assert values.min() <= minimum + 1e-4


@pytest.mark.float64
@every_loss
@every_spectrum
def test_local_search_finds_the_minimum_and_nothing_below(spectrum, loss):
    """L-BFGS from random starts: there is no spurious minimum to be stuck at."""
    target = target_of(spectrum)
    for rank, tau in ((2, 0.1), (3, 0.75), (1, 0.0)):
        value = jax.jit(
            jax.value_and_grad(
                lambda w, rank=rank, tau=tau: LOSSES[loss](w.reshape(4, rank), target, tau=tau)
            )
        )
        minimum = float(landscape.minimum(target, rank, tau=tau, loss=loss))
        for seed in range(5):
            start = np.random.default_rng(seed).normal(size=4 * rank)
            found = minimize(
                lambda w, value=value: tuple(np.asarray(x) for x in value(w)),
                start,
                jac=True,
                method="L-BFGS-B",
                options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 2000},
            )
            assert found.fun >= minimum - 1e-13
            assert found.fun <= minimum + 1e-5


def test_minimum_does_not_grow_with_the_rank_and_ends_at_zero_without_smoothing():
    for spectrum, m in (("simple", 4), ("rank two of four", 2)):
        target = target_of(spectrum)
        for loss in LOSSES:
            values = [float(landscape.minimum(target, k, loss=loss)) for k in range(1, 5)]
            assert np.all(np.diff(values) <= 0)
            assert values[m - 1] == 0.0
            assert values[m - 2] > 0.01


@every_loss
def test_minimum_is_positive_at_full_rank_where_tau_exceeds_an_eigenvalue(loss):
    target = target_of("simple")
    excess = {"bures_wasserstein": 0.4**0.5 - 0.5, "frobenius": 0.4 - 0.25}[loss]
    assert_close(landscape.minimum(target, 4, tau=0.4, loss=loss), np.float64(excess**2), TOL)


@every_loss
def test_minimum_under_jit_takes_a_traced_smoothing(loss):
    target = target_of("rank two of four")
    traced = jax.jit(jax.vmap(lambda tau: landscape.minimum(target, 2, tau=tau, loss=loss)))
    for tau, value in zip(TAUS, traced(jnp.asarray(TAUS)), strict=True):
        expected = least_critical_value(SPECTRA["rank two of four"], 2, tau, loss)
        assert_close(value, np.float64(expected), TOL * (1 + tau**2))


@every_spectrum
def test_slope_of_the_minimum_in_tau_counts_the_directions_not_learnt(spectrum):
    """`sum_{i not in J} (1 - sqrt(lambda_i / tau))`."""
    target, lam = target_of(spectrum), SPECTRA[spectrum]
    for rank in (1, 4):
        for tau in (0.1, 0.75, 3.0):
            slope = jax.grad(lambda t, rank=rank: landscape.minimum(target, rank, tau=t))(tau)
            learnt = {i for i in range(rank) if lam[i] > tau}
            expected = sum(1 - (x / tau) ** 0.5 for i, x in enumerate(lam) if i not in learnt)
            assert_close(slope, np.float64(expected), TOL * 4)


def test_gradient_of_the_minimum_in_the_target_is_carried_by_the_directions_not_learnt():
    """`sum_{i not in J} (1 - sqrt(tau / lambda_i)) omega_i omega_i^T`."""
    Sigma = np.asarray(target_of("simple").covariance, np.float64)
    lam, Omega = np.linalg.eigh(Sigma)
    weights = np.where(lam > 0.75, 0.0, 1 - np.sqrt(0.1 / lam))

    def value(Sigma):
        return landscape.minimum(bw.Target(Sigma, rank=4), 2, tau=0.1)

    gradient = jax.grad(value)(jnp.asarray(Sigma, dtype=float))
    assert_close(gradient, (Omega * weights) @ Omega.T, 10 * TOL)
