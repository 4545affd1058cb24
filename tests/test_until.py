"""Stopping criteria: when they hold, and what a run keeps of that."""

import os
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, by_precision, gaussian_factors
from jax.tree_util import Partial

import bwflow as bw
from bwflow import until

BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
TARGET = bw.Target(jnp.asarray((BASIS * [1.0, 0.3, 0.1]) @ BASIS.T, dtype=float))
LOSS = bw.losses.BuresWasserstein(TARGET, 0.15)  # above the smallest eigenvalue: L* > 0
START = gaussian_factors(1, (3, 3, 3))
SGD = optax.sgd(0.2)
NUM_STEPS = 40
ROUNDING = by_precision(1e-12, 1e-5)


def descend(criterion=None, *, loss=LOSS, num_steps=NUM_STEPS, save_every=1):
    return bw.gradient_descent(
        loss, START, SGD, num_steps=num_steps, save_every=save_every, until=criterion
    )


@pytest.fixture(scope="module")
def free():
    """The descent that nothing stops, saved at every step, in float64."""
    probes = descend().probes
    return {name: np.asarray(rows, np.float64) for name, rows in probes.items()}


def first(rows, threshold):
    """First step at which a row is below a threshold."""
    return int(np.argmax(rows <= threshold))


CRITERIA = {
    "gap": (lambda x: until.gap(x), lambda rows, x: (rows["gap"], x * rows["loss"][0])),
    "absolute gap": (
        lambda x: until.gap(x, absolute=True),
        lambda rows, x: (rows["gap"], x),
    ),
    "gradient norm": (
        lambda x: until.gradient_norm(x),
        lambda rows, x: (rows["gradient_norm"], x * rows["gradient_norm"][0]),
    ),
    "absolute gradient norm": (
        lambda x: until.gradient_norm(x, absolute=True),
        lambda rows, x: (rows["gradient_norm"], x),
    ),
}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("tolerance", [0.3, 0.05, 0.02])
def test_a_descent_hits_at_the_first_step_below_the_threshold(free, name, tolerance):
    criterion, measured = CRITERIA[name]
    rows, threshold = measured(free, tolerance)
    expected = first(rows, threshold)
    assert 0 < expected < NUM_STEPS
    run = descend(criterion(tolerance))
    assert run.hit == expected
    assert run.num_steps == expected


def test_records_between_steps_do_not_move_the_hit(free):
    """Saved at every seventh step, the rows after the hit repeat the state at the hit."""
    expected = first(free["gap"], 0.01 * free["loss"][0])
    run = descend(until.gap(0.01), save_every=7)
    assert expected % 7
    assert run.hit == expected
    assert run.times.tolist() == [0, 7, 14, 21, 28, 35, 40]
    steps = np.minimum(np.asarray(run.times), expected)
    for name, rows in run.probes.items():
        assert_close(rows, free[name][steps], ROUNDING)
    assert_close(LOSS(bw.end_to_end(run.factors)), free["loss"][expected], ROUNDING)


def test_rows_after_a_hit_repeat_it_to_the_bit():
    run = descend(until.gap(0.01))
    hit = int(run.hit)
    for rows in run.probes.values():
        assert np.array_equal(rows[hit:], np.broadcast_to(rows[hit], rows[hit:].shape))
        assert rows[hit - 1] != rows[hit]


def test_a_criterion_met_by_the_very_last_step_is_seen(free):
    expected = first(free["gap"], 0.01 * free["loss"][0])
    assert descend(until.gap(0.01), num_steps=expected).hit == expected
    assert descend(until.gap(0.01), num_steps=expected - 1).hit == np.inf


def test_a_descent_that_never_arrives_hits_at_infinity(free):
    run = descend(until.gap(1e-6))
    assert free["gap"][-1] > 1e-6 * free["loss"][0]
    assert run.hit == np.inf
    assert run.num_steps == NUM_STEPS
    for name, rows in run.probes.items():
        assert_close(rows, free[name], ROUNDING)


def test_a_descent_that_starts_below_the_threshold_stays_there():
    """The gap is never above the loss, so a relative tolerance of one holds at once."""
    run = descend(until.gap(1.0))
    assert run.hit == 0
    assert run.num_steps == 0
    for rows in run.probes.values():
        assert np.array_equal(rows, np.broadcast_to(rows[0], rows.shape))
    for now, before in zip(run.factors, START, strict=True):
        assert np.array_equal(now, before)


# One layer without smoothing, square and of full rank: `L(t) = exp(-4 t) L(0)` from any start, and
# the squared norm of the gradient is `4 L`.
EXACT_START = gaussian_factors(2, (3, 3))
EXACT_LOSS = bw.losses.BuresWasserstein(TARGET, 0.0)
EXACT_TIMES = jnp.linspace(0.0, 3.0, 13)
LOSS_AT_START = float(EXACT_LOSS(EXACT_START[0]))
EXACT = by_precision(1e-6, 1e-3)


