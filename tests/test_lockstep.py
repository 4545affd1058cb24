"""Runs that advance together: what becomes of some is nothing to the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import studies
from helpers import by_precision, gaussian_factors
from studies import small

import bwflow as bw
from bwflow import _compute, progress, study
from bwflow._process import in_precision
from bwflow._trajectory import OUTCOMES

pytestmark = pytest.mark.once

FACTORS = {"nonfinite": by_precision(1e200, 1e30), "overshot": 40.0}
"""Of starts that are not finite, and of those from which the first step leads to such a point."""
STIFF = 30.0
"""How much faster one unit in the middle moves than the others."""
DYNAMICS = pytest.mark.parametrize("dynamics", ["descent", "flow"])
SIZE = 4  # runs of a chunk
MOST = 60  # steps of a flow
REASONS = {  # of the second chunk, whose starts are altered by `damage`
    "descent": ["successful", "nonfinite", "nonfinite", "successful"],
    "flow": ["successful", "nonfinite", "successful", "max_steps_reached"],
}


def damage(reason, factors):
    """Factors that are too large, or whose product is the same and their flow is stiff."""
    first, second = factors
    if reason in FACTORS:
        return first * FACTORS[reason], second * FACTORS[reason]
    return first.at[0].multiply(STIFF), second.at[:, 0].divide(STIFF)


def altered(reasons):
    """In place of `study._start`: seeds from `SIZE` on have the starts of those before, damaged."""
    start = study._start

    def replaced(spec, target):
        draw = start(spec, target)

        def init(key, widths, tau):
            seed = jax.random.key_data(key)[-1]
            factors = draw(jax.random.key(seed % SIZE), widths, tau)
            for place, reason in enumerate(reasons):
                if reason != "successful":
                    pairs = zip(damage(reason, factors), factors, strict=True)
                    factors = tuple(jnp.where(seed == SIZE + place, *pair) for pair in pairs)
            return factors

        return init

    return replaced


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Of each dynamics, a store with two chunks of the same starts but for some of the second."""
    stores = {}
    for dynamics in ("descent", "flow"):
        spec = small(
            dynamics=(dynamics,),
            target={"n": 3},
            seeds=2 * SIZE,
            batch_size=SIZE,
            tolerance=0.05,
            flow={"max_steps": MOST, "end_time": 3.0},
        )
        folder = tmp_path_factory.mktemp(dynamics)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(study, "_start", altered(REASONS[dynamics]))
            stores[dynamics] = studies.finished(spec, folder / "store")
    return stores


def chunks(path):
    """Variables of the runs of the first and of the second chunk."""
    runs = {
        name: array.reshape(2, SIZE, *array.shape[5:])
        for name, array in studies.arrays(path).items()
        if array.ndim >= 5
    }
    return [{name: array[k] for name, array in runs.items()} for k in range(2)]


def good(dynamics):
    return [place for place, reason in enumerate(REASONS[dynamics]) if reason == "successful"]


def bad(dynamics):
    return [place for place in range(SIZE) if place not in good(dynamics)]


@DYNAMICS
def test_runs_have_the_same_bits_whether_or_not_others_fail(computed, dynamics):
    alone, among = chunks(computed[dynamics])
    assert {"loss", "gap", "hit", "num_steps", "reason"} <= set(alone)
    for place in good(dynamics):
        for name in alone:
            assert alone[name][place].tobytes() == among[name][place].tobytes(), name


@DYNAMICS
def test_bits_tell_other_runs_apart(computed, dynamics):
    """The comparison above could fail: failed runs, and other seeds, have other bits."""
    alone, among = chunks(computed[dynamics])
    for place in bad(dynamics):
        assert alone["loss"][place].tobytes() != among["loss"][place].tobytes()
    assert len({row.tobytes() for row in alone["loss"]}) == SIZE


@DYNAMICS
def test_exactly_the_runs_that_fail_are_said_to_fail(computed, dynamics):
    alone, among = chunks(computed[dynamics])
    assert [OUTCOMES[code] for code in alone["reason"]] == ["successful"] * SIZE
    assert alone["success"].all()
    assert [OUTCOMES[code] for code in among["reason"]] == REASONS[dynamics]
    assert np.flatnonzero(among["success"]).tolist() == good(dynamics)
    assert alone["done"].all()
    assert among["done"].all()
    found = progress.status(computed[dynamics])
    counted = alone["reason"].tolist() + among["reason"].tolist()
    assert found.outcomes == {OUTCOMES[code]: counted.count(code) for code in sorted(set(counted))}


@DYNAMICS
def test_runs_that_do_not_fail_have_finite_records(computed, dynamics):
    for chunk, places in zip(
        chunks(computed[dynamics]), (range(SIZE), good(dynamics)), strict=True
    ):
        for name in ("loss", "gap"):
            assert np.isfinite(chunk[name][list(places)]).all()


@DYNAMICS
def test_runs_that_fail_do_not_arrive(computed, dynamics):
    _, among = chunks(computed[dynamics])
    for place in bad(dynamics):
        assert among["hit"][place] == np.inf


