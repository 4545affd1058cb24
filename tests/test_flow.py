"""The gradient flow against reference endpoints, exact solutions and conservation laws."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import (
    GOLDEN,
    array,
    assert_close,
    by_precision,
    first,
    gaussian_factors,
    golden_target,
    random_target,
)
from jax.tree_util import Partial

import bwflow as bw
from bwflow import theory

TIGHT = {"rtol": by_precision(1e-11, 1e-5), "atol": by_precision(1e-11, 1e-6)}
EXACT = by_precision(1e-9, 2e-4)
NO_PROBE = bw.diagnostics.record("loss")


def endpoint(loss, factors, end, solver=None):
    return bw.gradient_flow(
        loss,
        factors,
        solver or diffrax.Dopri8(),
        probe=NO_PROBE,
        times=jnp.array([0.0, end]),
        **TIGHT,
    )


@pytest.mark.parametrize("case", first(4, GOLDEN["flows"]), ids=lambda case: case["id"])
def test_golden_endpoints(case):
    plain = bw.smoothed_bures if case["kind"] == "bw" else bw.frobenius
    loss = Partial(plain, target=golden_target(case), tau=case["tau"])
    run = endpoint(loss, tuple(array(W) for W in case["W0"]), case["t"])
    size = float(jnp.linalg.norm(array(case["end_to_end"])))
    assert_close(bw.end_to_end(run.factors), array(case["end_to_end"]), EXACT * max(1.0, size))
    for W, expected in zip(run.factors, case["layers"], strict=True):
        assert_close(W, array(expected), EXACT * max(1.0, size))
    assert_close(run.probes["loss"][-1], float(case["loss_end"]), EXACT * max(1.0, size))


def aligned_start(target, values, depth, latent=None):
    """Balanced factors of `Omega diag(values) V^T` with `V` the first coordinate axes."""
    n, latent = target.dim, latent or target.dim
    W = target.eigenvectors @ jnp.diag(values) @ jnp.eye(target.rank, latent)
    return bw.initializers.split_evenly(W, (latent, *(n,) * depth))


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("depth", first(2, [1, 3, 2, 4]))
def test_aligned_balanced_starts_follow_the_exact_singular_values(depth, tau):
    """Starts above and below the target, smoothings below and above its smallest eigenvalue."""
    target = random_target(depth, 3, condition=5.0)
    values = array([1.5, 0.4, 0.2])
    run = endpoint(
        bw.losses.BuresWasserstein(target, tau), aligned_start(target, values, depth), 0.8
    )
    expected = theory.aligned_flow(values, target.eigenvalues, 0.8, depth=depth, tau=tau)
    W = bw.end_to_end(run.factors)
    assert_close(target.eigenvectors.T @ W, np.diag(expected), 10 * EXACT)


def test_one_layer_flow_is_the_geodesic_from_any_start():
    target = random_target(0, 4)
    W0 = gaussian_factors(1, (5, 4))[0]
    run = endpoint(bw.losses.BuresWasserstein(target, 0.0), (W0,), 0.7)
    assert_close(run.factors[0], theory.linear_flow(W0, target.factor, 0.7), EXACT)
    assert_close(run.probes["loss"][-1], np.exp(-4 * 0.7) * run.probes["loss"][0], EXACT)


def test_one_layer_rank_one_flow_from_any_start():
    target = random_target(0, 4)
    w0 = gaussian_factors(1, (1, 4))[0]
    run = endpoint(bw.losses.BuresWasserstein(target, 0.0), (w0,), 0.7)
    expected = theory.rank_one_flow(w0, target.covariance, 0.7)
    assert_close(run.factors[0].ravel(), jnp.ravel(expected), EXACT)


def test_two_unbalanced_scalar_layers():
    w1, w2, lam = 0.3, 1.7, 2.0
    run = endpoint(
        bw.losses.BuresWasserstein(bw.Target(lam * jnp.eye(1)), 0.0),
        (jnp.full((1, 1), w1), jnp.full((1, 1), w2)),
        0.6,
    )
    expected = theory.scalar_unbalanced_flow(w1, w2, lam, 0.6)
    assert_close(bw.end_to_end(run.factors), np.full((1, 1), expected), EXACT)


@pytest.mark.parametrize("latent", [2, 4])
def test_frobenius_flow_of_one_layer_solves_its_riccati_equation(latent):
    target = random_target(0, 4)
    W0 = gaussian_factors(1, (latent, 4))[0]
    run = endpoint(bw.losses.Frobenius(target), (W0,), 0.25)
    S = run.factors[0] @ run.factors[0].T
    assert_close(S, theory.frobenius_flow(W0, target.covariance, 0.25), EXACT)


TARGET = random_target(3, 3, condition=5.0)
LOSS = bw.losses.BuresWasserstein(TARGET, 0.02)
FACTORS = gaussian_factors(7, (3, 4, 3))
TIMES = jnp.linspace(0.0, 3.0, 7)
TOLERANCES = {"rtol": by_precision(1e-8, 1e-4), "atol": by_precision(1e-10, 1e-6)}


@pytest.fixture(scope="module")
def run():
    probe = bw.diagnostics.record("loss", "gap", "gradient_norm", "imbalance", "singular_values")
    return bw.gradient_flow(LOSS, FACTORS, times=TIMES, probe=probe, **TOLERANCES)


def test_flow_conserves_imbalance(run):
    before, after = bw.imbalance(FACTORS), bw.imbalance(run.factors)
    for D0, D1 in zip(before, after, strict=True):
        assert_close(D1, D0, by_precision(1e-7, 1e-3))
    assert_close(
        run.probes["imbalance"],
        np.repeat(run.probes["imbalance"][:1], 7, axis=0),
        by_precision(1e-7, 1e-3),
    )


def test_flow_decreases_the_loss_at_the_rate_of_the_squared_gradient(run):
    loss = np.asarray(run.probes["loss"])
    assert np.all(np.diff(loss) < 0)
    fine = jnp.linspace(0.0, 0.02, 21)
    early = bw.gradient_flow(LOSS, FACTORS, times=fine, **TOLERANCES)
    power = np.asarray(early.probes["gradient_norm"], np.float64) ** 2
    work = np.trapezoid(power, np.asarray(fine, np.float64))
    assert_close(early.probes["loss"][0] - early.probes["loss"][-1], work, by_precision(1e-5, 1e-3))


def test_first_row_is_the_start_and_last_row_the_end(run):
    for row, factors in ((0, FACTORS), (-1, run.factors)):
        W = bw.end_to_end(factors)
        assert_close(run.probes["loss"][row], LOSS(W), by_precision(1e-14, 1e-6))
        assert_close(
            run.probes["singular_values"][row],
            np.linalg.svd(W, compute_uv=False),
            by_precision(1e-13, 1e-5),
        )
    assert run.clock == "time"
    assert run.hit == jnp.inf
    assert run.result == bw.RESULTS.successful
    np.testing.assert_array_equal(run.times, TIMES)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(diffrax.Kvaerno5(), marks=pytest.mark.slow),
        diffrax.Heun(),
        diffrax.Dopri5(),
    ],
)
def test_every_adaptive_solver_follows_one_path(run, solver):
    other = bw.gradient_flow(LOSS, FACTORS, solver, times=TIMES[::3], probe=NO_PROBE, **TOLERANCES)
    assert_close(other.probes["loss"], run.probes["loss"][::3], by_precision(1e-6, 2e-3))


def test_constant_steps_converge_at_first_order():
    errors = []
    exact = bw.gradient_flow(LOSS, FACTORS, times=TIMES[:2], probe=NO_PROBE, **TOLERANCES)
    for dt in (0.02, 0.01):
        euler = bw.gradient_flow(
            LOSS, FACTORS, diffrax.Euler(), times=TIMES[:2], dt0=dt, probe=NO_PROBE, **TOLERANCES
        )
        errors.append(float(jnp.abs(euler.probes["loss"][-1] - exact.probes["loss"][-1])))
    assert 1.6 < errors[0] / errors[1] < 2.4


def test_norm_and_progress_meter_are_the_callers_choice(run):
    other = bw.gradient_flow(
        LOSS,
        FACTORS,
        times=TIMES[::6],
        norm=optx.rms_norm,
        probe=NO_PROBE,
        progress_meter=diffrax.NoProgressMeter(),
        **TOLERANCES,
    )
    assert_close(other.probes["loss"], run.probes["loss"][::6], by_precision(1e-6, 2e-3))


def test_plain_function_and_module_are_one_loss(run):
    plain = Partial(bw.smoothed_bures, target=TARGET, tau=0.02)
    other = bw.gradient_flow(plain, FACTORS, times=TIMES, **TOLERANCES)
    assert set(other.probes) == {"loss", "gradient_norm"}
    assert_close(other.probes["loss"], run.probes["loss"], by_precision(1e-10, 1e-5))


def test_vmapped_flows_are_the_single_ones():
    starts = [gaussian_factors(seed, (3, 3, 3)) for seed in range(3)]
    taus = jnp.array([0.0, 0.01, 0.1])

    def final(tau, factors):
        return bw.gradient_flow(
            bw.losses.BuresWasserstein(TARGET, tau),
            factors,
            times=TIMES,
            probe=NO_PROBE,
            throw=False,
            **TOLERANCES,
        ).probes["loss"]

    batch = jax.vmap(final)(taus, jax.tree.map(lambda *W: jnp.stack(W), *starts))
    for row, tau, start in zip(batch, taus, starts, strict=True):
        assert_close(row, final(tau, start), by_precision(1e-9, 1e-4))


def test_a_run_that_fails_changes_no_bit_of_its_neighbours():
    starts = jnp.stack([gaussian_factors(seed, (3, 3))[0] for seed in range(4)])
    broken = starts.at[2].set(jnp.nan)

    @jax.jit
    @jax.vmap
    def follow(W):
        return bw.gradient_flow(
            LOSS, (W,), times=TIMES[:3], probe=NO_PROBE, throw=False, max_steps=500, **TOLERANCES
        )

    healthy, mixed = follow(starts), follow(broken)
    kept = np.array([0, 1, 3])
    np.testing.assert_array_equal(mixed.factors[0][kept], healthy.factors[0][kept])
    np.testing.assert_array_equal(mixed.probes["loss"][kept], healthy.probes["loss"][kept])
    assert mixed.outcome.tolist()[2] == 1
    assert mixed.outcome[kept].tolist() == [0, 0, 0]


def test_failures_are_named_and_raised_on_request():
    quick = {"times": TIMES, "max_steps": 2, **TOLERANCES}
    with pytest.raises(RuntimeError, match="maximum number of steps"):
        bw.gradient_flow(LOSS, FACTORS, **quick)
    run = bw.gradient_flow(LOSS, FACTORS, throw=False, **quick)
    assert run.result == bw.RESULTS.max_steps_reached
    assert np.all(np.isfinite(run.probes["loss"]))


def test_reverse_and_forward_derivatives_through_the_flow():
    def final(tau, adjoint=None):
        loss = bw.losses.BuresWasserstein(TARGET, tau)
        return bw.gradient_flow(
            loss, FACTORS, times=TIMES[:2], probe=NO_PROBE, adjoint=adjoint, **TOLERANCES
        ).probes["loss"][-1]

    h = by_precision(1e-4, 1e-2)
    expected = (final(0.02 + h) - final(0.02 - h)) / (2 * h)
    forward = jax.jvp(lambda tau: final(tau, diffrax.ForwardMode()), (0.02,), (1.0,))[1]
    assert_close(jax.grad(final)(0.02), expected, by_precision(1e-6, 2e-3))
    assert_close(forward, expected, by_precision(1e-6, 2e-3))


@pytest.mark.once
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    """It is that of the records, one state each."""
    loss = bw.losses.BuresWasserstein(random_target(1, 3), 0.1)

    def temporaries(max_steps, num_saves):
        def run(W):
            times = jnp.linspace(0.0, 1.0, num_saves)
            return bw.gradient_flow(
                loss, (W, W), times=times, rtol=1e-3, atol=1e-3, max_steps=max_steps, throw=False
            ).probes

        compiled = jax.jit(run).lower(jnp.eye(3)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(10, 100), temporaries(100_000, 100)
    assert few == many
    states = 900 * 18 * jnp.ones(()).dtype.itemsize
    assert temporaries(10, 1000) - few <= 3 * states


def test_records_after_a_stop_have_derivatives():
    """Rows that repeat the end, though nothing was saved there."""
    target = random_target(2, 3)
    times = jnp.linspace(0.0, 8.0, 5)

    def losses(scale):
        run = bw.gradient_flow(
            bw.losses.BuresWasserstein(target, 0.0),
            (scale * jnp.eye(3),),
            times=times,
            rtol=by_precision(1e-9, 1e-5),
            atol=by_precision(1e-10, 1e-6),
            until=bw.until.gap(1e-3),
        )
        return run.probes["loss"][:3]

    # One layer stays on a line: the loss falls like e^{-4 t}, until it is 1e-3 of the first.
    start = bw.losses.BuresWasserstein(target, 0.0)
    first, slope = jax.value_and_grad(lambda scale: start(scale * jnp.eye(3)))(1.5)
    expected = np.array([1.0, 1e-3, 1e-3]) * float(first)
    assert_close(losses(1.5), expected, by_precision(1e-6, 1e-3))
    rows = jax.jit(lambda row: jax.vjp(losses, 1.5)[1](row)[0])  # one program for all
    slopes = np.array([rows(row) for row in jnp.eye(3)])
    assert_close(slopes[0], slope, by_precision(1e-8, 1e-4))
    assert np.all(np.isfinite(slopes))
