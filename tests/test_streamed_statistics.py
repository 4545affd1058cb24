"""Statistics pooled over several axes, of unfinished studies, and of studies read in blocks."""

import itertools

import numpy as np
import pytest
import xarray as xr
from test_statistics import kaplan_meier, late_decay, wilson

from bwflow import _units, statistics, store

AXES = {"dynamics": 2, "depth": 2, "tau": 3, "seed": 7}
POOLS = [
    ("seed",),
    ("tau",),
    ("seed", "tau"),
    ("depth", "seed"),
    ("tau", "depth"),
    ("depth", "tau", "seed"),
]
BLOCKS = [(1, 1, 1, 7), (1, 1, 2, 3), (1, 2, 3, 5), (2, 2, 3, 7), (1, 1, 1, 1)]
ATTRIBUTES = {"experiment": '{"loss": "bures_wasserstein"}', "tolerance": 1e-3}


def study(dtype=np.float64, *, clocks="shared", seed=0):
    """A study of both dynamics: gaps that decay with noise, some of which arrive and some fail."""
    rng = np.random.default_rng(seed)
    axes, shape, saves = tuple(AXES), tuple(AXES.values()), 13
    times, steps = np.linspace(0.0, 24.0, saves), np.arange(saves) * 5.0
    steps[-3:] = np.nan
    t = np.where(np.arange(2)[:, None], steps, times).reshape(2, 1, 1, 1, saves)
    noise = np.exp(0.1 * rng.normal(size=(*shape, saves)))
    gap = noise * np.exp(-rng.uniform(0.02, 1.0, (*shape, 1)) * t)
    below = np.where(np.isnan(gap), np.inf, gap) < 1e-3
    t = np.broadcast_to(t, gap.shape)
    first = np.take_along_axis(t, below.argmax(-1)[..., None], -1)[..., 0]
    hit = np.where(below.any(-1), first, np.inf)
    success = rng.random(shape) > 0.15
    ds = xr.Dataset(
        {
            "loss": ((*axes, "save"), (gap + 0.5).astype(dtype)),
            "gap": ((*axes, "save"), gap.astype(dtype)),
            "hit": (axes, np.where(success, hit, np.inf).astype(dtype)),
            "num_steps": (axes, rng.integers(1, 100, shape, np.int32)),
            "success": (axes, success),
            "reason": (axes, np.where(success, 0, 1).astype(np.int32)),
            "target_eigenvalues": ("eigenvalue", np.array([1.0, 0.25, 0.1], dtype)),
        },
        {
            "dynamics": np.array(["flow", "descent"], np.dtypes.StringDType()),
            "depth": [1, 2],
            "tau": np.array([0.0, 0.1, 0.2], dtype),
            "seed": np.arange(7),
            "bottleneck": 2,
            "time": ("save", times.astype(dtype)),
            "step": ("save", steps.astype(dtype)),
        },
        ATTRIBUTES,
    )
    if clocks == "own":
        own = times * rng.uniform(0.9, 1.1, (*shape, 1))
        ds = ds.assign_coords(time=((*axes, "save"), own.astype(dtype)))
    return ds


def blocks_of(ds, sizes):
    """The rectangles of a grid, as a store keeps them."""
    cuts = [range(0, n, size) for n, size in zip(AXES.values(), sizes, strict=True)]
    for corner in itertools.product(*cuts):
        sides = zip(AXES, corner, sizes, strict=True)
        yield ds.isel({axis: slice(at, at + size) for axis, at, size in sides}).copy(deep=True)


def unfinished(ds, done):
    """A study of which only a part is done, the rest as an array that nothing was written to."""
    axes = xr.DataArray(done, dims=tuple(AXES))
    filled = {}
    for name in ("loss", "gap", "hit", "num_steps", "reason", "success"):
        fill = {"f": np.nan, "i": -1, "b": False}[ds[name].dtype.kind]
        filled[name] = ds[name].where(axes, ds[name].dtype.type(fill)).transpose(*ds[name].dims)
    return ds.assign(filled | {"done": axes})


def some_done(seed=1, share=0.6):
    done = np.random.default_rng(seed).random(tuple(AXES.values())) < share
    done[0, 0, 0] = done[1, :, 2] = False  # nothing of these
    return done


def medians(values):
    known = [x for x in values if np.isfinite(x)]
    return np.median(known) if known else np.nan


