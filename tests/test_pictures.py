"""Pictures of runs, sweeps and landscapes show the numbers that they are given."""

from itertools import islice

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from helpers import assert_close
from matplotlib.colors import to_rgba

import bwflow as bw
from bwflow import plotting
from bwflow._trajectory import RESULTS, Trajectory
from bwflow.theory import Comparison

pytestmark = pytest.mark.once
TIMES = np.concatenate([[0.0], np.geomspace(0.1, 10.0, 6)])
RATES = np.array([0.3, 0.5, 0.9, 1.7, 2.0])
TARGET = bw.Target(jnp.diag(jnp.array([4.0, 2.0, 1.0])))


def trajectory(*batch, **probes):
    """A run, or a batch of runs, with these records."""
    return Trajectory(
        times=jnp.broadcast_to(jnp.asarray(TIMES), (*batch, TIMES.size)),
        probes={name: jnp.asarray(values) for name, values in probes.items()},
        factors=(jnp.zeros((*batch, 3, 3)),),
        num_steps=jnp.zeros(batch, int),
        num_rejected=jnp.zeros(batch, int),
        hit=jnp.full(batch, jnp.inf),
        result=RESULTS.successful,
        clock="time",
    )


def gaps(rates):
    return np.exp(-np.asarray(rates)[..., None] * TIMES)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- runs ----------------------------------------------------------------------------------------


def test_the_gap_of_a_run_is_its_line():
    ax = plotting.gap(trajectory(gap=gaps(0.5), loss=2 * gaps(0.5)), label="here")
    (line,) = ax.lines
    assert_close(line.get_xydata(), np.column_stack([TIMES, gaps(0.5)]), 1e-15)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time t", "gap L - L*")
    assert labels(ax) == ["here"]


def test_the_gap_of_many_runs_is_a_median_in_its_quartiles():
    ax = plotting.gap(trajectory(5, gap=gaps(RATES)))
    assert_close(ax.lines[0].get_ydata(), gaps(0.9), 1e-15)
    x, y = ax.collections[0].get_paths()[0].vertices.T
    for bound, rate in ((np.max, 0.5), (np.min, 1.7)):
        assert_close([bound(y[x == t]) for t in TIMES], gaps(rate), 1e-15)


def test_where_no_gap_was_recorded_the_loss_is_drawn():
    ax = plotting.gap(trajectory(loss=3 * gaps(0.5)))
    assert_close(ax.lines[0].get_ydata(), 3 * gaps(0.5), 1e-15)
    assert ax.get_ylabel() == "loss L"


def test_bounds_are_dashed_where_they_are_proved_and_dotted_where_not():
    rows = jnp.asarray(gaps([0.1, 0.4]))
    bounds = Comparison(
        times=jnp.asarray(TIMES),
        loss=jnp.asarray(gaps(0.5)),
        bounds=rows,
        valid=jnp.array([True, False]),
        holds=jnp.array([True, True]),
        tightest=jnp.zeros(TIMES.size, jnp.int32),
        names=("sure", "hoped"),
        clock="time",
    )
    ax = plotting.gap(trajectory(gap=gaps(0.5)), bounds=bounds)
    assert labels(ax) == ["gap", "sure", "hoped (not proved here)"]
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", ":"]
    for line, row in zip(ax.lines[1:], rows, strict=True):
        assert_close(line.get_ydata(), row, 1e-15)
    assert len({to_rgba(line.get_color()) for line in ax.lines}) == 3


def test_singular_values_have_a_line_each_and_dotted_ends():
    values = np.sqrt([3.5, 1.5, 0.5]) * (1 - gaps([1.0, 0.5, 0.2]).T)
    ax = plotting.spectrum(trajectory(singular_values=values), target=TARGET, tau=0.5)
    assert_close([line.get_ydata() for line in ax.lines[:3]], values.T, 1e-15)
    ends = [line.get_ydata()[0] for line in ax.lines[3:]]
    assert_close(ends, np.sqrt([3.5, 1.5, 0.5]), 1e-12)
    assert {line.get_linestyle() for line in ax.lines[3:]} == {":"}
    assert labels(ax) == ["i = 1", "i = 2", "i = 3"]


def test_eigenvalues_below_the_smoothing_end_at_zero():
    values = np.ones((TIMES.size, 3))
    ax = plotting.spectrum(trajectory(singular_values=values), target=TARGET, tau=1.5)
    assert ax.lines[-1].get_ydata()[0] == 0


