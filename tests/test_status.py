"""Status: what is done and how it ended, and the pace, from lines of logs written by hand."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest
import studies
from studies import assert_same, contents, copied, small

import bwflow as bw
from bwflow import progress
from bwflow._trajectory import OUTCOMES
from bwflow._units import Grid

pytestmark = pytest.mark.once
NOW = 1_800_000_000.0
SPEC = small(seeds=5, tau=(0.0, 0.1))
"""Ten runs in six units: of each smoothing two pairs of seeds and a single one."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return studies.begun(SPEC, tmp_path_factory.mktemp("template") / "store")


@pytest.fixture
def store(template, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "now", lambda: NOW)
    return copied(template, tmp_path)


def put(store, units, *, reason=0, hit=math.inf):
    """Say that units are done; `reason` and `hit` are of all their runs, or of each."""
    grid = Grid.open(store)
    for number in units:
        unit = grid.units()[number]
        runs = tuple(side.stop - side.start for side in unit.values())
        results = {
            name: np.zeros((*runs, *array.shape[len(runs) :]), array.dtype)
            for name, array in grid.results.items()
        }
        results["reason"][...], results["hit"][...] = reason, hit
        results["success"][...] = results["reason"] == 0
        grid.put(unit, results)


def log(store, lines, name="node-1.jsonl"):
    """Append lines: seconds from now at which a unit ended, what it took, and its runs."""
    folder = store.parent / "store-log"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("a", encoding="utf-8") as file:
        for ended, seconds, runs in lines:
            line = {
                "ended": datetime.fromtimestamp(NOW + ended, UTC).isoformat(),
                "host": "node",
                "process": 1,
                "runs": runs,
                "compute_seconds": 0.75 * seconds,
                "write_seconds": 0.25 * seconds,
            }
            file.write(json.dumps(line) + "\n")
    return folder / name


# --- counts ---


def test_nothing_is_done_in_a_new_store(store):
    found = progress.status(store)
    assert (found.runs, found.done, found.arrived, found.outcomes) == (10, 0, 0, {})
    assert found.bytes == sum(map(len, contents(store).values()))


def test_runs_are_counted_and_units_may_be_smaller(store):
    put(store, [0, 2])
    assert progress.status(store).done == 3
    put(store, [5], hit=2.0)
    found = progress.status(store)
    assert (found.runs, found.done, found.arrived) == (10, 4, 1)


@pytest.mark.parametrize(
    ("hit", "arrived"),
    [([0.0, math.inf], 1), ([math.nan, math.inf], 0), ([1e300, 1e-300], 2)],
)
def test_runs_arrive_that_have_a_finite_hit(store, hit, arrived):
    put(store, [0], hit=hit)
    assert progress.status(store).arrived == arrived


def test_failures_are_counted_by_their_reason(store):
    put(store, [0], reason=[0, 1])
    put(store, [1], reason=[2, 1])
    put(store, [3], reason=[3, 4])
    put(store, [4], reason=0)
    assert progress.status(store).outcomes == {
        "successful": 3,
        "nonfinite": 2,
        "max_steps_reached": 1,
        "step_size_underflow": 1,
        "solver_failed": 1,
    }
    assert set(progress.status(store).outcomes) == set(OUTCOMES)


# --- pace ---


def test_without_logs_the_rate_is_not_known(store):
    put(store, [0, 1])
    for make in (lambda: None, (store.parent / "store-log").mkdir):
        make()
        found = progress.status(store)
        assert math.isnan(found.rate)
        assert math.isnan(found.remaining)
        assert found.running is False


def test_without_logs_a_finished_store_has_nothing_to_go(store):
    put(store, range(6))
    found = progress.status(store)
    assert math.isnan(found.rate)
    assert found.remaining == 0.0


