"""Convergence statistics against hand-written estimators and datasets whose decay is known."""

from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import bwflow as bw
from bwflow import statistics

TOLERANCE = 1e-6
QUANTILES = (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))


def kaplan_meier(duration, arrived):
    """First arrival at which the product-limit estimate of what is still under way falls so far."""
    quantiles = []
    for q in QUANTILES:
        under_way, answer = Fraction(1), np.inf
        for t in sorted(set(duration[arrived])):
            at_risk = int(np.sum(duration >= t))
            under_way *= 1 - Fraction(int(np.sum(arrived & (duration == t))), at_risk)
            if 1 - under_way >= q:
                answer = t
                break
        quantiles.append(answer)
    return quantiles


def late_decay(times, gap, hit, rounding):
    """The two fits of one run, by numpy's polynomials."""
    seen = np.isfinite(times) & np.isfinite(gap)
    t, g = times[seen], gap[seen]
    if np.isfinite(hit):
        before = t < hit
        t, g = np.append(t[before], hit), np.append(g[before], g[-1:])
    elif np.any(g <= rounding):
        t, g = t[: np.argmax(g <= rounding)], g[: np.argmax(g <= rounding)]
    t, g = t[g > 0], g[g > 0]
    if t.size < 3:
        return [np.nan, np.nan]
    last = g <= 1e3 * g[-1]
    octaves = (t >= t[-1] / 4) & (t > 0)
    return [-slope(t[last], np.log(g[last])), slope(np.log(t[octaves]), np.log(g[octaves]))]


def slope(x, y):
    if x.size < 3 or np.ptp(x) == 0:
        return np.nan
    return np.polyfit(x - x.mean(), y, 1)[0]


def study(times, gap, hit, *, success=None, clock="time"):
    """A sweep over seeds with given gaps and hits, from a loss of one."""
    gap, hit = np.asarray(gap, float), np.asarray(hit, float)
    count = len(hit)
    times = np.asarray(times, float)
    return xr.Dataset(
        {
            "loss": (("seed", "save"), np.broadcast_to(gap, (count, times.shape[-1]))),
            "gap": (("seed", "save"), np.broadcast_to(gap, (count, times.shape[-1]))),
            "hit": ("seed", hit),
            "num_steps": ("seed", 10 * np.arange(count)),
            "success": ("seed", np.ones(count, bool) if success is None else success),
        },
        {"seed": np.arange(count), clock: (("seed", "save")[2 - times.ndim :], times)},
        {"tolerance": TOLERANCE},
    )


def stopped(times, decay, arrival):
    """A run that follows a law until its arrival at the tolerance, and repeats that row after."""
    assert np.isclose(decay(arrival), TOLERANCE)
    hit = arrival if arrival <= times[-1] else np.inf
    return study(times, [np.where(times < arrival, decay(times), TOLERANCE)], [hit])