def test_the_heat_map_has_the_cosines_from_zero_to_one():
    cosines = np.linspace(0, 1, 3 * TIMES.size).reshape(TIMES.size, 3)
    ax = plotting.alignment(trajectory(alignment=cosines))
    (mesh,) = ax.collections
    assert_close(mesh.get_array(), cosines[1:].T, 1e-15)
    assert mesh.get_clim() == (0, 1)
    edges = mesh.get_coordinates()[0, :, 0]
    assert ((edges[:-1] < TIMES[1:]) & (TIMES[1:] < edges[1:])).all()
    assert ax.yaxis_inverted()
    assert len(ax.figure.axes) == 2  # with its colour bar


def test_a_dataset_of_one_run_is_drawn_as_its_trajectory():
    values = np.sqrt([3.5, 1.5, 0.5]) * (1 - gaps([1.0, 0.5, 0.2]).T)
    ds = xr.Dataset({"singular_values": (("rank", "save"), values.T)}, {"time": ("save", TIMES)})
    lines = plotting.spectrum(ds).lines
    assert_close([line.get_ydata() for line in lines], values.T, 0.0)


# --- landscapes ----------------------------------------------------------------------------------


def test_critical_points_are_at_their_index_and_loss():
    points = list(bw.landscape.critical_points(TARGET, 2, tau=0.25))
    ax = plotting.landscape(points, losses=[0.3])
    drawn = {tuple(at) for line in ax.lines[:3] for at in line.get_xydata().tolist()}
    assert drawn == {(point.morse_index, point.value) for point in points}
    assert labels(ax) == ["rank 2", "rank 1", "rank 0"]
    assert len({line.get_marker() for line in ax.lines[:3]}) == 3
    assert list(ax.lines[3].get_ydata()) == [0.3, 0.3]
    names = {text.get_text(): text.xy for text in ax.texts}
    best = min(points, key=lambda point: point.value)
    assert names["{1, 2}"] == (0, best.value)
    assert len(names) == len(points) == 7


def test_many_critical_points_are_not_named():
    target = bw.Target(jnp.diag(jnp.arange(6.0, 0.0, -1.0)))
    points = islice(bw.landscape.critical_points(target, 3), 20)
    assert not plotting.landscape(points).texts


# --- sweeps --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ds():
    """Exponential gaps: at the small scale all runs arrive, at the large one three of five."""
    rate = np.stack([RATES, RATES / 3])
    hit = np.log(10) / rate
    arrived = hit <= TIMES[-1]
    return xr.Dataset(
        {
            "gap": (("scale", "seed", "save"), gaps(rate)),
            "loss": (("scale", "seed", "save"), gaps(rate)),
            "hit": (("scale", "seed"), np.where(arrived, hit, np.inf)),
            "num_steps": (("scale", "seed"), np.arange(10).reshape(2, 5)),
            "success": (("scale", "seed"), np.ones((2, 5), bool)),
        },
        {"scale": [0.5, 2.0], "seed": np.arange(5), "time": ("save", TIMES)},
    )


def test_bands_pool_all_other_axes(ds):
    ax = plotting.bands(ds, by="scale")
    assert_close(ax.lines[0].get_ydata(), gaps(0.9), 1e-15)
    assert_close(ax.lines[1].get_ydata(), gaps(0.3), 1e-12)
    assert labels(ax) == ["0.5", "2"]
    pooled = plotting.bands(ds, ax=plt.figure().gca())
    both = np.median(ds["gap"].values.reshape(10, -1), axis=0)
    assert_close(pooled.lines[0].get_ydata(), both, 1e-15)


def test_bands_of_what_a_run_has_once_are_against_an_axis(ds):
    ax = plotting.bands(ds, "num_steps", x="scale")
    assert_close(ax.lines[0].get_xydata(), [[0.5, 2.0], [2.0, 7.0]], 0.0)
    assert (ax.get_xscale(), ax.get_xlabel()) == ("linear", "scale")


def test_bands_leave_out_what_is_infinite(ds):
    ax = plotting.bands(ds, "hit", x="scale")
    assert_close(ax.lines[0].get_ydata()[1], 3 * np.log(10) / 1.7, 1e-12)


def test_survival_is_the_share_that_has_not_arrived(ds):
    ax = plotting.survival(ds.sel(scale=0.5), confidence=0)
    t, share = ax.lines[0].get_xydata()[1:].T
    assert_close(t, np.sort(np.log(10) / RATES), 1e-12)
    assert_close(share, [0.8, 0.6, 0.4, 0.2, 0.0], 1e-12)
    assert ax.lines[0].get_drawstyle() == "steps-post"