def flow(criterion, *, loss=EXACT_LOSS, times=EXACT_TIMES, **options):
    options |= by_precision({"rtol": 1e-9, "atol": 1e-11}, {"rtol": 1e-5, "atol": 1e-7})
    return bw.gradient_flow(loss, EXACT_START, times=times, until=criterion, **options)


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-4])
@pytest.mark.parametrize(
    ("criterion", "rate", "scale"),
    [
        (lambda x: until.gap(x), 4, 1.0),
        (lambda x: until.gap(x, absolute=True), 4, LOSS_AT_START),
        (lambda x: until.gradient_norm(x), 2, 1.0),
    ],
    ids=["gap", "absolute gap", "gradient norm"],
)
def test_a_flow_hits_when_its_exact_solution_does(criterion, rate, scale, tolerance):
    expected = np.log(scale / tolerance) / rate
    run = flow(criterion(tolerance))
    if expected > EXACT_TIMES[-1]:
        assert run.hit == np.inf
    else:
        assert_close(run.hit, expected, EXACT)


def test_rows_of_a_flow_follow_the_solution_and_repeat_it_after_the_hit():
    run = flow(until.gap(1e-2))
    reached = np.minimum(EXACT_TIMES, -np.log(1e-2) / 4)
    assert_close(run.probes["loss"], LOSS_AT_START * np.exp(-4 * reached), 10 * EXACT)
    after = np.asarray(run.probes["loss"])[np.asarray(EXACT_TIMES) > float(run.hit)]
    assert after.size > 2
    assert np.array_equal(after, np.full_like(after, after[0]))
    assert_close(EXACT_LOSS(run.factors[0]), after[0], ROUNDING)


def test_a_flow_that_never_arrives_hits_at_infinity():
    run = flow(until.gap(1e-9))
    assert run.hit == np.inf
    assert_close(run.probes["loss"][-1], LOSS_AT_START * np.exp(-12.0), EXACT)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Euler()])
def test_a_flow_that_starts_below_the_threshold_stays_there(solver):
    """Its hit is the first time, which need not be zero; a first step may pass several saves."""
    run = flow(until.gap(1.0), times=EXACT_TIMES + 0.5, solver=solver, dt0=1.0)
    assert run.hit == 0.5
    assert np.array_equal(run.factors[0], EXACT_START[0])
    for rows in run.probes.values():
        assert np.array_equal(rows, np.broadcast_to(rows[0], rows.shape))


def test_flows_of_one_batch_stop_each_at_their_own_time():
    tolerances = jnp.array([1.0, 1e-1, 1e-3, 1e-9])
    runs = jax.vmap(lambda x: flow(until.gap(x), throw=False))(tolerances)
    assert_close(runs.hit[:3], -np.log(np.asarray(tolerances)[:3]) / 4, EXACT)
    assert runs.hit[3] == np.inf
    stop = np.minimum(np.asarray(runs.hit, np.float64)[:, None], np.asarray(EXACT_TIMES))
    assert_close(runs.probes["loss"], LOSS_AT_START * np.exp(-4 * stop), 10 * EXACT)


def test_a_plain_loss_may_be_given_its_minimum():
    """`smoothed_bures` alone does not know it; here it is zero."""
    plain = Partial(bw.smoothed_bures, target=TARGET, tau=0.0)
    run = flow(until.gap(1e-2, minimum=0.0), loss=plain)
    assert_close(run.hit, -np.log(1e-2) / 4, EXACT)


def test_a_given_minimum_goes_before_that_of_the_loss(free):
    """With the minimum put at zero the measure is the loss itself."""
    threshold = 0.02 * free["loss"][0]
    expected = first(free["loss"], threshold)
    assert expected != first(free["gap"], threshold)
    assert descend(until.gap(0.02, minimum=0.0)).hit == expected


def test_a_gap_is_refused_where_the_minimum_is_unknown():
    plain = Partial(bw.smoothed_bures, target=TARGET, tau=0.0)
    for method in (flow, descend):
        with pytest.raises(ValueError, match="loss must offer `minimum`"):
            method(until.gap(1e-2), loss=plain)


MIXED = """
import jax, jax.numpy as jnp, bwflow as bw
loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([1.0, 0.25]))), 0.0)
def hit(scale):
    return bw.gradient_flow(
        loss, (scale * jnp.eye(2),), times=[0.0, 3.5], rtol=1e-3, atol=1e-5,
        until=bw.until.gap(1e-3, absolute=True)).hit
print(jax.vmap(hit)(jnp.array([0.9, 30.0])).tolist())
"""


@pytest.mark.once
def test_flows_that_arrive_may_run_beside_others_that_do_not_as_installed():
    """Where errors inside solvers are raised, as they are unless a variable says otherwise."""
    environment = {name: x for name, x in os.environ.items() if name != "EQX_ON_ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", MIXED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = map(float, done.stdout.strip("[]\n").split(","))
    # The loss is the sum of squared distances to the roots of the eigenvalues, times e^{-4t}.
    assert abs(first - np.log((0.1**2 + 0.4**2) / 1e-3) / 4) < 1e-2
    assert second == np.inf
