"""Margins, rates and critical values against direct solves of the flow and re-derivations."""

from itertools import combinations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from dynamics import LOSSES, balanced_layers, bures, flow, gradients, product
from helpers import array, assert_close, by_precision
from scipy.integrate import solve_ivp

import bwflow as bw
from bwflow import theory

TIGHT = by_precision(1e-12, 2e-5)
LAM = np.array([2.0, 1.0, 0.5])
KINDS = ("bures_wasserstein", "frobenius")


def rotation(seed, n=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def diagonal(lam):
    return bw.Target(array(np.diag(lam)))


def near_start(rng, lam, tau, scale):
    """A matrix near the minimiser, with one column more than rows."""
    n = lam.size
    best = np.diag(np.sqrt(lam - tau)) @ np.linalg.qr(rng.normal(size=(n + 1, n)))[0].T
    return best + scale * rng.normal(size=best.shape)


@pytest.fixture(scope="module")
def runs():
    """Balanced flows of both losses from near starts, and their least singular values."""
    rng, times, found = np.random.default_rng(0), np.linspace(0.0, 3.0, 31), []
    for kind in KINDS:
        for depth in (1, 2, 3):
            for tau in (0.0, 0.1, 0.2):
                start = balanced_layers(near_start(rng, LAM, tau, 0.03), depth)
                W = flow(start, np.diag(LAM), tau, times, kind)
                losses = np.maximum(LOSSES[kind](W, np.diag(LAM), tau)[0], 0)
                least = np.linalg.svd(W, compute_uv=False)[:, -1]
                found.append((depth, kind, tau, times, losses, W, least))
    return found


# --- margins -----------------------------------------------------------------------------------


@pytest.mark.float64
def test_trace_stays_below_its_bound(runs):
    for _, kind, tau, _, losses, W, _ in runs:
        if kind == "bures_wasserstein":
            traces = np.sum(W**2, axis=(1, 2)) + 3 * tau
            assert np.all(traces <= theory.trace_bound(diagonal(LAM), losses[0]))
    lam = np.array([3.0, 1.0])
    assert_close(theory.trace_bound(diagonal(lam), array([0.0, 2.0])), [8.0, 12.0], TIGHT)


@pytest.mark.float64
def test_least_singular_value_stays_above_the_margin(runs):
    positive = 0
    for _, kind, tau, _, losses, _, least in runs:
        margins = theory.margin(diagonal(LAM), losses, tau=tau, loss=kind)
        assert np.all(least >= margins[0])
        # The margin of a later time bounds what follows it, and tends to the truth.
        assert np.all(np.minimum.accumulate(least[::-1])[::-1] >= margins - 1e-7)
        positive += bool(margins[0] > 0)
    assert positive == len(runs)


@pytest.mark.parametrize("kind", KINDS)
def test_margin_is_attained_where_only_the_last_direction_is_off(kind):
    for lam, rank in (((4.0, 2.0, 1.0), 3), ((4.0, 2.0, 1.0, 0.5, 0.0), 3), ((4.0, 2.0, 0.0), 2)):
        lam = np.array(lam)
        target = diagonal(lam)
        for tau in (0.0, 0.3):
            for sigma in (0.8, 0.3):
                learnt = np.where(np.arange(lam.size) < rank, lam - tau, 0)
                learnt[rank - 1] = sigma**2
                power = 0.5 if kind == "bures_wasserstein" else 1.0
                loss = np.sum(((learnt + tau) ** power - lam**power) ** 2)
                found = theory.margin(target, loss, tau=tau, rank=rank, loss=kind)
                assert_close(found, sigma, by_precision(1e-7, 3e-3))


@pytest.mark.float64
def test_margin_of_a_bottleneck_bounds_what_it_lets_through():
    rng, lam = np.random.default_rng(3), np.array([2.0, 1.5, 0.1, 0.05])
    for tau in (0.02, 0.3):
        W = np.zeros((4, 2))
        W[:2] = np.diag(np.sqrt(lam[:2] - tau)) @ rotation(1, 2)
        W += 0.1 * rng.normal(size=W.shape)
        times = np.linspace(0.0, 4.0, 21)
        path = flow(balanced_layers(W, 2), np.diag(lam), tau, times)
        L0 = bures(path[0], np.diag(lam), tau)[0]
        margin = theory.margin(diagonal(lam), L0, tau=tau, rank=2)
        assert margin > 0.3
        assert np.linalg.svd(path, compute_uv=False)[:, -1].min() >= margin
        assert theory.margin(diagonal(lam), L0, tau=tau) == 0  # two columns have no sigma_4


def test_margins_are_zero_where_nothing_is_known():
    target = diagonal(np.array([4.0, 1.0, 0.0]))
    assert theory.margin(target, 0.0) == 0  # singular
    assert theory.published_margin(target, 0.0) == 0
    assert theory.margin(target, 0.0, rank=2, tau=1.5) == 0  # more smoothing than variance
    assert theory.margin(target, 9.0, rank=1) == 0  # far: the difference of roots is negative
    assert theory.margin(target, 100.0, rank=2, loss="frobenius") == 0
    for value in (
        theory.sharp_rate(target, 0.0, depth=3),
        theory.published_rate(target, 0.0, depth=3, tau=0.1),
        theory.pl_constant(0.0, depth=3),
        theory.pl_constant(0.0, depth=1),
        theory.convexity_constant(target, 1.0, tau=0.1),
        theory.convexity_constant(diagonal(LAM), 1.0, tau=0.0),
    ):
        assert value == 0


@pytest.mark.once
def test_constants_and_rates_agree_with_their_formulas_in_forty_digits():
    with mpmath.workdps(40):
        lam, L0, tau = (
            [mpmath.mpf(x) for x in ("4", "2", "1")],
            mpmath.mpf("0.03125"),
            mpmath.mpf(1) / 8,
        )
        C0 = 2 * (L0 + sum(lam))
        K = mpmath.sqrt(tau * lam[-1]) / (2 * C0**2)
        c = mpmath.sqrt(lam[-1]) - mpmath.sqrt(L0)
        true = mpmath.sqrt(c**2 - tau)
        target, given = diagonal([4.0, 2.0, 1.0]), (float(L0), float(tau))
        assert_close(theory.convexity_constant(target, given[0], tau=given[1]), float(K), 1e-17)
        assert_close(theory.published_margin(target, given[0]), float(c), 1e-15)
        assert_close(theory.margin(target, given[0], tau=given[1]), float(true), 1e-15)
        for N in (1, 2, 2.5, 100):
            e = 2 * (2 * mpmath.mpf(N) - 1) / N
            published = theory.published_rate(target, given[0], depth=N, tau=given[1])
            assert_close(published / float(8 * N * c**e * K), 1.0, 1e-14)
            sharp = theory.sharp_rate(target, given[0], depth=N, tau=given[1])
            expected = 4 * N * true ** (e - 2) * true**2 / (true**2 + tau)
            assert_close(sharp / float(expected), 1.0, 1e-14)
            constant = theory.pl_constant(0.75, depth=N, loss="frobenius")
            assert_close(constant / float(16 * N * mpmath.mpf("0.75") ** e), 1.0, 1e-14)


@pytest.mark.float64
def test_loss_in_the_covariance_is_as_convex_as_the_constant_says():
    """`F(S') >= F(S) + <E, S' - S> + K/2 ||S' - S||^2` and `||E||^2 >= 2 K F`, below `C_0`."""
    rng, tight = np.random.default_rng(7), []
    for _ in range(200):
        lam, Q = 10 ** rng.uniform(-1, 0.5, size=2), rotation(rng, 2)
        Sigma, tau = (Q * lam) @ Q.T, rng.uniform(0.1, 1.0) * min(lam)
        W, V = (rng.normal(size=(2, 2)) * 10 ** rng.uniform(-1, 0.3) for _ in range(2))
        (F, G), (other, _) = (bures(X, Sigma, tau) for X in (W, V))
        E = np.linalg.solve(W.T, G.T).T / 2
        target = bw.Target(array((Sigma + Sigma.T) / 2))
        K = float(theory.convexity_constant(target, max(F, other), tau=tau))
        D = V @ V.T - W @ W.T
        excess = other - F - np.sum(E * D)
        assert excess >= K / 2 * np.sum(D**2) - 1e-9
        assert np.sum(E**2) >= 2 * K * F - 1e-9
        tight.append(K / 2 * np.sum(D**2) / excess)
    assert max(tight) > 1e-3  # not a comparison with nothing


# --- rates -------------------------------------------------------------------------------------


def layerings(rng, W, depth):
    """Layers with product `W`: unbalanced ones where balance is not needed, else balanced."""
    if depth == 2:
        A = rng.normal(size=(3, 4))
        return [
            np.linalg.pinv(A) @ W
            + (np.eye(4) - np.linalg.pinv(A) @ A) @ rng.normal(size=(4, W.shape[1])),
            A,
        ]
    return balanced_layers(W, depth)


@pytest.mark.once
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_bounded_below_by_the_loss(kind):
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(150):
        depth, tau = rng.integers(1, 5), rng.choice([0.0, 1e-3, 0.3])
        W = rng.normal(size=(3, 4)) * 10 ** rng.uniform(-1, 1)
        layers = layerings(rng, W, depth)
        assert np.allclose(product(layers), W)
        L, found = gradients(layers, np.diag(LAM), tau, kind)
        least = np.linalg.svd(W, compute_uv=False)[-1]
        mu = theory.pl_constant(least, tau=tau, depth=int(depth), loss=kind)
        ratios.append(sum(np.sum(g**2) for g in found) / float(mu * L))
        if kind == "bures_wasserstein" and depth == 1 and tau == 0:
            assert abs(ratios[-1] - 1) < 1e-9
    assert min(ratios) > 1 - 1e-9


@pytest.mark.float64
def test_flows_stay_below_the_proved_bounds(runs):
    for depth, kind, tau, times, losses, _, _ in runs:
        L0, target = losses[0], diagonal(LAM)
        sharp = float(theory.sharp_rate(target, L0, depth=depth, tau=tau, loss=kind))
        assert sharp > 0.5
        assert np.all(np.sqrt(losses) <= np.sqrt(L0 * np.exp(-sharp * times)) + 1e-8)
        if kind == "bures_wasserstein":
            margin = theory.margin(target, L0, tau=tau)
            published = theory.published_rate(target, L0, depth=depth, tau=tau, margin=margin)
            assert published <= sharp / 4
        if kind == "bures_wasserstein" and depth == 1 and tau == 0:
            assert_close(losses, L0 * np.exp(-4 * times), 1e-10)


@pytest.mark.float64
def test_late_rate_is_the_slope_of_the_gap():
    rng, lam = np.random.default_rng(5), np.array([2.0, 1.2, 0.5, 0.3])
    for kind in KINDS:
        for depth, rank, tau in ((1, 2, 0.1), (2, 4, 0.0), (3, 2, 0.1), (2, 3, 0.05)):
            W = np.zeros((4, rank))
            W[:rank] = np.diag(np.sqrt(lam[:rank] - tau))
            W += 0.02 * rng.choice([-1.0, 1.0], size=W.shape)  # no mode is left out
            target = diagonal(lam)
            rate = float(theory.late_rate(target, rank, depth=depth, tau=tau, loss=kind))
            times = np.concatenate([[0.0], np.linspace(12.0, 15.0, 20) / rate])
            path = flow(balanced_layers(W, depth), np.diag(lam), tau, times, kind)
            least = float(bw.landscape.minimum(target, rank, tau=tau, loss=kind))
            gap = LOSSES[kind](path, np.diag(lam), tau)[0][1:] - least
            slope = -np.polyfit(times[1:], np.log(gap), 1)[0]
            assert abs(slope / rate - 1) < 0.05


def test_late_rate_is_the_sharp_rate_at_the_optimum():
    target = diagonal(LAM)
    for depth in (1, 2, 3):
        for tau in (0.0, 0.1):
            late = theory.late_rate(target, 3, depth=depth, tau=tau)
            sharp = theory.sharp_rate(target, 0.0, depth=depth, tau=tau)
            assert_close(late, sharp, TIGHT)


def test_late_rate_is_zero_where_decay_is_algebraic():
    target = diagonal(np.array([4.0, 1.0]))
    assert theory.late_rate(target, 2, depth=2, tau=1.5) == 0  # unlearnt by a power law
    assert theory.late_rate(target, 2, depth=1, tau=1.0) == 0
    assert theory.late_rate(target, 2, depth=3, tau=1.0) == 0
    assert theory.late_rate(diagonal(np.array([4.0, 1.0, 0.0])), 3, depth=2) == 0
    # One layer unlearns exponentially: s' = -2 (1 - (lambda / tau)^{1/2}) s.
    assert_close(
        theory.late_rate(target, 2, depth=1, tau=1.5), 4 * (1 - np.sqrt(1 / 1.5)), 10 * TIGHT
    )


def test_late_rate_ignores_motion_along_equal_minimisers():
    target = diagonal(np.array([4.0, 1.0, 1.0]))
    assert_close(theory.late_rate(target, 2, depth=1), 3.0, TIGHT)


# --- critical values ---------------------------------------------------------------------------


def critical_values(lam, rank, tau, kind):
    """Values over all sets of at most `rank` learnable eigenvalues, ascending and distinct."""
    off = (np.sqrt(lam) - np.sqrt(tau)) ** 2 if kind == "bures_wasserstein" else (lam - tau) ** 2
    learnable = [i for i, x in enumerate(lam) if x > tau]
    sets = [J for q in range(rank + 1) for J in combinations(learnable, q)]
    values = sorted(np.sum(np.delete(off, J)) for J in sets)
    return [x for i, x in enumerate(values) if i == 0 or x - values[i - 1] > 1e-5]


@pytest.mark.parametrize("kind", KINDS)
def test_saddle_value_is_the_second_of_all_critical_values(kind):
    for lam in ((4.0, 2.0, 1.0, 0.5), (4.0, 2.0, 2.0, 1.0), (4.0, 4.0, 2.0, 0.0)):
        for tau in (0.05, 0.6, 1.5, 5.0):
            for rank in (1, 2, 3, 4):
                values = critical_values(np.array(lam), rank, tau, kind)
                found = theory.saddle_value(diagonal(lam), rank, tau=tau, loss=kind)
                if len(values) == 1:
                    assert np.isposinf(found)
                else:
                    assert_close(found, values[1], 10 * TIGHT)


@pytest.mark.float64
def test_flows_from_below_the_saddle_end_at_the_minimum():
    rng, lam, tau = np.random.default_rng(6), np.array([2.0, 1.0, 0.3, 0.1]), 0.05
    target, below = diagonal(lam), 0
    least, saddle = (
        float(f(target, 2, tau=tau)) for f in (bw.landscape.minimum, theory.saddle_value)
    )
    while below < 4:
        W = rng.normal(size=(4, 2))
        if bures(W, np.diag(lam), tau)[0] < saddle:
            path = flow(balanced_layers(W, 2), np.diag(lam), tau, [0.0, 60.0])
            assert abs(bures(path[-1], np.diag(lam), tau)[0] - least) < 1e-6
            below += 1


# --- where the published statements are not bounds -----------------------------------------------


@pytest.mark.float64
def test_published_margin_is_above_the_least_singular_value_with_smoothing(runs):
    exceeded = 0
    for _, kind, tau, _, losses, _, least in runs:
        if kind == "bures_wasserstein":
            published = float(theory.published_margin(diagonal(LAM), losses[-1]))
            exceeded += least[-1] < published - 1e-3
            assert (least[-1] < published - 1e-3) == (tau > 0)
    assert exceeded == 6


def test_saddle_of_low_rank_has_a_published_rate():
    lam, tau = np.array([4.0, 1.0]), 0.25
    target, W = diagonal(lam), array([[0.0], [0.75**0.5]])
    loss = bw.losses.BuresWasserstein(target, tau)
    L0, G = jax.value_and_grad(loss)(W)
    assert_close(L0, 2.25, TIGHT)
    assert_close(loss.minimum(1), 0.25, TIGHT)
    assert_close(G, np.zeros((2, 1)), TIGHT)  # it stays
    margin = theory.published_margin(target, L0, rank=1)
    assert_close(margin, 0.5, TIGHT)
    rate = theory.published_rate(target, L0, depth=2, tau=tau, margin=margin)
    assert_close(rate, 2.4e-3, 5e-5)
    # What is true: sigma_1 has a margin, but sigma_2, by which the loss would fall, has none.
    assert 0 < theory.margin(target, L0, tau=tau, rank=1) < 0.75**0.5
    assert theory.sharp_rate(target, L0, depth=2, tau=tau) == 0
    assert_close(theory.saddle_value(target, 1, tau=tau), L0, TIGHT)


@pytest.mark.float64
def test_margin_without_the_loss_is_no_bound():
    # Far from the target c was replaced by lambda^{1/2}, whatever the loss.
    target, tau, depth = diagonal([1.0]), 0.25, 3
    s = theory.aligned_flow(array([1e-3, 1e-3]), 1.0, array([0.0, 20.0]), depth=depth, tau=tau)
    losses = (np.sqrt(np.asarray(s) ** 2 + tau) - 1) ** 2
    margin = max(float(theory.published_margin(target, losses[0])), 1.0)
    rate = float(theory.published_rate(target, losses[0], depth=depth, tau=tau, margin=margin))
    assert losses[1] / losses[0] > 0.9999998
    assert abs(np.exp(-rate * 20) / 4.6e-9 - 1) < 0.02  # what it claimed to be left


@pytest.mark.float64
@pytest.mark.parametrize(
    ("depth", "start", "time", "left", "claimed"),
    [(1, 1e-6, 5.0, 0.998, 0.670), (2, 1e-3, 50.0, 0.999998, 0.018), (3, 1e-3, 50.0, 1.0, 0.0085)],
)
def test_published_rate_is_broken_by_a_start_of_nearly_lower_rank(
    depth, start, time, left, claimed
):
    tau, target = 0.25, diagonal([1.0])

    def velocity(t, s):
        return -2 * depth * s ** (3 - 2 / depth) * (1 - 1 / np.sqrt(s**2 + tau))

    s = solve_ivp(velocity, (0, time), [start], "DOP853", rtol=1e-12, atol=1e-18).y[0, -1]
    L0, L = ((np.sqrt(x**2 + tau) - 1) ** 2 for x in (start, s))
    assert abs(L / L0 - left) < 5e-4
    bound = np.exp(-time * float(theory.published_rate(target, L0, depth=depth, tau=tau)))
    assert abs(bound / claimed - 1) < 0.02
    assert bound < 0.7 * L / L0
    margin = theory.margin(target, L0, tau=tau)
    assert_close(margin / start, 1.0, 1e-3)  # what the margin should be
    corrected = theory.published_rate(target, L0, depth=depth, tau=tau, margin=margin)
    for rate in (corrected, theory.sharp_rate(target, L0, depth=depth, tau=tau)):
        assert 1.0 >= np.exp(-time * float(rate)) >= L / L0 - 1e-12


def test_distance_with_one_argument_smoothed_is_positive_at_the_optimum():
    lam, tau = np.array([3.0, 2.0, 1.0]), 0.1
    target = diagonal(lam)
    best, eye = bw.landscape.minimizer(target, 3, tau=tau), jnp.eye(3)
    one = bw.bures_wasserstein(best + tau * eye, best)
    assert_close(one, np.sum((np.sqrt(lam) - np.sqrt(lam - tau)) ** 2), TIGHT)
    assert_close(one, 4.8e-3, 5e-5)
    both = bw.bures_wasserstein(best + tau * eye, target.covariance)
    assert_close(both, 0.0, TIGHT)


# --- all of them -------------------------------------------------------------------------------

FUNCTIONS = {
    "trace_bound": lambda T, L, tau, N: theory.trace_bound(T, L),
    "convexity_constant": lambda T, L, tau, N: theory.convexity_constant(T, L, tau=tau),
    "published_margin": lambda T, L, tau, N: theory.published_margin(T, L),
    "margin": lambda T, L, tau, N: theory.margin(T, L, tau=tau),
    "frobenius margin": lambda T, L, tau, N: theory.margin(T, L, tau=tau, loss="frobenius"),
    "pl_constant": lambda T, L, tau, N: theory.pl_constant(L, tau=tau, depth=N),
    "published_rate": lambda T, L, tau, N: theory.published_rate(T, L, depth=N, tau=tau),
    "sharp_rate": lambda T, L, tau, N: theory.sharp_rate(T, L, depth=N, tau=tau),
    "late_rate": lambda T, L, tau, N: theory.late_rate(T, 3, depth=2, tau=tau),
    "saddle_value": lambda T, L, tau, N: theory.saddle_value(T, 2, tau=tau),
    "published_step_sizes": lambda T, L, tau, N: theory.published_step_sizes(T, L, depth=N).least,
    "practical_step_size": lambda T, L, tau, N: theory.practical_step_size(T, L, depth=N),
    "stability_limit": lambda T, L, tau, N: theory.stability_limit(T, 3, depth=2, tau=tau),
    "descent_factor": lambda T, L, tau, N: theory.descent_factor(0.1, L, depth=N, tau=tau),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_vmap_and_derivatives_agree_with_plain_calls(name):
    f, target = FUNCTIONS[name], diagonal(LAM)
    L0, tau, N = array([0.0, 0.01, 9.0]), array([0.05, 0.01, 0.1]), array([1.0, 2.5, 100.0])
    rows = [f(target, *x) for x in zip(L0, tau, N, strict=True)]
    assert all(row.dtype == L0.dtype and row.shape == () for row in rows)
    mapped = jax.jit(jax.vmap(f, in_axes=(None, 0, 0, 0)))(target, L0, tau, N)
    assert_close(mapped, np.stack(rows), by_precision(1e-13, 1e-5))
    # Slopes are finite at the ends of the formulas too: a loss of 0, a margin of 0, a root of 0.
    for x in zip(L0, tau, N, strict=True):
        slopes = jax.grad(f, argnums=(1, 2, 3))(target, *x)
        assert all(np.isfinite(slope) for slope in slopes)


@pytest.mark.once
def test_numbers_may_be_arrays_that_broadcast():
    target, L0, N = diagonal(LAM), array([[0.0], [0.01]]), array([[1.0, 3.0, 10.0]])
    found = theory.sharp_rate(target, L0, depth=N, tau=0.1)
    assert found.shape == (2, 3)
    assert_close(found[1, 2], theory.sharp_rate(target, 0.01, depth=10, tau=0.1), TIGHT)


@pytest.mark.once
def test_unfit_arguments_are_refused(as_installed):
    target = diagonal(LAM)
    for match, call in (
        ("target must be a bwflow.Target", lambda: theory.margin(np.eye(3), 0.0)),
        ("initial_loss must be at least 0", lambda: theory.margin(target, -1.0)),
        ("initial_loss must be finite", lambda: theory.trace_bound(target, [np.nan, 1.0])),
        ("tau must be at least 0", lambda: theory.sharp_rate(target, 0.0, depth=1, tau=-1.0)),
        ("rank must be at most 3", lambda: theory.margin(target, 0.0, rank=4)),
        ("rank must be a positive integer", lambda: theory.saddle_value(target, 0)),
        ("depth must be at least 1", lambda: theory.sharp_rate(target, 0.0, depth=0.5)),
        ("depth must be a positive integer", lambda: theory.late_rate(target, 3, depth=1.5)),
        ("loss must be one of", lambda: theory.pl_constant(1.0, loss="square")),
        ("margin must be at least 0", lambda: theory.pl_constant(-1.0)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