def test_censored_runs_leave_the_risk_set_and_not_the_curve():
    """Kaplan and Meier by hand: at risk 5, 3 and 1 at the three arrivals."""
    hit = np.array([1.0, np.inf, 3.0, np.inf, 5.0])
    end = np.array([9.0, 2.0, 9.0, 4.0, 9.0])
    ds = xr.Dataset(
        {"hit": ("seed", hit), "success": ("seed", np.ones(5, bool))},
        {"time": (("seed", "save"), np.column_stack([np.zeros(5), end]))},
    )
    ax = plotting.survival(ds)
    steps = dict(ax.lines[0].get_xydata().tolist())
    expected = {1.0: 4 / 5, 2.0: 4 / 5, 3.0: 4 / 5 * 2 / 3, 4.0: 4 / 5 * 2 / 3, 5.0: 0.0}
    for t, share in expected.items():
        assert_close(steps[t], share, 1e-12)
    assert_close(ax.lines[1].get_xdata(), [2.0, 4.0], 0.0)  # strokes


def test_greenwoods_band_is_around_the_curve():
    """`exp(-exp(log(-log S) +- z sqrt(V) / log S))` with `V = sum d / (r (r - d))`."""
    hit = np.arange(1.0, 9.0)
    ds = xr.Dataset(
        {"hit": ("seed", hit), "success": ("seed", np.ones(8, bool))},
        {"time": ("save", [0.0, 9.0])},
    )
    ax = plotting.survival(ds)
    x, y = ax.collections[0].get_paths()[0].vertices.T
    at_risk = 8 - np.arange(4.0)
    S, V = 0.5, np.sum(1 / (at_risk * (at_risk - 1)))
    for z in (1.959963984540054, -1.959963984540054):
        expected = np.exp(-np.exp(np.log(-np.log(S)) + z * np.sqrt(V) / np.log(S)))
        assert min(abs(y[x == 4.0] - expected)) < 1e-9


def test_failed_runs_are_censored_and_those_not_done_count_nowhere(ds):
    one = ds.sel(scale=0.5)
    failed = one.assign(success=one["seed"] != 4)
    ax = plotting.survival(failed, confidence=0)
    assert_close(ax.lines[0].get_ydata()[-1], 0.2, 1e-12)
    undone = one.assign(done=(one["seed"] < 2).astype("uint8"))
    share = plotting.survival(undone, confidence=0, ax=plt.figure().gca()).lines[0].get_ydata()
    assert_close(share, [1.0, 0.5, 0.0], 1e-12)


def test_phases_have_the_statistic_of_each_cell(ds):
    wide = xr.concat([ds, ds], "depth").assign_coords(depth=[1, 2])
    ax = plotting.phases(wide, "scale", "depth")
    assert [text.get_text() for text in ax.texts] == ["1", "0.6"] * 2
    assert_close(ax.collections[0].get_array(), [[1.0, 0.6], [1.0, 0.6]], 1e-12)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.5", "2"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "2"]
    median = plotting.phases(wide, "scale", "depth", "hit", ax=plt.figure().gca())
    first = np.median(np.log(10) / RATES)
    assert [text.get_text() for text in median.texts] == [f"{first:.3g}", f"{3 * first:.3g}"] * 2


def test_cells_whose_runs_did_not_arrive_say_never(ds):
    never = ds.assign(hit=ds["hit"].where(ds["scale"] < 1, np.inf)).expand_dims(depth=[1])
    ax = plotting.phases(never, "scale", "depth", "hit")
    assert [text.get_text() for text in ax.texts][1] == "never"


# --- movies --------------------------------------------------------------------------------------


def frames(animation):
    """Ellipse and caption of each frame."""
    shown = []
    for index in animation.new_frame_seq():
        _, line, caption = animation._func(index)
        shown.append((line.get_xydata().copy(), caption.get_text()))
    animation._draw_was_started = True  # it is told that it was seen
    return shown


def test_a_movie_shows_each_covariance_and_where_the_run_is():
    path = np.eye(2) * (1 + np.arange(TIMES.size))[:, None, None]
    shown = frames(plotting.movie(trajectory(covariance=path), target=jnp.eye(2)))
    assert len(shown) == TIMES.size
    for (curve, caption), t, S in zip(shown, TIMES, path, strict=True):
        assert_close(np.linalg.norm(curve, axis=1), np.full(len(curve), 2 * S[0, 0] ** 0.5), 1e-12)
        assert caption == f"time t = {t:.3g}"


