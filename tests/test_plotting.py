"""Figures and tables of a study whose numbers are known, and slices of samples."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from helpers import assert_close
from matplotlib.colors import to_rgba

from bwflow import plotting, report, statistics
from bwflow.experiment import Experiment

TOLERANCE = 1e-4
TIMES = np.concatenate([[0.0], np.geomspace(0.1, 100.0, 7)])
STEPS = np.array([0.0, 5.0, 10.0, 15.0, 20.0, np.nan, np.nan, np.nan])
TAUS = (0.0, 0.05, 0.2)
SEEDS = 5


@pytest.fixture(scope="module")
def ds():
    """A study of every kind of axis: exponential gaps with a rate for each run.

    Runs stop a little below the tolerance; where `tau` is largest the flows' last run fails.
    """
    rng = np.random.default_rng(0)
    axes = {
        "dynamics": np.array(["flow", "descent"], dtype=np.dtypes.StringDType()),
        "depth": [1, 2, 3],
        "bottleneck": [1, 2],
        "tau": list(TAUS),
        "seed": np.arange(SEEDS),
    }
    shape = tuple(len(values) for values in axes.values())
    rate = rng.uniform(0.05, 1.5, shape)
    clock = np.stack([TIMES, STEPS])[:, None, None, None, None, :]
    hit = np.log(1 / TOLERANCE) / rate
    end = np.nanmax(clock, axis=-1)
    stopped = np.minimum(clock, 1.1 * hit[..., None])
    start = rng.uniform(0.5, 2.0, shape)
    success = np.ones(shape, bool)
    success[0, :, :, -1, -1] = False
    gap = np.where(
        success[..., None], start[..., None] * np.exp(-rate[..., None] * stopped), np.nan
    )
    gap[..., 0] = start
    return xr.Dataset(
        {
            "loss": ((*axes, "save"), gap),
            "gap": ((*axes, "save"), gap),
            "hit": (tuple(axes), np.where((hit <= end) & success, hit, np.inf)),
            "num_steps": (tuple(axes), rng.integers(10, 99, shape)),
            "success": (tuple(axes), success),
            "target_eigenvalues": ("eigenvalue", [1.0, 0.1]),
        },
        {**axes, "time": ("save", TIMES), "step": ("save", STEPS)},
        {"tolerance": TOLERANCE, "experiment": Experiment().to_json()},
    )


def cell(ds, dynamics="flow", depth=2, bottleneck=1, tau=0.05):
    return ds.sel(dynamics=dynamics, depth=depth, bottleneck=bottleneck, tau=tau)


def relative_gaps(one):
    """Seeds by records, in units of the loss at the start, not below the tolerance."""
    gap = one["gap"].transpose("seed", "save").values
    return np.maximum(gap / one["loss"].isel(save=0).values[:, None], TOLERANCE)


@pytest.mark.parametrize(
    ("dynamics", "clock", "label"), [("flow", TIMES, "time t"), ("descent", STEPS, "step")]
)
def test_the_line_is_the_median_and_the_band_the_quartiles(ds, dynamics, clock, label):
    one = cell(ds, dynamics=dynamics)
    _, ax = plt.subplots()
    assert plotting.gap_bands(one, ax=ax, label="here", colour="#0072B2") is ax
    seen = np.flatnonzero(clock > 0)
    (line,) = ax.lines
    assert np.array_equal(line.get_xdata(), clock[seen])
    assert_close(line.get_ydata(), np.median(relative_gaps(one)[:, seen], axis=0), 1e-12)
    (band,) = ax.collections
    x, y = band.get_paths()[0].vertices.T
    for q, bound in ((0.25, np.min), (0.75, np.max)):
        drawn = [bound(y[x == t]) for t in clock[seen]]
        assert_close(drawn, np.quantile(relative_gaps(one)[:, seen], q, axis=0), 1e-12)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlabel() == label
    assert line.get_label() == "here"
    assert to_rgba(line.get_color()) == to_rgba("#0072B2")


def test_runs_that_failed_leave_the_band_to_the_others(ds):
    one = cell(ds, tau=0.2)
    assert not one["success"].all()
    ax = plotting.gap_bands(one)
    others = relative_gaps(one)[one["success"].values][:, 1:]
    assert_close(ax.lines[0].get_ydata(), np.median(others, axis=0), 1e-12)


def test_the_current_axes_are_used_by_default(ds):
    _, (first, second) = plt.subplots(1, 2)
    plt.sca(second)
    assert plotting.gap_bands(cell(ds)) is second
    assert not first.lines


def test_a_sweep_of_one_clock_needs_no_dynamics(ds):
    for dynamics, label in (("flow", "time t"), ("descent", "step")):
        one = cell(ds, dynamics=dynamics).drop_vars("dynamics")
        other = {"flow": "step", "descent": "time"}[dynamics]
        _, ax = plt.subplots()
        assert plotting.gap_bands(one.drop_vars(other), ax=ax).get_xlabel() == label


def test_sweeps_with_another_axis_left_are_refused(ds):
    with pytest.raises(ValueError, match=r"seed alone with probe loss; got .*'tau', 'seed'"):
        plotting.gap_bands(ds.sel(dynamics="flow", depth=1, bottleneck=1))
    with pytest.raises(ValueError, match=r"seed alone with probe loss; got .*'save'"):
        plotting.gap_bands(cell(ds).isel(seed=0))


@pytest.mark.parametrize("probe", ["loss", "gap"])
def test_sweeps_without_a_probe_are_refused(ds, probe):
    with pytest.raises(ValueError, match=f"with probe {probe}; got none"):
        plotting.gap_bands(cell(ds).drop_vars(probe))


def test_what_is_no_axes_is_refused(ds, as_installed):
    with pytest.raises(ValueError, match="ax must be an Axes of matplotlib or None; got 'left'"):
        plotting.gap_bands(cell(ds), ax="left")


def test_sweeps_whose_seeds_have_different_times_are_refused(ds):
    times = TIMES * (1 + np.arange(SEEDS)[:, None])
    one = cell(ds).assign_coords(time=(("seed", "save"), times))
    with pytest.raises(
        ValueError, match=r"one time for all records of all runs; got \('seed', 'save'\)"
    ):
        plotting.gap_bands(one)


def test_the_figure_has_a_panel_for_each_cell(ds):
    figure = plotting.convergence(ds)
    assert len(figure.axes) == 4 * 3
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [
        f"{dynamics}, N = {depth}, width {bottleneck}"
        for dynamics in ("flow", "descent")
        for bottleneck in (1, 2)
        for depth in (1, 2, 3)
    ]
    for ax in figure.axes:
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert ax.get_xlabel() == ("time t" if ax.get_title().startswith("flow") else "step")
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["gap (L - L*) / L(0)"] * 4


def test_a_panel_has_a_median_for_each_smoothing_and_the_tolerance(ds):
    panels = {ax.get_title(): ax for ax in plotting.convergence(ds).axes}
    ax = panels["descent, N = 3, width 2"]
    *medians, arrived = ax.lines
    assert [line.get_label() for line in medians] == ["0", "0.05", "0.2"]
    assert len({to_rgba(line.get_color()) for line in medians}) == 3
    for tau, line in zip(TAUS, medians, strict=True):
        one = cell(ds, dynamics="descent", depth=3, bottleneck=2, tau=tau)
        seen = np.flatnonzero(STEPS > 0)
        assert_close(line.get_ydata(), np.median(relative_gaps(one)[:, seen], axis=0), 1e-12)
    assert list(arrived.get_ydata()) == [TOLERANCE, TOLERANCE]
    assert ax.get_ylim()[0] < TOLERANCE


def test_the_legend_is_shared(ds):
    (legend,) = plotting.convergence(ds).legends
    assert legend.get_title().get_text() == "smoothing tau"
    assert [text.get_text() for text in legend.get_texts()] == ["0", "0.05", "0.2"]


COLUMNS = np.array([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.3, 1.0]])


def sets(count=2, samples=50):
    rng = np.random.default_rng(1)
    return {
        f"set {i}": (i + 1) * rng.normal(size=(samples, 3)) @ COLUMNS.T + i for i in range(count)
    }


def points_and_ellipses(ax):
    """The lines of a panel: points as they come, ellipses by label."""
    ellipses = {line.get_label(): line for line in ax.lines if line.get_linestyle() != "None"}
    return [line for line in ax.lines if line.get_linestyle() == "None"], ellipses


def test_slices_have_a_panel_for_each_plane_and_the_points_of_each_set():
    planes = ((0, 1), (2, 0), (1, 2))
    figure = plotting.slices(sets(), planes=planes)
    assert len(figure.axes) == 3
    for (i, j), ax in zip(planes, figure.axes, strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel()) == (f"coordinate {i}", f"coordinate {j}")
        assert ax.get_aspect() == 1
        points, ellipses = points_and_ellipses(ax)
        for X, line in zip(sets().values(), points, strict=True):
            assert_close(line.get_xydata(), X[:, [i, j]], 0.0)
            assert line.get_rasterized()
        assert list(ellipses) == list(sets())
        for line, ellipse in zip(points, ellipses.values(), strict=True):
            assert to_rgba(line.get_color()) == to_rgba(ellipse.get_color())
    texts = figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == list(sets())


def test_ellipses_are_two_standard_deviations_of_the_sample_covariance():
    """`(x - mean)^T S^{-1} (x - mean) = 4`, and the curve is closed."""
    (ax,) = plotting.slices(sets(), planes=[(0, 2)]).axes
    for label, ellipse in points_and_ellipses(ax)[1].items():
        X = sets()[label][:, [0, 2]]
        S = np.cov(X, rowvar=False, ddof=0)
        curve = ellipse.get_xydata() - X.mean(axis=0)
        distances = np.einsum("ki,ij,kj->k", curve, np.linalg.inv(S), curve)
        assert_close(distances, np.full(len(curve), 4.0), 1e-10)
        assert_close(curve[0], curve[-1], 1e-12)
        angles = np.unwrap(np.arctan2(*curve.T))
        assert abs(abs(angles[-1] - angles[0]) - 2 * np.pi) < 1e-10


def test_the_ellipse_of_samples_on_a_line_is_a_segment():
    (ax,) = plotting.slices({"line": np.array([[0, 0], [2, 0], [4, 0]])}).axes
    curve = points_and_ellipses(ax)[1]["line"].get_xydata()
    assert_close(curve[:, 1], np.zeros(len(curve)), 0.0)
    assert_close(np.ptp(curve[:, 0]), 4 * (8 / 3) ** 0.5, 1e-3)


def test_of_many_samples_some_are_drawn_and_all_are_in_the_ellipse():
    X = sets(1, samples=4001)
    (ax,) = plotting.slices(X).axes
    (points,), ellipses = points_and_ellipses(ax)
    assert_close(points.get_xydata(), X["set 0"][::3, :2], 0.0)
    middle = ellipses["set 0"].get_xydata()[:-1].mean(axis=0)
    assert_close(middle, X["set 0"][:, :2].mean(axis=0), 1e-12)


def test_many_sets_differ_in_colour_or_dash():
    (ax,) = plotting.slices(sets(20)).axes
    styles = [
        (line.get_color(), line.get_linestyle()) for line in points_and_ellipses(ax)[1].values()
    ]
    assert len(set(styles)) == 20


def test_slices_are_drawn_into_given_axes():
    figure, axes = plt.subplots(2, 2)
    assert plotting.slices(sets(), planes=((0, 1), (1, 2)), axes=list(axes[1])) is figure
    assert [len(ax.lines) for ax in axes.flat] == [0, 0, 4, 4]


FINE = np.ones((3, 2))
BAD_SLICES = {
    "no sets": (lambda: plotting.slices({}), r"samples must hold at least one set; got none"),
    "vector": (lambda: plotting.slices({"a": np.ones(3)}), r"'a' has shape \(3,\)"),
    "one row": (lambda: plotting.slices({"a": np.ones((1, 2))}), r"'a' has shape \(1, 2\)"),
    "other dimension": (
        lambda: plotting.slices({"a": FINE, "b": np.ones((3, 4))}),
        r"'b' has shape \(3, 4\), the first has 2 columns",
    ),
    "NaN": (lambda: plotting.slices({"a": FINE, "b": np.nan * FINE}), r"'b' holds NaN or infin"),
    "no planes": (lambda: plotting.slices({"a": FINE}, planes=()), r"planes must hold at least"),
    "outside": (
        lambda: plotting.slices({"a": FINE}, planes=((0, 1), (0, 2))),
        r"planes must be pairs of coordinates below 2; got \(0, 2\)",
    ),
    "negative": (lambda: plotting.slices({"a": FINE}, planes=[(-1, 0)]), r"got \(-1, 0\)"),
    "triple": (lambda: plotting.slices({"a": FINE}, planes=[(0, 1, 1)]), r"got \(0, 1, 1\)"),
    "axes": (
        lambda: plotting.slices({"a": FINE}, axes=[]),
        r"axes must be one per plane, 1; got 0",
    ),
}


@pytest.mark.parametrize("case", BAD_SLICES)
def test_bad_samples_planes_and_axes_are_refused(case, as_installed):
    call, message = BAD_SLICES[case]
    with pytest.raises(ValueError, match=message):
        call()
    assert plt.get_fignums() == []


def rows_of(text):
    """Cells of the table as dicts by the names of their columns."""
    lines = text.split("\n\n")[0].splitlines()
    assert set(lines[1]) == {"-"}
    names = re.split(r" {2,}", lines[0].strip())
    return [dict(zip(names, re.split(r" {2,}", line.strip()), strict=True)) for line in lines[2:]]


def test_the_table_has_a_row_for_each_cell(ds):
    rows = rows_of(report.table(ds))
    found = [(row["dynamics"], row["N"], row["width"], row["tau"]) for row in rows]
    assert found == [
        (dynamics, str(depth), str(bottleneck), f"{tau:g}")
        for dynamics in ("flow", "descent")
        for depth in (1, 2, 3)
        for bottleneck in (1, 2)
        for tau in TAUS
    ]


def test_the_rows_count_what_the_dataset_holds(ds):
    for row in rows_of(report.table(ds)):
        one = cell(ds, row["dynamics"], int(row["N"]), int(row["width"]), float(row["tau"]))
        arrived = np.isfinite(one["hit"].values)
        assert row["runs"] == str(SEEDS)
        assert row["arrived"] == f"{20 * arrived.sum()}%"
        assert row["failed"] == str((~one["success"].values).sum())
        assert row["steps"] == f"{np.median(one['num_steps']):.0f}"


def test_the_rows_have_the_quantiles_or_say_that_they_lie_beyond_the_end(ds):
    """Of five runs, all censored at one end, the quartiles are the second, third and fourth."""
    beyond = 0
    for row in rows_of(report.table(ds)):
        one = cell(ds, row["dynamics"], int(row["N"]), int(row["width"]), float(row["tau"]))
        end = 100 if row["dynamics"] == "flow" else 20
        low, middle, high = (
            f"{t:.4g}" if np.isfinite(t) else f">{end}" for t in np.sort(one["hit"].values)[1:4]
        )
        assert row["median [quartiles]"] == f"{middle} [{low}, {high}]"
        beyond += high.startswith(">")
    assert 0 < beyond < 36


def test_the_rows_have_the_law_that_the_theory_predicts(ds):
    """Eigenvalues 1 and 0.1: only `tau = 0.2` cannot be undercut, and only at width two."""
    summary = statistics.summary(ds)
    for row in rows_of(report.table(ds)):
        one = cell(summary, row["dynamics"], int(row["N"]), int(row["width"]), float(row["tau"]))
        slows_down = row["N"] != "1" and row["width"] == "2" and row["tau"] == "0.2"
        rate, slope = float(one["late_rate"]), float(one["late_slope"])
        if np.isnan(slope if slows_down else rate):
            assert row["late decay"] == "too few records"
        elif slows_down:
            assert row["late decay"] == f"power law t^{slope:.2f}"
        else:
            assert row["late decay"] == f"exp(-{rate:.3g} t)"
    assert np.isfinite(summary["late_rate"]).mean() > 0.5


def test_a_law_that_cannot_be_fitted_is_said_to_be_unknown(ds):
    """Two records are too few for a slope."""
    short = ds.isel(save=[0, 1]).assign(hit=xr.full_like(ds["hit"], np.inf))
    assert {row["late decay"] for row in rows_of(report.table(short))} == {"too few records"}


def test_the_table_tells_its_tolerance(ds):
    assert "below 0.0001 L(0)" in report.table(ds)


def test_the_report_is_written_to_a_folder(ds, tmp_path):
    text, paths = report.write(ds, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / name for name in ("table.txt", "figure.png")]
    assert paths[0].read_text(encoding="utf-8") == report.table(ds) + "\n" == text + "\n"
    height, width, _ = plt.imread(paths[1]).shape
    assert width > 500
    assert height > 500
    assert plt.get_fignums() == []