# Lines of a process each; runs and seconds of the pace; of ten runs four are done, six to go.
PACES = {
    "one unit": ([[(-5, 10, 4)]], 4, 10),
    "one after the other": ([[(-10, 20, 2), (0, 10, 2)]], 4, 30),
    "with a gap between them": ([[(-40, 5, 2), (0, 5, 2)]], 4, 45),
    "two processes": ([[(-30, 30, 2), (0, 30, 2)], [(-20, 30, 1), (0, 20, 1)]], 6, 60),
    "one process waits": ([[(-50, 10, 1)], [(0, 60, 3)]], 4, 60),
    "a chunk on each device": ([[(0, 12, 2), (0.5, 12.5, 2)]], 4, 12.5),
    "the night between": ([[(-40_010, 10, 2), (-40_000, 10, 2), (-10, 10, 1), (0, 10, 1)]], 2, 20),
    "two nights between": (
        [[(-90_000, 10, 2)], [(-50_000, 1, 2)], [(-8, 8, 1), (0, 8, 1)]],
        2,
        16,
    ),
    "a gap just short of a pause": ([[(-159, 10, 2), (0, 10, 2)]], 4, 169),
    "a gap just long enough": ([[(-171, 10, 2), (0, 10, 2)]], 2, 10),
}


@pytest.mark.parametrize("case", PACES)
def test_the_rate_is_runs_by_time_since_the_last_pause(store, case):
    processes, runs, seconds = PACES[case]
    put(store, [0, 1])
    for number, lines in enumerate(processes):
        log(store, lines, f"node-{number}.jsonl")
    found = progress.status(store)
    assert found.rate == pytest.approx(3600 * runs / seconds, rel=1e-6)
    assert found.remaining == pytest.approx(6 * seconds / runs, rel=1e-6)


def test_the_rate_of_many_processes_is_seen_through_several_units_of_each(store):
    """A thousand runs an hour each; the last fifty units alone would end within seconds."""
    for number in range(200):
        units = [(-3.6 * k - 0.018 * number, 3.6, 1) for k in range(8)]
        log(store, units, f"node-{number}.jsonl")
    assert 150_000 < progress.status(store).rate <= 200_000


def test_the_order_of_lines_says_nothing(store):
    lines = [(-10.0 * k, 10.0, k) for k in range(1, 7)]
    for order in (lines, lines[::-1], lines[3:] + lines[:3]):
        file = log(store, order)
        assert progress.status(store).rate == pytest.approx(21 * 3600 / 60)
        file.unlink()


@pytest.mark.parametrize(("ago", "running"), [(0, True), (79, True), (81, False)])
def test_something_runs_if_the_last_unit_is_no_longer_ago_than_a_pause(store, ago, running):
    """A minute, and ten times the two seconds of a unit."""
    put(store, [0])
    log(store, [(-ago - 2.0, 2.0, 2), (-ago, 2.0, 2)])
    found = progress.status(store)
    assert found.running is running
    assert found.rate == pytest.approx(4 / 4 * 3600)


@pytest.mark.parametrize("size", [1, 40, -3])
def test_a_last_line_that_is_half_written_is_left_out(store, size):
    file = log(store, [(-10.0, 10.0, 2), (0.0, 10.0, 2)])
    whole, last = file.read_bytes(), log(store, [(5.0, 5.0, 100)], "other").read_bytes()
    file.write_bytes(whole + last.rstrip()[:size])
    assert progress.status(store).rate == pytest.approx(4 / 20 * 3600)
    # What comes after it, of a process with the same number, is on a line of its own or lost.
    file.write_bytes(whole + last.rstrip()[:size] + b"\n" + last)
    assert progress.status(store).rate == pytest.approx(104 / 25 * 3600)


def test_other_files_in_the_folder_are_no_logs(store):
    log(store, [(0.0, 10.0, 2)], "slurm-1_1.out")
    log(store, [(0.0, 10.0, 2)], "lock")
    assert math.isnan(progress.status(store).rate)


# --- text ---


def texts(found):
    return dict(line.split(maxsplit=1) for line in progress.describe(found).splitlines())


def status(**changes):
    whole = {
        "runs": 300,
        "done": 200,
        "outcomes": {"successful": 197, "nonfinite": 2, "max_steps_reached": 1},
        "arrived": 120,
        "wasted": 0.25,
        "rate": 50.0,
        "remaining": 7200.0,
        "running": True,
        "bytes": 4_000_000,
    }
    return progress.Status(**whole | changes)


