"""Runs of the library held against bounds that are derived again here."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dynamics import balanced_layers
from helpers import array, assert_close, by_precision

import bwflow as bw
from bwflow import theory

LAM = np.array([2.0, 0.8])
TARGET = bw.Target(array(np.diag(LAM)))
TAUS = np.array([0.0, 0.05, 0.05, 0.2])
TIMES = np.linspace(0.0, 2.0, 41)
NAMES = ("published", "published, corrected margin", "sharp", "along the run")
PROBE = bw.diagnostics.record("loss", "singular_values")


def near(seed, tau, scale=0.05, depth=3):
    """Balanced layers near the minimiser, three columns to two rows."""
    rng = np.random.default_rng(seed)
    best = np.diag(np.sqrt(LAM - tau)) @ np.linalg.qr(rng.normal(size=(3, 2)))[0].T
    layers = balanced_layers(best + scale * rng.normal(size=best.shape), depth)
    return tuple(array(W) for W in layers)


def stretched(layers):
    """The same product from layers that are not balanced."""
    return (2.0 * layers[0], *layers[1:-1], layers[-1] / 2.0)


@jax.jit
def followed(layers, tau):
    loss = bw.losses.BuresWasserstein(TARGET, tau)
    tolerances = {"rtol": by_precision(1e-9, 1e-5), "atol": by_precision(1e-11, 1e-6)}
    return bw.gradient_flow(
        loss, layers, times=array(TIMES), probe=PROBE, throw=False, **tolerances
    )


def stacked(starts):
    return jax.tree.map(lambda *x: jnp.stack(x), *starts)


@pytest.fixture(scope="module")
def runs():
    """Four flows of three balanced layers from near the minimum, in one batch."""
    starts = stacked([near(i, tau) for i, tau in enumerate(TAUS)])
    return jax.vmap(followed)(starts, array(TAUS))


@pytest.fixture(scope="module")
def held(runs):
    return jax.vmap(lambda run, tau: theory.compare(run, TARGET, tau))(runs, array(TAUS))


def one(batch, i):
    return jax.tree.map(lambda x: x[i], batch)


def test_a_batch_is_compared_as_its_runs_are(runs, held):
    assert held.names == NAMES
    assert held.clock == "time"
    for i, tau in enumerate(TAUS):
        alone = theory.compare(one(runs, i), TARGET, tau)
        assert_close(held.bounds[i], alone.bounds, by_precision(1e-14, 1e-6))
        assert np.array_equal(held.valid[i], alone.valid)


def test_bounds_are_their_formulas(held):
    for i, tau in enumerate(TAUS):
        L0 = float(held.loss[i, 0])
        c = np.sqrt(LAM[1]) - np.sqrt(L0)
        true = np.sqrt(c**2 - tau)
        K = np.sqrt(tau * LAM[1]) / (2 * (2 * (L0 + LAM.sum())) ** 2)
        rates = (
            24 * c ** (10 / 3) * K,
            24 * true ** (10 / 3) * K,
            12 * true ** (4 / 3) * true**2 / (true**2 + tau),
        )
        for row, rate in zip(held.bounds[i], rates, strict=False):
            assert_close(row, L0 * np.exp(-rate * TIMES), by_precision(1e-13, 1e-6))


def test_bound_along_the_run_is_between_the_run_and_the_sharp_bound(held):
    sharp, along = held.bounds[:, 2], held.bounds[:, 3]
    assert np.all(along <= sharp * (1 + 1e-5))
    assert np.all(along[:, -1] < 0.7 * sharp[:, -1])  # it has seen the margin grow
    slack = by_precision(1e-8, 2e-3)
    assert np.all(np.sqrt(held.loss) <= np.sqrt(along) + slack)
    assert np.all(held.tightest[:, 1:] == 3)


def test_bounds_that_are_proved_hold(held):
    assert np.all(held.valid)  # the published rate too: it is below the sharp one near the target
    assert np.all(held.holds)


def test_a_run_that_is_too_slow_breaks_the_bounds(runs):
    slow = one(runs, 1)
    slow = eqx.tree_at(
        lambda run: run.probes["loss"], slow, replace_fn=lambda L: L.at[:-1].set(L[0])
    )
    found = theory.compare(slow, TARGET, 0.05)
    assert not found.holds[2]
    assert not found.holds[0]


def test_a_failed_run_shows_nothing(runs):
    failed = bw.gradient_flow(
        bw.losses.BuresWasserstein(TARGET, 0.0),
        near(0, 0.0),
        times=array(TIMES),
        rtol=1e-5,
        atol=1e-6,
        probe=PROBE,
        max_steps=2,
        throw=False,
    )
    assert not np.any(theory.compare(failed, TARGET, 0.0).holds)


@pytest.mark.float64
def test_published_bound_is_broken_and_not_valid_from_nearly_lower_rank():
    target, tau = bw.Target(jnp.eye(1)), 0.25
    run = bw.gradient_flow(
        bw.losses.BuresWasserstein(target, tau),
        (array([[1e-3**0.5]]), array([[1e-3**0.5]])),
        times=jnp.linspace(0.0, 50.0, 11),
        rtol=1e-9,
        atol=1e-12,
    )
    found = theory.compare(run, target, tau)
    assert found.names == NAMES[:3]
    assert found.bounds[0, -1] < 0.02 * found.loss[0] < found.loss[-1]
    assert found.holds.tolist() == [False, True, True]
    assert found.valid.tolist() == [False, True, True]
    assert np.all(found.tightest[1:] == 2)


@pytest.mark.once
def test_rates_of_three_layers_are_proved_for_balanced_ones_only():
    tau = 0.05
    layers = stretched(near(1, tau))
    run = followed(layers, array(tau))
    found = theory.compare(run, TARGET, tau)
    assert not np.any(found.valid)
    assert np.all(found.tightest == -1)
    assert np.all(found.holds)  # seen, not proved
    assert not theory.check_assumptions(layers, TARGET, tau=tau).balanced
    run = bw.gradient_flow(
        bw.losses.BuresWasserstein(TARGET, tau),
        stretched(near(1, tau, depth=2)),
        times=array(TIMES),
        rtol=1e-9,
        atol=1e-11,
        probe=PROBE,
    )
    found = theory.compare(run, TARGET, tau)
    assert np.all(found.valid)
    assert np.all(found.holds)


@pytest.mark.once
def test_a_narrow_network_has_no_rate():
    run = bw.gradient_flow(
        bw.losses.BuresWasserstein(TARGET, 0.05),
        (array([[1.3], [0.1]]),),
        times=array(TIMES),
        rtol=1e-9,
        atol=1e-11,
        probe=PROBE,
    )
    found = theory.compare(run, TARGET, 0.05)
    assert_close(found.bounds[1:], np.full((3, TIMES.size), found.loss[0]), 1e-15)
    assert np.all(found.holds[1:])
    assert found.loss[-1] > 0.3
    assert found.valid.tolist() == [False, True, True, True]
    assert found.informative.tolist() == [True, False, False, False]
    assert str(found).splitlines()[:3] == [
        "bound                        proved  informative  holds",
        f"published                    no      yes          {'yes' if found.holds[0] else 'no'}",
        "published, corrected margin  yes     no           yes",
    ]


@pytest.mark.once
def test_bounds_stop_where_the_run_did():
    run = bw.gradient_flow(
        bw.losses.BuresWasserstein(TARGET, 0.0),
        near(0, 0.0, depth=1),
        times=array(TIMES),
        rtol=1e-9,
        atol=1e-11,
        probe=PROBE,
        until=bw.until.gap(1e-4, absolute=True),
    )
    found = theory.compare(run, TARGET, 0.0)
    assert 0 < run.hit < 1.9
    assert np.all(found.holds)
    assert_close(found.bounds[2, -1], found.loss[0] * np.exp(-4 * run.hit), 1e-12)


@pytest.mark.once
def test_frobenius_flows_have_the_sharp_rate():
    layers, tau = near(3, 0.05, scale=0.02, depth=1), 0.05
    run = bw.gradient_flow(
        bw.losses.Frobenius(TARGET, tau),
        layers,
        times=array(TIMES),
        rtol=1e-9,
        atol=1e-11,
        probe=PROBE,
    )
    found = theory.compare(run, TARGET, tau, loss="frobenius")
    assert found.names == NAMES[2:]
    assert np.all(found.valid & found.holds)
    rate = 16 * (LAM[1] - tau - np.sqrt(found.loss[0]))
    assert_close(found.bounds[0], found.loss[0] * np.exp(-rate * TIMES), 1e-12)


@pytest.mark.once
def test_a_descent_of_one_layer_is_bounded_by_its_factor():
    tau, (W,) = 0.05, near(2, 0.05, depth=1)
    loss = bw.losses.BuresWasserstein(TARGET, tau)
    run = bw.gradient_descent(loss, (W,), optax.sgd(0.01), num_steps=100, save_every=10)
    found = theory.compare(run, TARGET, tau, step_size=0.01)
    c2 = (np.sqrt(LAM[1]) - np.sqrt(found.loss[0])) ** 2 - tau
    factor = 1 - 4 * 0.01 * 0.99 * c2 / (c2 + tau)
    assert found.names == ("descent factor",)
    assert found.clock == "step"
    assert_close(found.bounds[0], found.loss[0] * factor ** np.arange(0, 101, 10), 1e-13)
    assert found.valid[0]
    assert found.holds[0]
    assert not theory.compare(run, TARGET, tau, step_size=0.1).holds[0]  # it took smaller steps
    assert not theory.compare(run, TARGET, tau, step_size=1.1).valid[0]
    layers = near(2, tau, depth=2)
    run = bw.gradient_descent(loss, layers, optax.sgd(1e-3), num_steps=100, save_every=10)
    found = theory.compare(run, TARGET, tau, step_size=1e-3)
    assert found.holds[0]
    assert not found.valid[0]  # observed
    assert np.all(found.tightest == -1)


@pytest.mark.once
def test_dataset_has_the_bounds_along_dimensions(runs, held):
    single = theory.compare(one(runs, 1), TARGET, 0.05).to_dataset()
    assert dict(single.sizes) == {"bound": 4, "save": 41}
    assert single.bounds.sel(bound="sharp").dims == ("save",)
    assert_close(single.time, TIMES, 0.0)
    several = held.to_dataset()
    assert several.bounds.dims == ("run", "bound", "save")
    assert several.holds.dims == several.informative.dims == ("run", "bound")
    assert_close(several.loss, held.loss, 0.0)


def test_a_batch_is_printed_by_how_many_runs(held):
    lines = str(held).splitlines()
    assert [line[:28].strip() for line in lines] == ["bound", *NAMES]
    for i, line in enumerate(lines[1:]):
        counts = (held.valid[:, i], held.informative[:, i], held.holds[:, i])
        assert re.findall(r"\d+ of \d+", line) == [f"{int(x.sum())} of {x.size}" for x in counts]


@pytest.mark.once
def test_unfit_arguments_are_refused(runs, as_installed):
    run = one(runs, 0)
    matrix = eqx.tree_at(lambda run: run.factors, run, jnp.eye(2))
    bare = eqx.tree_at(lambda run: run.probes, run, {"gap": TIMES})
    for match, call in (
        (
            "trajectory must have a probe 'loss'; it has gap",
            lambda: theory.compare(bare, TARGET, 0.0),
        ),
        ("trajectory must end in layers", lambda: theory.compare(matrix, TARGET, 0.0)),
        ("map compare over a batch with jax.vmap", lambda: theory.compare(runs, TARGET, 0.0)),
        ("must end in 3 rows", lambda: theory.compare(run, bw.Target(jnp.eye(3)), 0.0)),
        ("step_size must be left out", lambda: theory.compare(run, TARGET, 0.0, step_size=0.1)),
        ("tau must be at least 0", lambda: theory.compare(run, TARGET, -1.0)),
        ("trajectory must be a bwflow.Trajectory", lambda: theory.compare(3, TARGET, 0.0)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    loss = bw.losses.BuresWasserstein(TARGET, 0.0)
    steps = bw.gradient_descent(loss, (jnp.eye(2),), optax.sgd(0.1), num_steps=1)
    with pytest.raises(ValueError, match="step_size must be given for a descent"):
        theory.compare(steps, TARGET, 0.0)
    with pytest.raises(ValueError, match="loss must be 'bures_wasserstein' for a descent"):
        theory.compare(steps, TARGET, 0.0, step_size=0.1, loss="frobenius")


# --- assumptions -------------------------------------------------------------------------------


def test_assumptions_of_a_good_start_hold():
    found = theory.check_assumptions(near(0, 0.05), TARGET, tau=0.05)
    flags = {name: x for name, x in vars(found).items() if x.dtype == bool}
    assert len(flags) == 8
    assert all(flags.values())
    assert found.describe().count("[x]") == 7
    assert "[ ]" not in found.describe()
    loss = bw.losses.BuresWasserstein(TARGET, 0.05)(bw.end_to_end(near(0, 0.05)))
    assert_close(found.initial_loss, loss, 1e-6)
    assert_close(found.margin, theory.margin(TARGET, loss, tau=0.05), 1e-5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("failing", "layers", "tau", "said"),
    [
        ({"balanced"}, stretched(near(0, 0.05)), 0.05, "observed, not"),
        ({"wide"}, (array([[1.39], [0.0]]),), 0.05, "A width is below"),
        ({"smoothed"}, near(0, 0.0), 0.0, "the sharp one needs none"),
        ({"learnable", "near"}, near(0, 0.05), 0.9, "The smoothing is not below"),
        ({"near", "published_near", "below_saddle"}, (5 * jnp.eye(2),), 0.05, "too far"),
        ({"near", "below_saddle"}, (array(np.diag([1.39, 1e-9])),), 0.05, "its rate is no bound"),
    ],
)
def test_assumptions_that_fail_are_named(failing, layers, tau, said):
    found = theory.check_assumptions(layers, TARGET, tau=tau)
    assert {name for name, x in vars(found).items() if x.dtype == bool and not x} == failing
    assert said in found.describe()


def test_assumptions_of_a_batch_are_those_of_its_starts():
    starts = [near(i, 0.05, scale=scale) for i, scale in enumerate((0.01, 0.1, 1.0))]
    batch = jax.vmap(lambda W: theory.check_assumptions(W, TARGET, tau=0.05))(stacked(starts))
    for i, start in enumerate(starts):
        alone = theory.check_assumptions(start, TARGET, tau=0.05)
        assert_close(batch.margin[i], alone.margin, by_precision(1e-12, 1e-5))
        assert batch.near[i] == alone.near
    with pytest.raises(ValueError, match="one start"):
        batch.describe()


@pytest.mark.float64
def test_a_run_of_another_smoothing_or_loss_is_refused(as_installed):
    target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    run = bw.gradient_flow(
        bw.losses.BuresWasserstein(target, 0.25),
        (jnp.diag(jnp.array([1.9, 0.9])),),
        times=jnp.array([0.0, 1.0]),
        rtol=1e-4,
        atol=1e-6,
    )
    assert theory.compare(run, target, 0.25).names
    for tau, loss in ((0.6, "bures_wasserstein"), (0.0, "bures_wasserstein"), (0.25, "frobenius")):
        with pytest.raises(ValueError, match="tau and loss must be those of the run"):
            theory.compare(run, target, tau, loss=loss)