def test_a_flow_that_ran_out_of_steps_took_all_of_them(computed):
    alone, among = chunks(computed["flow"])
    assert among["num_steps"][3] == MOST
    assert alone["num_steps"].max() < MOST
    for chunk in (alone, among):
        total = chunk["num_accepted"] + chunk["num_rejected"]
        np.testing.assert_array_equal(total, chunk["num_steps"])


def programs(path, reasons):
    """The program of a chunk, as a function of its seeds, with altered starts."""
    attrs = _compute.root(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_start", altered(reasons))
        ready = _compute._Study(path, attrs)
    fixed = {name: values[0] for name, values in ready.axes[0].items()}
    program, (tau,) = ready.program(1, **fixed), ready.axes[1]["tau"]

    def run(*seeds):
        with in_precision(ready.experiment.precision):
            found = program(np.full(len(seeds), tau), np.asarray(seeds))
        return jax.device_get(found)

    return run


@DYNAMICS
def test_no_place_in_a_chunk_is_special(computed, dynamics):
    """A run has the same bits at every place, beside others that fail or do not."""
    run = programs(computed[dynamics], REASONS[dynamics])
    reference, crowd = run(0, 1, 2, 3), run(5, 5, 0, 5)
    for name in reference:
        assert crowd[name][2].tobytes() == reference[name][0].tobytes(), name
    nonfinite = OUTCOMES.index("nonfinite")
    assert crowd["reason"].tolist() == [nonfinite, nonfinite, 0, nonfinite]


@pytest.mark.parametrize("reason", ["nonfinite", "max_steps_reached", "overshot"])
def test_a_run_fails_in_the_same_way_beside_any_others(computed, reason):
    run = programs(computed["flow"], [reason, "successful", "successful", "successful"])
    alike, mixed = run(4, 4, 4, 4), run(0, 4, 2, 3)
    assert alike["reason"][1] == mixed["reason"][1] != 0
    for name in alike:
        assert alike[name][1].tobytes() == mixed[name][1].tobytes(), name


@pytest.mark.parametrize("reason", ["max_steps_reached", "overshot"])
def test_a_flow_that_fails_keeps_the_record_of_its_start(computed, reason):
    """Also one of which no step was ever accepted."""
    run = programs(computed["flow"], [reason, "successful", "successful", "successful"])
    found = run(4, 0, 2, 3)
    assert found["reason"][0] != 0
    assert np.isfinite(found["loss"][:, 0]).all()
    assert found["loss"][0, 0] >= found["loss"][1, 0] * (1 - 1e-4)  # same product, or a larger one


@DYNAMICS
@pytest.mark.slow
def test_an_extension_keeps_the_bits_of_a_run_that_failed(tmp_path, monkeypatch, dynamics):
    """It was alone in its chunk, and then has a run beside it that arrives."""
    reason = {"descent": "nonfinite", "flow": "max_steps_reached"}[dynamics]
    monkeypatch.setattr(study, "_start", altered([reason]))
    spec = small(
        dynamics=(dynamics,),
        target={"n": 3},
        seeds=SIZE + 1,
        tolerance=0.05,
        flow={"max_steps": MOST, "end_time": 3.0},
    )
    path = studies.finished(spec, tmp_path / "store")
    before = studies.arrays(path)
    bw.stored.extend(path, seeds=SIZE + 2)
    studies.compute(path)
    after = studies.arrays(path)
    assert OUTCOMES[before["reason"][..., SIZE].item()] == reason
    assert OUTCOMES[after["reason"][..., SIZE].item()] == reason
    assert after["reason"][..., SIZE + 1] == 0
    for name in ("loss", "gap", "hit", "num_steps", "num_rejected"):
        old, new = (found[name][0, 0, 0, 0, SIZE].tobytes() for found in (before, after))
        assert old == new, name


def test_a_flow_ends_at_the_same_factors_whether_or_not_others_arrive():
    """With the criterion of a run of its own: one never arrives, others may at once or never."""
    target = bw.Target(jnp.diag(jnp.asarray([1.0, 0.3, 0.1])))
    start = gaussian_factors(0, (3, 3, 3))

    def run(tolerance):
        return bw.gradient_flow(
            bw.losses.BuresWasserstein(target, 0.1),
            start,
            times=jnp.asarray([0.0, 0.1, 1.0]),
            rtol=1e-3,
            atol=1e-6,
            until=bw.until.gap(tolerance),
            throw=False,
        )

    together = jax.jit(jax.vmap(run))
    never, arriving = together(jnp.full(2, 1e-14)), together(jnp.asarray([1e-14, 0.5]))
    assert never.hit.tolist() == [np.inf, np.inf]
    assert np.isfinite(arriving.hit).tolist() == [False, True]
    for name in ("probes", "factors", "hit", "num_steps"):
        found = (jax.tree.leaves(getattr(runs, name)) for runs in (never, arriving))
        for old, new in zip(*found, strict=True):
            assert np.asarray(old[0]).tobytes() == np.asarray(new[0]).tobytes(), name