def test_a_description_has_all_there_is():
    assert progress.describe(status()).splitlines() == [
        "runs      200 of 300 done (66 %), 120 arrived",
        "failures  2 nonfinite, 1 max_steps_reached",
        "waiting   25 % of the steps, for slower runs",
        "rate      50 runs per hour",
        "to go     2:00:00 at that rate",
        "disk      4 MB, 2e+04 B a run",
    ]


@pytest.mark.parametrize(
    ("changes", "to_go"),
    [
        ({"remaining": 90_061.4}, "1 day, 1:01:01 at that rate"),
        ({"running": False}, "2:00:00 at that rate; nothing seems to be at work"),
        ({"rate": math.nan, "remaining": math.nan}, "unknown"),
        (
            {"rate": math.nan, "remaining": math.nan, "running": False},
            "unknown; nothing seems to be at work",
        ),
    ],
)
def test_a_description_says_how_long_it_takes(changes, to_go):
    text = progress.describe(status(**changes))
    assert f"to go     {to_go}" in text.splitlines()
    assert ("rate  " in text) == (not math.isnan(changes.get("rate", 50.0)))


def test_the_description_of_a_finished_store_has_no_time_to_go():
    text = progress.describe(status(done=300, outcomes={"successful": 300}, remaining=0.0))
    assert "300 of 300 done (100 %)" in text
    assert "failures  none" in text
    assert "to go" not in text


def test_the_description_of_a_new_store_can_be_written(store):
    text = progress.describe(progress.status(store))
    assert "0 of 10 done (0 %), 0 arrived" in text
    assert "failures  none" in text


def test_all_but_one_run_are_not_all():
    assert "(99 %)" in progress.describe(status(runs=1000, done=999))


# --- where logs are, and what they cannot do ---


@pytest.mark.parametrize(
    ("path", "folder"),
    [("a/store", "a/store-log"), ("a/store/", "a/store-log"), ("a/x.zarr", "a/x.zarr-log")],
)
def test_logs_are_beside_the_store(path, folder):
    assert str(progress.log_folder(path)) == folder


def test_logs_of_the_working_directory_are_beside_it(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    assert progress.log_folder(".") == tmp_path / "store-log"


@pytest.fixture(scope="module")
def computed(template, tmp_path_factory):
    path = copied(template, tmp_path_factory.mktemp("computed"))
    studies.compute(path)
    return path


def test_a_run_logs_every_unit_beside_the_store(computed):
    assert {place.name for place in computed.parent.iterdir()} == {"store", "store-log"}
    (file,) = progress.log_folder(computed).iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["runs"] for line in lines] == [2, 2, 1, 2, 2, 1]
    assert [(line["tau"], line["seed"]) for line in lines] == [
        (tau, seed) for tau in (0, 1) for seed in (0, 2, 4)
    ]
    found = progress.status(computed)
    assert (found.done, found.outcomes, found.running) == (10, {"successful": 10}, False)


def test_a_log_folder_that_cannot_be_made_stops_no_run(template, tmp_path, computed):
    path = copied(template, tmp_path)
    progress.log_folder(path).write_text("a file in its place")
    studies.compute(path)
    assert_same(path, computed)
    assert progress.log_folder(path).read_text() == "a file in its place"
    found = progress.status(path)
    assert found.done == 10
    assert math.isnan(found.rate)


def test_a_store_that_was_written_whole_has_a_status(tmp_path, computed):
    ds = bw.study.run(SPEC, progress=False)
    bw.store.write(ds, tmp_path / "store")
    found = progress.status(tmp_path / "store")
    reference = progress.status(computed)
    for name in ("runs", "done", "outcomes", "arrived", "remaining", "running"):
        assert getattr(found, name) == getattr(reference, name), name
    assert math.isnan(found.rate)
    assert "10 of 10 done (100 %)" in progress.describe(found)


def test_looking_at_a_store_changes_nothing(computed):
    before = contents(computed.parent)
    progress.describe(progress.status(computed))
    assert contents(computed.parent) == before
