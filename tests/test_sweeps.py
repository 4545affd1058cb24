"""Sweeps against single runs: labels, chunks, failures, ragged records."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from helpers import X64, assert_close, by_precision, random_target

import bwflow as bw
from bwflow import diagnostics

TARGET = random_target(0, 3)
TIMES = jnp.linspace(0.0, 1.0, 4)
TAUS = jnp.array([0.0, 0.1])
SEEDS = jnp.arange(3)
PROBE = diagnostics.record("loss", "gap", "singular_values", "imbalance")
BALANCED = bw.initializers.balanced()
ROUNDING = by_precision(1e-12, 1e-5)


def experiment(*, dynamics, depth, tau, seed):
    """A flow with 4 records or a descent with 6, through a bottleneck of two."""
    start = BALANCED(jax.random.key(seed), (2,) * depth + (3,))
    loss = bw.losses.BuresWasserstein(TARGET, tau)
    if dynamics == "flow":
        return bw.gradient_flow(
            loss, start, times=TIMES, rtol=1e-5, atol=1e-7, probe=PROBE, throw=False
        )
    sgd = optax.sgd(0.1)
    return bw.gradient_descent(loss, start, sgd, num_steps=5, probe=PROBE, throw=False)


def run_sweep(*, dynamics, depth, **options):
    return bw.sweep(
        experiment,
        static={"dynamics": dynamics, "depth": depth},
        traced={"tau": TAUS, "seed": SEEDS},
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def ds():
    """Two dynamics, three depths and six runs, in chunks of four: the second one is padded."""
    return run_sweep(dynamics=["flow", "descent"], depth=(1, 2, 3), batch_size=4)


def test_axes_come_first_and_then_the_records(ds):
    axes = ("dynamics", "depth", "tau", "seed")
    assert set(ds.data_vars) == {
        *("loss", "gap", "singular_values", "imbalance"),
        *("hit", "num_steps", "num_accepted", "num_rejected", "success", "reason"),
    }
    for name in ("loss", "gap"):
        assert ds[name].dims == (*axes, "save")
    assert ds["singular_values"].dims == (*axes, "save", "rank")
    assert ds["imbalance"].dims == (*axes, "save", "layer")
    for name in ("hit", "num_steps", "success", "reason"):
        assert ds[name].dims == axes
    expected = {"dynamics": 2, "depth": 3, "tau": 2, "seed": 3, "save": 6, "rank": 2, "layer": 2}
    assert dict(ds.sizes) == expected


def test_coordinates_are_the_values_of_the_axes(ds):
    assert ds["dynamics"].values.tolist() == ["flow", "descent"]
    assert ds["depth"].values.tolist() == [1, 2, 3]
    assert np.array_equal(ds["tau"].values, TAUS)
    assert ds["seed"].values.tolist() == [0, 1, 2]
    assert ds["save"].values.tolist() == [0, 1, 2, 3, 4, 5]
    assert ds["layer"].values.tolist() == [1, 2]
    assert ds["rank"].values.tolist() == [1, 2]


def test_flows_have_times_and_descents_have_steps(ds):
    """The longer of the two records sets the length; the clock of the other ends in NaN."""
    assert ds["time"].dims == ds["step"].dims == ("save",)
    assert "time" in ds.coords
    assert "step" in ds.coords
    assert np.array_equal(ds["time"].values[:4], TIMES)
    assert np.isnan(ds["time"].values[4:]).all()
    assert ds["step"].values.tolist() == [0, 1, 2, 3, 4, 5]


def test_short_records_end_in_nan(ds):
    flows = ds["loss"].sel(dynamics="flow")
    assert flows.isel(save=slice(0, 4)).notnull().all()
    assert flows.isel(save=slice(4, 6)).isnull().all()
    assert ds["loss"].sel(dynamics="descent").notnull().all()


def test_layers_that_a_network_has_not_are_nan(ds):
    """`N` layers have `N - 1` imbalances."""
    known = ds["imbalance"].sel(dynamics="descent").notnull()
    assert known.dims == ("depth", "tau", "seed", "save", "layer")
    for depth, layers in zip((1, 2, 3), ([0, 0], [1, 0], [1, 1]), strict=True):
        expected = np.broadcast_to(np.array(layers, bool), known.sel(depth=depth).shape)
        assert np.array_equal(known.sel(depth=depth).values, expected)


def test_everything_has_a_name_and_numbers_have_a_unit(ds):
    for name, variable in ds.variables.items():
        assert variable.attrs["long_name"]
        if name not in ("dynamics", "reason"):
            assert variable.attrs["units"], name
    assert ds["tau"].attrs["units"] == ds["hit"].attrs["units"].replace("clock", "covariance")
    assert ds["singular_values"].attrs["units"] == "covariance^(1/2)"


def test_eigenvectors_of_the_target_are_an_axis_of_the_cosines():
    """They are three whatever the network; its singular values are as many as it has."""
    probe = diagnostics.record("cosines", "eigenvalue_errors")

    def experiment(*, width, seed):
        start = BALANCED(jax.random.key(seed), (width, 3))
        loss = bw.losses.BuresWasserstein(TARGET, 0.1)
        return bw.gradient_descent(loss, start, optax.sgd(0.1), num_steps=1, probe=probe)

    ds = bw.sweep(experiment, static={"width": (1, 2)}, traced={"seed": SEEDS}, progress=False)
    assert ds["cosines"].dims == ("width", "seed", "save", "eigenvector", "rank")
    assert ds["eigenvalue_errors"].dims == ("width", "seed", "save", "rank")
    assert ds["eigenvector"].values.tolist() == [1, 2, 3]
    assert ds["eigenvector"].attrs["long_name"].startswith("index of the target's eigenvector")
    assert ds["cosines"].sel(width=2).notnull().all()
    assert (ds["cosines"].sel(width=1).notnull() == (ds["rank"] == 1)).all()


def test_reasons_are_an_enumeration_of_outcomes(ds):
    attributes = ds["reason"].attrs
    meanings = attributes["flag_meanings"].split()
    assert attributes["flag_values"] == list(range(len(meanings)))
    assert meanings == [
        *("successful", "nonfinite", "max_steps_reached"),
        *("step_size_underflow", "solver_failed"),
    ]
    assert ds["success"].dtype == bool
    assert ds["success"].all()
    assert (ds["reason"] == 0).all()


@pytest.mark.parametrize(("dynamics", "depth"), [("flow", 2), ("descent", 3)])
def test_an_entry_is_what_the_single_run_gives(ds, dynamics, depth):
    """One of the second chunk, away from the corners of the grid."""
    single = experiment(dynamics=dynamics, depth=depth, tau=TAUS[1], seed=SEEDS[1])
    entry = ds.sel(dynamics=dynamics, depth=depth).isel(tau=1, seed=1)
    length = single.times.size
    for name, rows in single.probes.items():
        known = entry[name].isel(save=slice(0, length)).values
        known = known[:, : rows.shape[1]] if rows.ndim == 2 else known
        assert_close(known, rows, ROUNDING)
    assert entry["num_steps"] == int(single.num_steps)
    assert entry["hit"] == np.inf


@pytest.mark.parametrize("batch_size", [None, 6, 7])
def test_padding_and_chunks_leave_no_trace(ds, batch_size):
    """Chunks of one size that fits, that does not divide, or that is larger than the sweep."""
    whole = run_sweep(dynamics=["descent"], depth=(2,), batch_size=batch_size)
    part = ds.sel(dynamics=["descent"], depth=[2])
    assert whole.sizes["seed"] == 3
    for name in ("loss", "gap", "singular_values"):
        assert whole[name].shape == part[name].shape
        assert_close(part[name], whole[name], ROUNDING)
    assert_close(part["imbalance"].isel(layer=[0]), whole["imbalance"], ROUNDING)
    for name in ("num_steps", "reason", "success", "hit"):
        assert np.array_equal(part[name], whole[name])


def short_descent(widths, rate, probe=diagnostics.standard):
    loss = bw.losses.BuresWasserstein(TARGET, 0.1)
    start = BALANCED(jax.random.key(0), widths)
    return bw.gradient_descent(loss, start, optax.sgd(rate), num_steps=2, probe=probe, throw=False)


def chunks_within(limit, capsys):
    """Chunks, by the progress bar, of a sweep of six runs that record 120 kB each."""

    def heavy(*, rate):
        return short_descent((3, 3), rate, lambda *_: {"ballast": jnp.zeros(10_000, jnp.float32)})

    bw.sweep(heavy, traced={"rate": jnp.linspace(0.1, 0.2, 6)}, memory_limit=limit)
    last = capsys.readouterr().err.split("\r")[-1]
    done, total = re.search(r"(\d+)/(\d+)", last).groups()
    assert done == total
    return int(total)


def test_the_memory_limit_bounds_the_chunks(capsys):
    """By default all fit, within a byte none but one, and within 500 kB some but not all."""
    assert chunks_within(2.0**30, capsys) == 1
    assert chunks_within(1.0, capsys) == 6
    assert 1 < chunks_within(5e5, capsys) < 6


def descent_at_rates(rates):
    """Descents of a deep network at the given rates, in one chunk."""

    def at_rate(*, rate):
        start = BALANCED(jax.random.key(0), (3, 3, 3, 3))
        loss = bw.losses.BuresWasserstein(TARGET, 0.1)
        stop = bw.until.gap(1e-2)
        return bw.gradient_descent(
            loss, start, optax.sgd(rate), num_steps=60, save_every=5, until=stop, throw=False
        )

    return bw.sweep(at_rate, traced={"rate": jnp.asarray(rates)}, batch_size=3, progress=False)


def test_a_descent_that_diverges_is_recorded_and_moves_no_bit_of_the_others():
    wild, tame = descent_at_rates([0.1, 1e6, 0.2]), descent_at_rates([0.1, 0.15, 0.2])
    assert wild["success"].values.tolist() == [True, False, True]
    assert tame["success"].all()
    meanings = wild["reason"].attrs["flag_meanings"].split()
    assert meanings[int(wild["reason"].sel(rate=1e6))] == "nonfinite"
    assert wild["hit"].sel(rate=1e6) == np.inf
    for name in wild.data_vars:
        others = [ds[name].isel(rate=[0, 2]).values for ds in (wild, tame)]
        assert np.isfinite(others[0]).all(), name
        assert others[0].tobytes() == others[1].tobytes(), name


def flow_from_scales(scales):
    def from_scale(*, scale):
        start = tuple(scale * jnp.eye(2, dtype=scale.dtype) for _ in range(2))
        loss = bw.losses.BuresWasserstein(bw.Target(jnp.eye(2)), 0.1)
        return bw.gradient_flow(
            loss, start, times=TIMES, rtol=1e-4, atol=1e-6, max_steps=200, throw=False
        )

    return bw.sweep(from_scale, traced={"scale": jnp.asarray(scales)}, progress=False)


def test_a_flow_that_fails_is_recorded_and_moves_no_bit_of_the_others():
    huge = by_precision(1e200, 1e30)
    wild, tame = flow_from_scales([0.5, huge, 2.0]), flow_from_scales([0.5, 1.0, 2.0])
    assert wild["success"].values.tolist() == [True, False, True]
    assert tame["success"].all()
    for name in wild.data_vars:
        others = [ds[name].isel(scale=[0, 2]).values for ds in (wild, tame)]
        assert others[0].tobytes() == others[1].tobytes(), name


def test_single_precision_stays_single():
    """Also where jax runs in double precision: the numbers that go in set the dtype."""
    target = bw.Target(jnp.eye(2, dtype=jnp.float32))

    def single(*, tau, seed):
        start = BALANCED(jax.random.key(seed), (2, 2), dtype=jnp.float32)
        loss = bw.losses.BuresWasserstein(target, tau)
        return bw.gradient_descent(loss, start, optax.sgd(0.1), num_steps=3, throw=False)

    traced = {"tau": np.array([0.0, 0.1], np.float32), "seed": np.arange(2)}
    ds = bw.sweep(single, traced=traced, progress=False)
    for name in ("tau", "loss", "gap", "gradient_norm", "hit"):
        assert ds[name].dtype == np.float32, name
    assert ds.sizes == {"tau": 2, "seed": 2, "save": 4}


def test_any_structure_may_be_a_static_axis():
    """Widths are no numbers: their text is the coordinate. Probes of people have numbered axes."""

    def probe(loss, factors):
        return {"product": bw.end_to_end(factors) @ bw.end_to_end(factors).T}

    widths = [(3, 3), (3, 2, 3)]
    ds = bw.sweep(
        lambda *, widths, rate: short_descent(widths, rate, probe),
        static={"widths": widths},
        traced={"rate": jnp.array([0.1, 0.2])},
        progress=False,
    )
    assert ds["widths"].values.tolist() == ["(3, 3)", "(3, 2, 3)"]
    assert ds["product"].dims == ("widths", "rate", "save", "product_1", "product_2")
    start = np.asarray(bw.end_to_end(BALANCED(jax.random.key(0), (3, 2, 3))))
    found = ds["product"].sel(widths="(3, 2, 3)").isel(save=0)
    assert_close(found, np.stack([start @ start.T] * 2), ROUNDING)


def test_times_that_depend_on_the_run_keep_its_axes():
    def experiment(*, end):
        start = BALANCED(jax.random.key(0), (3, 3))
        loss = bw.losses.BuresWasserstein(TARGET, 0.1)
        times = end * TIMES
        return bw.gradient_flow(loss, start, times=times, rtol=1e-4, atol=1e-6, throw=False)

    ends = jnp.array([0.5, 2.0])
    ds = bw.sweep(experiment, traced={"end": ends}, progress=False)
    assert ds["time"].dims == ("end", "save")
    assert_close(ds["time"], np.outer(ends, TIMES), ROUNDING)
    assert ds["loss"].isel(end=0, save=-1) > ds["loss"].isel(end=1, save=-1)


def never(**_):
    raise AssertionError("the axes are looked at before anything runs")


@pytest.mark.parametrize(
    ("static", "traced", "message"),
    [
        ({"depth": [1]}, {}, "traced must name at least one axis"),
        ({"depth": []}, {"seed": [0]}, "axis depth must be a non-empty list"),
        ({}, {"seed": []}, "axis seed must be a non-empty list"),
        ({}, {"seed": 3}, "axis seed must be a non-empty list"),
        ({}, {"tau": [[0.0, 0.1]]}, "axis tau must be a non-empty list"),
        ({"depth": [1, 2, 1]}, {"seed": [0]}, "axis depth must not repeat a value"),
        ({"widths": [(2, 2), (2, 2)]}, {"seed": [0]}, "axis widths must not repeat a value"),
        ({}, {"tau": [0.1, 0.1]}, "axis tau must not repeat a value"),
        ({"seed": [0]}, {"seed": [0]}, "axes must be static or traced, not both: seed"),
    ],
)
def test_bad_axes_are_refused_by_name(static, traced, message):
    with pytest.raises(ValueError, match=message):
        bw.sweep(never, static=static, traced=traced, progress=False)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_sizes_must_be_positive_integers(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        bw.sweep(never, traced={"seed": [0]}, batch_size=batch_size, progress=False)


def test_an_experiment_must_return_a_trajectory():
    with pytest.raises(ValueError, match=r"must return a bwflow.Trajectory; got dict"):
        bw.sweep(lambda *, seed: {"loss": seed}, traced={"seed": [0]}, progress=False)


@pytest.mark.parametrize("name", ["hit", "time", "success", "rate", "save"])
def test_probes_must_not_take_the_name_of_something_else(name):
    with pytest.raises(ValueError, match=f"a probe must not be named '{name}'"):
        bw.sweep(
            lambda *, rate: short_descent((3, 3), rate, lambda *_: {name: jnp.zeros(())}),
            traced={"rate": [0.1]},
            progress=False,
        )


@pytest.mark.skipif(X64, reason="they differ in double precision")
def test_axes_too_fine_for_single_precision_repeat():
    with pytest.raises(ValueError, match="axis tau must not repeat a value"):
        bw.sweep(never, traced={"tau": [0.1, 0.1 + 1e-12]}, progress=False)


def test_a_sweep_is_a_dataset_that_selects_by_value(ds):
    assert isinstance(ds, xr.Dataset)
    picked = ds["loss"].sel(dynamics="descent", depth=3, seed=1)
    assert np.array_equal(picked.values, ds["loss"].values[1, 2, :, 1])


def test_a_depth_among_the_traced_axes_is_told_to_be_static():
    def experiment(*, depth):
        start = bw.initializers.balanced()(jax.random.key(0), (2,) * (depth + 1))
        loss = bw.losses.Approximation(jnp.eye(2))
        return bw.gradient_descent(loss, start, optax.sgd(0.1), num_steps=1)

    with pytest.raises(TypeError) as caught:
        bw.sweep(experiment, traced={"depth": [1, 2]}, progress=False)
    assert "such as a depth, goes under static" in "".join(caught.value.__notes__)
