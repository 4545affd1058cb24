"""Step sizes and what a step does, against descents in plain numpy and forty digits."""

import mpmath
import numpy as np
import pytest
from dynamics import LOSSES, balanced_layers, gradients, product
from helpers import array, assert_close, by_precision

import bwflow as bw
from bwflow import theory

TIGHT = by_precision(1e-12, 2e-5)
LAM = np.array([2.0, 1.0, 0.5])


def diagonal(lam):
    return bw.Target(array(np.diag(lam)))


def descend(layers, Sigma, tau, steps, num_steps, kind="bures_wasserstein"):
    """Layers after descents, one for each entry of the stack of step sizes, and their losses."""
    steps = np.asarray(steps)[:, None, None]
    layers = [np.broadcast_to(W, (len(steps), *W.shape[-2:])).copy() for W in layers]
    losses = []
    for _ in range(num_steps):
        loss, found = gradients(layers, Sigma, tau, kind)
        losses.append(loss)
        layers = [W - steps * g for W, g in zip(layers, found, strict=True)]
    return layers, np.stack([*losses, LOSSES[kind](product(layers), Sigma, tau)[0]])


# --- published and practical step sizes --------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("depth", [1, 2, 3, 2.5, 20])
def test_published_step_sizes_agree_with_their_formulas_in_forty_digits(depth):
    with mpmath.workdps(40):
        N, L0, lam = mpmath.mpf(depth), mpmath.mpf("0.03125"), [mpmath.mpf(x) for x in LAM]
        c = mpmath.sqrt(lam[-1]) - mpmath.sqrt(L0)
        M = mpmath.sqrt(2 * (L0 + sum(lam)))
        D = 2 ** (N + 1) / c ** (2 * N) * N**2 * M ** ((4 * N - 3) / N) * mpmath.sqrt(lam[0])
        D += 8 * N * (N - 1) * M ** ((3 * N - 4) / N) * (M ** (1 / N) + sum(lam))
        expected = (
            c**2 / (8 * M * mpmath.sqrt(L0)),
            N * c ** (2 * (N - 1) / N) / (2 * D),
            1 / (4 * N * c ** (2 * (N - 1) / N)),
        )
        found = theory.published_step_sizes(diagonal(LAM), 0.03125, depth=depth)
        for x, y in zip(found, expected, strict=True):
            assert_close(x / float(y), 1.0, 1e-13)
        assert found.least == min(found)


def test_step_sizes_at_the_ends_of_their_formulas():
    target = diagonal(LAM)
    assert theory.published_step_sizes(target, 9.0, depth=2).least == 0  # no margin
    assert theory.published_step_sizes(target, 0.01, depth=2, margin=0.0).least == 0
    at_optimum = theory.published_step_sizes(target, 0.0, depth=2)
    assert np.isposinf(at_optimum.eta_1)
    assert 0 < at_optimum.least < np.inf
    many = theory.published_step_sizes(target, 0.01, depth=100)
    assert all(0 <= x < 1 for x in many)
    assert_close(theory.practical_step_size(target, 7.0, depth=1, safety=0.3), 0.3, TIGHT)
    expected = 0.5 / (3 * (2**0.5 + 7**0.5) ** (4 / 3))
    assert_close(theory.practical_step_size(target, 7.0, depth=3), expected, TIGHT)


@pytest.mark.once
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_loss_falls_at_every_practical_step(depth):
    rng = np.random.default_rng(depth)
    for tau in (0.0, 0.1):
        for scale in (0.3, 3.0):
            layers = balanced_layers(scale * rng.normal(size=(10, 3, 3)), depth)
            L0 = LOSSES["bures_wasserstein"](product(layers), np.diag(LAM), tau)[0]
            steps = np.asarray(theory.practical_step_size(diagonal(LAM), L0, depth=depth))
            layers, losses = descend(layers, np.diag(LAM), tau, steps, 300)
            assert np.all(np.diff(losses, axis=0) <= 1e-14 * losses[0])


# --- the loss of a step ------------------------------------------------------------------------


@pytest.mark.once
def test_one_layer_falls_by_the_factor_whatever_the_start():
    rng, steps = np.random.default_rng(0), np.array([0.1, 0.5, 0.9, 1.2, 2.0])
    for tau in (0.0, 0.05, 1.0):
        for _ in range(20):
            W = rng.normal(size=(3, 3)) * 10 ** rng.uniform(-1, 1)
            losses = descend([W], np.diag(LAM), tau, steps, 1)[1]
            least = np.linalg.svd(W, compute_uv=False)[-1]
            factor = theory.descent_factor(array(steps), least, depth=1, tau=tau)
            assert np.all(losses[1] <= (factor + 1e-9) * losses[0])
            if tau == 0:  # exact as long as the step does not overshoot
                assert_close(losses[1, :2] / losses[0, :2], (1 - 2 * steps[:2]) ** 2, 1e-8)
                assert_close(factor, (1 - 2 * steps) ** 2, 1e-14)