def pooled(ds, done, over):
    """The statistics of each pool, one run after the other: name to point of the grid to value."""
    dims = tuple(AXES)
    kept = [axis for axis in dims if axis not in over]
    arrays = {name: ds[name].values.astype(float) for name in ("gap", "loss", "hit", "num_steps")}
    success = ds["success"].values
    answers = {}
    for cell in itertools.product(*(range(AXES[axis]) for axis in kept)):
        runs, arrived, duration, fits = [], [], [], []
        for at in itertools.product(*(range(n) for n in AXES.values())):
            if not done[at] or any(at[dims.index(a)] != i for a, i in zip(kept, cell, strict=True)):
                continue
            clock = ds["time" if at[0] == 0 else "step"].astype(float)
            clock = (clock[at] if clock.ndim > 1 else clock).values
            hit, gap = arrays["hit"][at], arrays["gap"][at]
            runs.append(at)
            arrived.append(success[at] and hit < np.inf)
            duration.append(hit if arrived[-1] else np.nanmax(clock))
            if success[at]:
                rounding = 100 * np.finfo(ds["loss"].dtype).eps * arrays["loss"][at][0]
                fits.append(late_decay(clock, gap, hit, rounding))
        n, k = len(runs), sum(arrived)
        quantiles = kaplan_meier(np.array(duration), np.array(arrived, bool)) if n else [np.nan] * 3
        low, high = wilson(k, n) if n else (np.nan, np.nan)
        answers[cell] = {
            "runs": n,
            "arrived": k,
            "failed": sum(not success[at] for at in runs),
            "converged": k / n if n else np.nan,
            "converged_low": low,
            "converged_high": high,
            "hit": quantiles,
            "late_rate": medians([rate for rate, _ in fits]),
            "late_slope": medians([exponent for _, exponent in fits]),
            "steps": medians([arrays["num_steps"][at] for at in runs]),
        }
    return kept, answers


@pytest.mark.parametrize("clocks", ["shared", "own"])
@pytest.mark.parametrize("over", POOLS, ids="-".join)
@pytest.mark.parametrize("part", [False, True], ids=["finished", "unfinished"])
def test_pools_are_summarised_run_by_run(over, clocks, part):
    ds = study(clocks=clocks)
    done = some_done() if part else np.ones(tuple(AXES.values()), bool)
    found = statistics.summary(unfinished(ds, done) if part else ds, over=over)
    kept, answers = pooled(ds, done, over)
    assert len({answer["runs"] for answer in answers.values()}) > part
    for cell, answer in answers.items():
        point = found.isel(dict(zip(kept, cell, strict=True)))
        for name, expected in answer.items():
            exact = name in ("runs", "arrived", "failed", "converged", "hit", "steps")
            tolerance = 0 if exact else 1e-7
            assert np.allclose(
                point[name].values, expected, rtol=tolerance, atol=tolerance, equal_nan=True
            ), (name, cell)
    assert found["hit"].dims == (*kept, "quantile")


def test_all_axes_can_be_pooled():
    """Of a sweep of flows, though it has an axis that says so."""
    ds = study().isel(dynamics=[0])
    found = statistics.summary(ds, over=tuple(AXES))
    flat = ds.stack(run=tuple(AXES)).transpose("run", ...).drop_vars(["run", *AXES])
    flat = flat.drop_vars(["step", "target_eigenvalues"])
    flat = flat.assign_coords(time=("save", ds["time"].values))
    xr.testing.assert_equal(
        statistics.summary(flat, over="run").drop_vars("algebraic"),
        found.drop_vars("algebraic"),
    )
    assert found["runs"] == 2 * 3 * 7
    assert found["late_rate"].dims == ()


def test_the_order_of_the_axes_is_of_no_account():
    ds = study()
    one, other = (statistics.summary(ds, over=o) for o in (("tau", "seed"), ["seed", "tau"]))
    xr.testing.assert_identical(one, other)
    turned = ds.transpose("save", "seed", "depth", "eigenvalue", "tau", "dynamics")
    xr.testing.assert_identical(
        one, statistics.summary(turned, over=("tau", "seed")).transpose(*one["hit"].dims)
    )