def test_of_many_covariances_some_evenly_spread_are_shown():
    sizes = np.concatenate([np.full(500, 1.0), np.linspace(1.0, 4.0, 500)])
    shown = frames(plotting.movie(sizes[:, None, None] * np.eye(2), frames=20))
    radii = np.array([np.linalg.norm(curve[0]) for curve, _ in shown])
    assert len(shown) <= 20
    assert_close(radii[[0, -1]], [2.0, 4.0], 1e-12)
    assert (np.diff(radii**2 / 4) < 0.3).all()  # not asleep for half of the time


# --- style and refusals --------------------------------------------------------------------------


def test_the_style_holds_inside_its_context_alone():
    before = dict(plt.rcParams)
    with plotting.style():
        ax = plt.figure().gca()
        lines = [ax.plot([0, 1])[0] for _ in range(9)]
    assert dict(plt.rcParams) == before
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
    assert lines[7].get_linestyle() == "--"


@pytest.mark.parametrize("name", ["#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00"])
def test_no_two_colours_are_alike_to_the_colour_blind(name):
    """By the projections of Vienot, Brettel and Mollon (1999) for protanopes and deuteranopes."""
    linear = {}
    for c in plotting._style.COLOURS:
        v = np.array(to_rgba(c)[:3])
        linear[c] = np.where(v < 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_lms = np.array(
        [
            [17.8824, 43.5161, 4.11935],
            [3.45565, 27.1554, 3.86714],
            [0.0299566, 0.184309, 1.46709],
        ]
    )
    blind = {
        "protanope": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
        "deuteranope": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
    }
    for other in set(plotting._style.COLOURS) - {name}:
        for projection in blind.values():
            seen = [projection @ to_lms @ linear[c] for c in (name, other)]
            rgb = [np.clip(np.linalg.solve(to_lms, x), 0, 1) ** (1 / 2.4) for x in seen]
            assert np.linalg.norm(rgb[0] - rgb[1]) > 0.1, (name, other)


RUN = trajectory(loss=gaps(0.5))
BAD = {
    "gap of a number": (lambda ds: plotting.gap(3), "run must be a bwflow.Trajectory or"),
    "no records": (
        lambda ds: plotting.gap(trajectory(other=TIMES)),
        "records 'loss'; it has other",
    ),
    "no bounds": (lambda ds: plotting.gap(RUN, bounds=3), "bounds must be a Comparison"),
    "no spectrum": (lambda ds: plotting.spectrum(RUN), r'record\("singular_values", ...\)'),
    "several runs": (
        lambda ds: plotting.alignment(trajectory(2, alignment=np.ones((2, 7, 3)))),
        "run must be one run; got 2",
    ),
    "both dynamics": (
        lambda ds: plotting.gap(ds.expand_dims(dynamics=["flow"])),
        "run must be of one dynamics",
    ),
    "no points": (lambda ds: plotting.landscape([]), "points must hold at least one"),
    "other points": (lambda ds: plotting.landscape([1]), "points must be critical points"),
    "no variable": (lambda ds: plotting.bands(ds, "size"), "variable 'size'; it has gap, loss"),
    "no axis": (lambda ds: plotting.bands(ds, by="tau"), "axis 'tau'; it has scale, seed"),
    "no records to band": (lambda ds: plotting.bands(ds, "hit"), "name must be recorded along"),
    "records against an axis": (
        lambda ds: plotting.bands(ds, "gap", x="scale"),
        "name must be one number for each run against x; got 'gap'",
    ),
    "confidence": (lambda ds: plotting.survival(ds, confidence=1.0), r"in \[0, 1\); got 1"),
    "no hits": (lambda ds: plotting.survival(ds.drop_vars("hit")), "variable 'hit'"),
    "one axis twice": (lambda ds: plotting.phases(ds, "seed", "seed"), "y must be another axis"),
    "no statistic": (
        lambda ds: plotting.phases(ds, "seed", "scale", "size"),
        "value must be .*converged",
    ),
    "movie of three dimensions": (
        lambda ds: plotting.movie(np.ones((4, 3, 3))),
        r"covariances must be of size 2; got shape \(4, 3, 3\)",
    ),
    "no frames": (lambda ds: plotting.movie(np.eye(2)[None], frames=0), "frames must be"),
    "axes": (lambda ds: plotting.gap(RUN, ax=3), "ax must be an Axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_drawn(case, ds, as_installed):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(ds)
    assert plt.get_fignums() == []


def test_a_batch_under_vmap_is_drawn_as_it_comes():
    def run(rate):
        return trajectory(gap=jnp.exp(-rate * jnp.asarray(TIMES)))

    ax = plotting.gap(jax.vmap(run)(jnp.asarray(RATES)))
    assert_close(ax.lines[0].get_ydata(), gaps(0.9), 1e-12)