@pytest.mark.once
def test_the_half_step_of_one_layer_ends_at_the_optimum():
    W = np.random.default_rng(1).normal(size=(3, 4))
    assert theory.descent_factor(0.5, 0.1, depth=1) == 0
    assert descend([W], np.diag(LAM), 0.0, [0.5], 1)[1][-1] < 1e-14


@pytest.mark.once
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_deep_descent_falls_by_the_factor_at_published_step_sizes(depth):
    # Observed, not proved.
    rng, target = np.random.default_rng(depth), diagonal(LAM)
    for tau in (0.0, 0.05):
        best = np.diag(np.sqrt(LAM - tau))
        near = best + 0.1 * rng.normal(size=(20, 3, 3))
        layers = balanced_layers(near, depth)
        L0 = LOSSES["bures_wasserstein"](product(layers), np.diag(LAM), tau)[0]
        margin = theory.margin(target, L0, tau=tau)
        steps = theory.published_step_sizes(target, L0, depth=depth, margin=margin).least
        steps, margin = np.asarray(steps), np.asarray(margin)
        assert np.all(steps > 0)
        losses = descend(layers, np.diag(LAM), tau, steps, 200)[1]
        factor = np.asarray(theory.descent_factor(array(steps), margin, depth=depth, tau=tau))
        k = np.arange(201)[:, None]
        assert np.all(losses <= L0 * factor**k * (1 + 1e-9))


def test_factor_is_one_where_nothing_is_known():
    for depth in (1, 2, 3.5):
        assert theory.descent_factor(0.1, 0.0, depth=depth) == 1


# --- the limit ---------------------------------------------------------------------------------


def test_stability_limit_of_full_rank_is_its_closed_form():
    for depth in (1, 2, 3, 10):
        for tau in (0.0, 0.1, 0.4):
            found = theory.stability_limit(diagonal(LAM), 3, depth=depth, tau=tau)
            expected = 2.0 / (depth * (2.0 - tau) ** ((2 * depth - 1) / depth))
            assert_close(found / expected, 1.0, TIGHT)
    # A bottleneck changes nothing for two or more layers, if tau <= lambda_1 / 2.
    found = theory.stability_limit(diagonal(LAM), 1, depth=2, tau=0.1)
    assert_close(found, 2.0 / (2 * 1.9**1.5), TIGHT)
    limit = theory.stability_limit(diagonal(LAM), 3, depth=1, tau=0.1, loss="frobenius")
    assert_close(limit, 1 / (4 * 1.9), TIGHT)


@pytest.mark.once
@pytest.mark.parametrize("kind", ["bures_wasserstein", "frobenius"])
def test_descent_converges_below_the_limit_and_not_above(kind):
    rng = np.random.default_rng(2)
    for depth in (1, 2, 3):
        for tau in (0.0, 0.1):
            limit = float(theory.stability_limit(diagonal(LAM), 3, depth=depth, tau=tau, loss=kind))
            W = np.diag(np.sqrt(LAM - tau)) + 1e-3 * rng.normal(size=(3, 3))
            steps = limit * np.array([0.95, 1.05])
            losses = descend(balanced_layers(W, depth), np.diag(LAM), tau, steps, 600, kind)[1]
            assert losses[-1, 0] < 1e-9
            assert losses[-1, 1] > 1e-4


@pytest.mark.once
def test_time_of_a_descent_is_not_its_number_of_steps():
    # A rate of the flow holds with time = step size * steps, not with time = steps.
    tau, target, eta = 0.25, diagonal([1.0]), 0.01
    W = np.array([[0.9]])
    losses = descend([W], np.eye(1), tau, [eta], 300)[1][:, 0]
    margin = theory.margin(target, losses[0], tau=tau)
    rate = float(theory.published_rate(target, losses[0], depth=1, tau=tau, margin=margin))
    steps = np.arange(301)
    assert np.all(losses <= losses[0] * np.exp(-rate * eta * steps))
    assert np.all(losses[1:] > losses[0] * np.exp(-rate * steps[1:]))


@pytest.mark.once
def test_unfit_arguments_are_refused(as_installed):
    target = diagonal(LAM)
    for match, call in (
        ("target must be", lambda: theory.published_step_sizes(3, 0.0, depth=1)),
        ("margin must be at least 0", lambda: theory.descent_factor(0.1, -1.0, depth=1)),
        ("step_size must be at least 0", lambda: theory.descent_factor(-0.1, 1.0, depth=1)),
        (
            "safety must be at least 0",
            lambda: theory.practical_step_size(target, 0.0, depth=1, safety=-1),
        ),
        ("depth must be at least 1", lambda: theory.practical_step_size(target, 0.0, depth=0)),
        ("rank must be a positive", lambda: theory.stability_limit(target, 0, depth=1)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