@pytest.mark.parametrize("seed", range(12))
def test_quantiles_are_those_of_kaplan_and_meier(seed):
    """Ties among arrivals and with the ends; every run has an end of its own."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 30))
    ends = rng.integers(1, 12, count).astype(float)
    arrival = rng.integers(1, 16, count).astype(float)
    arrived = arrival <= ends
    times = np.stack([np.zeros(count), ends], axis=1)
    ds = study(times, np.ones((count, 2)), np.where(arrived, arrival, np.inf))
    summary = statistics.summary(ds)
    expected = kaplan_meier(np.minimum(arrival, ends), arrived)
    assert summary["hit"].values.tolist() == expected
    assert summary["quantile"].values.tolist() == [0.25, 0.5, 0.75]
    assert summary["arrived"] == arrived.sum()
    assert summary["runs"] == count


def test_quantiles_are_infinite_where_nobody_arrived():
    ds = study([0.0, 5.0], np.ones((4, 2)), np.full(4, np.inf))
    summary = statistics.summary(ds)
    assert summary["hit"].values.tolist() == [np.inf] * 3
    assert summary["arrived"] == 0
    assert summary["runs"] == 4


def test_quantiles_are_those_of_the_sample_where_all_arrived():
    hits = np.array([8.0, 1.0, 5.0, 2.0, 7.0, 3.0, 4.0, 6.0])
    summary = statistics.summary(study([0.0, 9.0], np.ones((8, 2)), hits))
    assert summary["hit"].values.tolist() == [2.0, 4.0, 6.0]
    assert summary["arrived"] == 8


def test_quantiles_beyond_the_end_are_infinite():
    """Half of the runs arrived, so the third quartile is not known."""
    hits = np.array([1.0, np.inf, 2.0, np.inf])
    summary = statistics.summary(study([0.0, 9.0], np.ones((4, 2)), hits))
    assert summary["hit"].values.tolist() == [1.0, 2.0, np.inf]


def test_failed_runs_are_counted_and_censored():
    """Two arrive, one fails and one has a hit to its name but failed: it did not arrive."""
    hits = np.array([1.0, 3.0, np.inf, 2.0])
    success = np.array([True, True, False, False])
    ds = study([0.0, 9.0], np.ones((4, 2)), hits, success=success)
    summary = statistics.summary(ds)
    assert summary["failed"] == 2
    assert summary["arrived"] == 2
    assert summary["runs"] == 4
    expected = kaplan_meier(np.array([1.0, 3.0, 9.0, 9.0]), np.array([True, True, False, False]))
    assert summary["hit"].values.tolist() == expected == [1.0, 3.0, np.inf]


def test_steps_are_the_median():
    summary = statistics.summary(study([0.0, 9.0], np.ones((5, 2)), np.ones(5)))
    assert summary["steps"] == 20.0


def test_quantiles_of_a_million_runs_are_exact():
    """The first hundred fail at the beginning and hand their shares on to all others."""
    count, failed = 1_000_000, 100
    success = np.arange(count) >= failed
    hits = np.random.default_rng(0).permutation(count - failed) + 1.0
    hits = np.append(np.full(failed, np.inf), hits)
    times = np.where(success[:, None], [0.0, count], [0.0, 0.5])
    found = statistics.summary(study(times, np.ones((count, 2)), hits, success=success))
    assert found["hit"].values.tolist() == [(count - failed) * float(q) for q in QUANTILES]
    assert found["failed"] == failed


def wilson(successes, trials):
    """Where the standardised distance of the proportion found is that of a two-sided 95 %."""
    z2 = 1.959963984540054**2
    # (k/n - p)^2 = z^2 p (1 - p) / n as a polynomial in p.
    p = successes / trials
    ends = np.roots([1 + z2 / trials, -(2 * p + z2 / trials), p**2])
    return sorted(ends.real)


@pytest.mark.parametrize("trials", [1, 2, 7, 30])
def test_the_share_that_converged_has_the_interval_of_wilson(trials):
    for successes in range(trials + 1):
        hits = np.where(np.arange(trials) < successes, 1.0, np.inf)
        found = statistics.summary(study([0.0, 9.0], np.ones((trials, 2)), hits))
        ends = [float(found["converged_low"]), float(found["converged_high"])]
        assert float(found["converged"]) == successes / trials
        assert np.allclose(ends, wilson(successes, trials), rtol=0, atol=1e-7)
        independent = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert np.allclose(ends, independent, rtol=1e-12, atol=1e-15)


def test_the_interval_of_wilson_is_that_of_its_closed_form():
    """Of 8 in 10, and of none and all of 5, where one end is `z^2 / (n + z^2)` from the other."""
    z2 = 3.841458820694124
    cases = {
        (8, 10): (0.4901625, 0.9433178),
        (0, 5): (0.0, z2 / (5 + z2)),
        (5, 5): (5 / (5 + z2), 1.0),
    }
    for (successes, trials), expected in cases.items():
        hits = np.where(np.arange(trials) < successes, 1.0, np.inf)
        found = statistics.summary(study([0.0, 9.0], np.ones((trials, 2)), hits))
        ends = [float(found["converged_low"]), float(found["converged_high"])]
        assert np.allclose(ends, expected, rtol=0, atol=1e-7)
        assert [end for end in expected if end in (0, 1)] == [end for end in ends if end in (0, 1)]


@pytest.mark.parametrize("end", [20.0, 100.0], ids=["under way", "arrived"])
def test_the_late_rate_of_an_exponential_is_its_rate(end):
    times = np.linspace(0.0, end, 101)
    ds = stopped(times, lambda t: np.exp(-0.3 * t), np.log(1e6) / 0.3)
    assert np.isfinite(ds["hit"]) == (end == 100.0)
    assert abs(statistics.summary(ds)["late_rate"] - 0.3) < 1e-9


def test_the_late_rate_forgets_how_the_run_began():
    """A slow beginning is more than three decades above the end."""
    times = np.linspace(0.0, 200.0, 401)
    arrival = 50.0 + (np.log(1e6) - 0.5) / 0.41
    ds = stopped(times, lambda t: np.exp(-0.01 * t - 0.4 * np.maximum(t - 50.0, 0.0)), arrival)
    assert abs(statistics.summary(ds)["late_rate"] - 0.41) < 1e-9


@pytest.mark.parametrize("end", [100.0, 1e4], ids=["under way", "arrived"])
def test_the_late_slope_of_a_power_law_is_its_exponent(end):
    times = np.concatenate([[0.0], np.geomspace(1.0, end, 61)])
    ds = stopped(times, lambda t: np.maximum(t, 1.0) ** -2.0, 1e3)
    assert np.isfinite(ds["hit"]) == (end == 1e4)
    assert abs(statistics.summary(ds)["late_slope"] + 2.0) < 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_late_fits_are_those_of_each_run_alone(seed):
    """Noise, gaps of zero and below, records that are missing, arrivals, runs that sink."""
    rng = np.random.default_rng(seed)
    count, saves = 40, int(rng.integers(2, 25))
    times = np.sort(rng.exponential(5.0, (count, saves)), axis=1)
    times[::2, 0] = 0.0
    gap = np.exp(rng.normal(size=(count, saves)) - rng.exponential(1.0, (count, 1)) * times)
    gap[rng.random((count, saves)) < 0.05] = 0.0
    gap[rng.random((count, saves)) < 0.05] *= -1
    gap[rng.random((count, saves)) < 0.1] = np.nan
    gap[:, 0] = 1.0
    times[rng.random((count, saves)) < 0.02] = np.nan
    times[:, 0] = np.fmin(times[:, 0], np.nanmin(times, axis=1))
    hits = np.where(rng.random(count) < 0.5, rng.exponential(10.0, count), np.inf)
    rounding = 100 * np.finfo(float).eps
    expected = np.transpose(list(map(late_decay, times, gap, hits, [rounding] * count)))
    assert saves < 8 or np.isfinite(expected).mean() > 0.4
    ds = study(times, gap, hits)
    for one, rate, exponent in zip(range(count), *expected, strict=True):
        found = statistics.summary(ds.isel(seed=[one]))
        fits = [float(found["late_rate"]), float(found["late_slope"])]
        assert np.allclose(fits, [rate, exponent], rtol=1e-9, atol=1e-12, equal_nan=True)


def test_late_fits_are_medians_over_the_runs_that_did_not_fail():
    times = np.linspace(0.0, 20.0, 41)
    gaps = [np.exp(-rate * times) for rate in (0.1, 0.3, 0.2)]
    gaps += [np.full(41, np.nan), np.exp(-5.0 * np.minimum(times, 1.0)), np.ones(41)]
    success = np.array([True, True, True, False, False, False])
    summary = statistics.summary(study(times, gaps, np.full(6, np.inf), success=success))
    assert abs(summary["late_rate"] - 0.2) < 1e-9


def test_a_run_with_too_few_records_has_no_fit():
    """It arrived at once."""
    summary = statistics.summary(study([0.0, 1.0, 2.0], [[1.0, 1e-6, 1e-6]], [0.5]))
    assert np.isnan(summary["late_rate"])
    assert np.isnan(summary["late_slope"])
    assert summary["arrived"] == 1


def test_single_precision_is_summarised_like_double():
    times = np.linspace(0.0, 100.0, 101)
    double = stopped(times, lambda t: np.exp(-0.3 * t), np.log(1e6) / 0.3)
    records = {name: double[name].astype(np.float32) for name in ("loss", "gap", "hit")}
    one, two = (statistics.summary(ds) for ds in (double, double.assign(records)))
    for name in ("hit", "late_rate", "late_slope"):
        assert two[name].dtype == np.float64
        assert np.allclose(one[name], two[name], rtol=1e-5)


def test_each_dynamics_is_measured_by_its_clock():
    """A decay of 0.5 per unit of time and of 0.02 per step, over the same records."""
    times, steps = np.linspace(0.0, 10.0, 21), np.arange(0.0, 210.0, 10.0)
    gaps = [np.exp(-0.5 * times), np.exp(-0.02 * steps)]
    parts = [study(times, [gap], [np.inf]).drop_vars("time") for gap in gaps]
    ds = xr.concat(parts, dim="dynamics").assign_coords(
        dynamics=["flow", "descent"], time=("save", times), step=("save", steps)
    )
    summary = statistics.summary(ds)
    rates = summary["late_rate"].transpose("dynamics").values
    assert np.allclose(rates, [0.5, 0.02], rtol=1e-9)


def test_the_fit_ends_at_the_gap_that_the_run_had_when_it_arrived():
    """A descent can land far below the tolerance; the rows after the hit hold that gap."""
    times = np.arange(8.0)
    ds = study(times, [0.5 ** np.minimum(times, 6.0)], [6.0]).assign_attrs(tolerance=0.1)
    assert abs(statistics.summary(ds)["late_rate"] - np.log(2.0)) < 1e-9


def test_frobenius_flows_of_one_layer_slow_down_at_eigenvalue_zero():
    ds = xr.Dataset(
        {"target_eigenvalues": ("eigenvalue", [1.0, 0.0])},
        {"depth": 1, "bottleneck": 2, "tau": 0.0},
    )
    assert not statistics.algebraic_decay(ds)
    assert statistics.algebraic_decay(ds.assign_attrs(experiment='{"loss": "frobenius"}'))


def test_summaries_keep_the_other_axes():
    times = np.linspace(0.0, 9.0, 10)
    parts = [study(times, np.ones((3, 10)), hits) for hits in ([1.0, 2.0, 3.0], [np.inf] * 3)]
    ds = xr.concat(parts, dim="tau").assign_coords(tau=[0.0, 0.1])
    ds = ds.assign_coords(time=("save", times))
    summary = statistics.summary(ds)
    assert summary["hit"].transpose("tau", "quantile").values.tolist() == [
        [1.0, 2.0, 3.0],
        [np.inf] * 3,
    ]
    assert summary["arrived"].values.tolist() == [3, 0]
    assert summary["runs"].values.tolist() == [3, 3]


@pytest.mark.parametrize("name", ["loss", "gap", "hit", "num_steps", "success"])
def test_a_sweep_without_what_is_needed_is_refused(name):
    ds = study([0.0, 1.0], np.ones((2, 2)), np.ones(2)).drop_vars(name)
    with pytest.raises(ValueError, match=f"it lacks {name}"):
        statistics.summary(ds)


def test_an_axis_that_is_not_there_is_refused():
    ds = study([0.0, 1.0], np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match="it lacks the axis 'start'"):
        statistics.summary(ds, over="start")


PLACES = "over must name axes among seed: .*it lacks the axis"
EACH_ONCE = "over must name one axis or several, each once"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("start", f"{PLACES} 'start'"),
        (["seed", "start"], f"{PLACES} 'start'"),
        (["seed", None], f"{PLACES} None"),
        (None, f"{PLACES} None"),
        (3, f"{PLACES} 3"),
        ("", f"{PLACES} ''"),
        ([["seed"]], rf"{PLACES} \['seed'\]"),
        (b"seed", f"{PLACES} 115"),
        ([], rf"{EACH_ONCE}; got \[\]"),
        (("seed", "seed"), rf"{EACH_ONCE}; got \['seed', 'seed'\]"),
    ],
)
def test_axes_that_cannot_be_pooled_are_refused(over, message, as_installed):
    ds = study([0.0, 1.0], np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match=message):
        statistics.summary(ds, over=over)


def slows_down(depth, eigenvalue, tau):
    """Whether a singular value has a power law, by the equation of an aligned balanced flow.

    `s' = -2 N s^{3 - 2/N} (1 - b / (s^2 + tau)^{1/2})`, `b^2` the eigenvalue: where `s` goes to
    zero, it does so exponentially only if `s'` vanishes like `s` itself.
    """
    if eigenvalue > tau:
        return False

    def speed(s):
        pull = np.expm1(0.5 * (np.log(eigenvalue) - np.log(s**2 + tau))) if eigenvalue else -1.0
        return 2 * depth * s ** (3 - 2 / depth) * -pull

    order = np.log(speed(1e-4) / speed(1e-5)) / np.log(10.0)
    return bool(order > 1.1)


SPECTRUM = np.array([1.0, 0.5, 0.1, 0.0])


def predicted(spectrum, *, depth, bottleneck, tau):
    ds = xr.Dataset(
        {"target_eigenvalues": ("eigenvalue", spectrum)},
        {"depth": list(depth), "bottleneck": list(bottleneck), "tau": list(tau)},
    )
    return statistics.algebraic_decay(ds).transpose("depth", "bottleneck", "tau")


def test_power_laws_are_predicted_where_the_flow_of_a_singular_value_slows_down():
    axes = {
        "depth": (1, 2, 3, 5),
        "bottleneck": (1, 2, 3, 4),
        "tau": (0.0, 0.05, 0.1, 0.3, 0.5, 0.7, 1.0, 2.0),
    }
    found = predicted(SPECTRUM, **axes)
    for N in axes["depth"]:
        for k in axes["bottleneck"]:
            for tau in axes["tau"]:
                expected = any(slows_down(N, lam, tau) for lam in SPECTRUM[:k])
                assert bool(found.sel(depth=N, bottleneck=k, tau=tau)) == expected, (N, k, tau)


def test_one_layer_slows_down_only_at_a_positive_eigenvalue():
    found = predicted(SPECTRUM, depth=[1], bottleneck=[4], tau=[0.0, 0.05, 0.1, 0.3, 0.5, 1.0])
    assert found.values.ravel().tolist() == [False, False, True, False, True, True]


def test_deep_networks_slow_down_where_an_eigenvalue_cannot_be_learnt():
    """At full width the zero eigenvalue is to be learnt too, whatever the smoothing."""
    found = predicted(SPECTRUM, depth=[2], bottleneck=[2, 3, 4], tau=[0.0, 0.05, 0.3, 0.7])
    assert found.values[0].tolist() == [
        [False, False, False, True],
        [False, False, True, True],
        [True, True, True, True],
    ]


@pytest.mark.parametrize("seed", [-1, 0, 1, 2])
def test_an_eigenvalue_is_equal_to_the_smoothing_up_to_its_rounding(seed):
    """A spectrum that went through a random basis and a decomposition."""
    spec = bw.experiment.TargetSpec(kind="geometric", n=3, condition=10.0, basis_seed=seed)
    target = bw.study.make_target(spec, np.dtype(bw.covariances.geometric(3, 10.0).dtype))
    spectrum = np.asarray(target.eigenvalues)
    taus = np.array([0.09, 0.1, 0.11], spectrum.dtype)
    found = predicted(spectrum, depth=[1, 2], bottleneck=[3], tau=taus).values[:, 0].tolist()
    assert found == [[False, True, False], [False, True, True]]


def test_nothing_is_predicted_without_the_spectrum():
    summary = statistics.summary(study([0.0, 1.0], np.ones((2, 2)), np.ones(2)))
    assert not summary["algebraic"]