def test_a_power_law_anywhere_in_a_pool_is_told():
    """Two layers have one at each smoothing but the first, one layer at an eigenvalue alone."""
    ds = study()
    alone = statistics.summary(ds)["algebraic"].transpose("depth", "tau")
    assert alone.values.tolist() == [[False, False, False], [False, False, False]]
    ds = ds.assign_coords(tau=[0.0, 0.25, 0.3])
    alone = statistics.summary(ds)["algebraic"].transpose("depth", "tau")
    assert alone.values.tolist() == [[False, True, False], [False, True, True]]
    by_tau = statistics.summary(ds, over=("depth", "seed"))["algebraic"]
    assert by_tau.values.tolist() == [False, True, True]
    assert statistics.summary(ds.isel(tau=[0, 2]), over="tau")["algebraic"].values.tolist() == [
        False,
        True,
    ]


def test_flows_are_not_pooled_with_descents():
    for over in ("dynamics", ("seed", "dynamics")):
        with pytest.raises(ValueError, match="over must leave out dynamics"):
            statistics.summary(study(), over=over)
    assert statistics.summary(study().isel(dynamics=[1]), over="dynamics")["runs"].max() == 1


def test_runs_that_are_not_done_count_nowhere():
    """Seeds that were not run are as good as seeds that are not there."""
    ds = study()
    done = np.broadcast_to(np.arange(7) < 4, tuple(AXES.values()))
    found = statistics.summary(unfinished(ds, done))
    xr.testing.assert_identical(found, statistics.summary(ds.isel(seed=slice(4))))
    assert found["runs"].values.ravel().tolist() == [4] * 12


def test_where_nothing_is_done_nothing_is_known():
    ds = study()
    found = statistics.summary(unfinished(ds, np.zeros(tuple(AXES.values()), bool)))
    for name in ("runs", "arrived", "failed"):
        assert found[name].dtype.kind == "i"
        assert not found[name].any()
    for name in ("converged", "converged_low", "converged_high", "hit", "late_rate"):
        assert found[name].isnull().all()
    assert found["late_slope"].isnull().all()
    assert found["steps"].isnull().all()
    assert found["algebraic"].equals(statistics.summary(ds)["algebraic"])


def test_a_study_that_says_it_is_done_is_as_one_that_does_not_say():
    ds = study()
    done = unfinished(ds, np.ones(tuple(AXES.values()), bool))
    xr.testing.assert_identical(statistics.summary(done), statistics.summary(ds))


@pytest.fixture
def stored(monkeypatch):
    """A path at which there are blocks."""

    def at(whole, blocks):
        monkeypatch.setattr(store, "open", lambda path: whole)
        monkeypatch.setattr(_units, "finished", lambda path: iter(blocks))
        return "results/study"

    return at


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("clocks", ["shared", "own"])
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_a_stored_study_has_the_statistics_of_one_in_memory(sizes, clocks, dtype, stored):
    ds = study(dtype, clocks=clocks)
    path = stored(ds, blocks_of(ds, sizes))
    found = statistics.summary(path, over=("tau", "seed"))
    xr.testing.assert_identical(found, statistics.summary(ds, over=("tau", "seed")))


@pytest.mark.parametrize("over", POOLS, ids="-".join)
@pytest.mark.parametrize("sizes", BLOCKS, ids=str)
def test_blocks_that_are_missing_are_not_done(sizes, over, stored, tmp_path):
    """In any order."""
    rng = np.random.default_rng(2)
    ds = study()
    blocks = list(blocks_of(ds, sizes))
    kept = [blocks[i] for i in rng.permutation(len(blocks))[: len(blocks) * 2 // 3]]
    done = xr.zeros_like(ds["success"])
    for block in kept:
        done.loc[{axis: block[axis] for axis in AXES}] = True
    whole = unfinished(ds, done.values)
    stored(whole, kept)
    found = statistics.summary(tmp_path / "study", over=over)
    xr.testing.assert_identical(found, statistics.summary(whole, over=over))
    assert found["runs"].sum() == done.sum()


def test_axes_are_refused_before_a_stored_study_is_read(stored):
    def never():
        raise AssertionError("a block was read")
        yield

    path = stored(study(), never())
    with pytest.raises(ValueError, match=r"over must name axes among .*'start'"):
        statistics.summary(path, over="start")
    with pytest.raises(ValueError, match="over must leave out dynamics"):
        statistics.summary(path, over="dynamics")


def test_a_path_without_a_store_is_refused(tmp_path):
    for path in (tmp_path, str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match="is not a Zarr store"):
            statistics.summary(path)
