"""The page of a study: what it holds is what the store says, and no more than that can run."""

import base64
import hashlib
import html.parser
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import enter
from helpers import by_precision
from studies import begun, copied, small

import bwflow as bw
from bwflow import _page_data, cli, page, report, statistics, store
from bwflow._lockstep import lockstep
from bwflow._units import Grid
from bwflow.experiment import Experiment

SPEC = small(
    name="shown",
    tau=(0.1, 0.0),
    seeds=7,
    batch_size=4,
    dynamics=("flow", "descent"),
    network={"depth": (1, 2)},
    tolerance=1e-3,
    flow={"num_saves": 90, "end_time": 50.0},
    descent={"num_steps": 40, "save_every": 4, "learning_rate": 0.1},
)
AXES = ("dynamics", "depth", "bottleneck", "tau", "seed")


def fill(path, units=None, seed=0):
    """Write made-up results: gaps that decay, of which some arrive and some fail."""
    rng, grid, ds = np.random.default_rng(seed), Grid.open(path), store.open(path)
    for unit in grid.units() if units is None else [grid.units()[i] for i in units]:
        shape = tuple(side.stop - side.start for side in unit.values())
        dynamics = ds["dynamics"].values[unit["dynamics"].start]
        clock = ds["time" if dynamics == "flow" else "step"].values.astype(float)
        gap = 3.0 * np.exp(-rng.uniform(0.05, 2.0, (*shape, 1)) * clock)
        reason = rng.choice([0, 0, 0, 1, 2], shape)
        hit = np.where(
            rng.random(shape) < 0.7, rng.uniform(1.0, clock[~np.isnan(clock)][-1], shape), np.inf
        )
        made = {
            "gap": gap,
            "loss": gap + 0.5,
            "hit": np.where(reason == 0, hit, np.inf),
            "success": reason == 0,
            "reason": reason,
        }
        results = {}
        for name, array in grid.results.items():
            own = array.shape[len(shape) :]
            values = made.get(name, rng.integers(1, 90, (*shape, *own)))
            results[name] = np.asarray(values).astype(array.dtype)
        grid.put(unit, results)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A finished study, for all to read."""
    return fill(begun(SPEC, tmp_path_factory.mktemp("full") / "shown"))


class Reader(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the texts of some."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open:
            self.texts[self._open] = self.texts.get(self._open, "") + data


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def data_of(text):
    return json.loads(Reader(text).texts["data"], parse_constant=refuse)


def close(listed, expected, digits):
    known = [np.nan if value is None else value for value in listed]
    expected = np.where(np.isinf(expected), np.nan, np.asarray(expected, float)).ravel()
    return np.allclose(known, expected, rtol=0.6 * 10.0 ** (1 - digits), atol=0, equal_nan=True)


def test_the_statistics_are_those_of_all_runs(full):
    cells = data_of(page.render(full))["cells"]
    stats = statistics.summary(store.read(full)).transpose(*AXES[:-1], "quantile")
    for name in ("runs", "arrived", "failed"):
        assert cells[name] == stats[name].values.ravel().tolist()
    assert 0 < sum(cells["failed"]) < sum(cells["runs"]) == 56
    for i, name in enumerate(("hit_low", "hit", "hit_high")):
        assert close(cells[name], stats["hit"].values[..., i], 9)
    for name in ("late_rate", "late_slope", "steps"):
        assert close(cells[name], stats[name].values, 9)
    assert (
        cells["algebraic"]
        == stats["algebraic"].broadcast_like(stats["runs"]).values.ravel().tolist()
    )
    waiting = lockstep(store.read(full))["wasted"].values.ravel()
    assert close(cells["waiting"], np.repeat(waiting, 2), 9)


def test_single_runs_are_told_as_the_store_has_them(full):
    data, ds = data_of(page.render(full)), store.read(full).transpose(*AXES, ...)
    sample = data["sample"]
    assert sample["state"] == "".join(str(code) for code in ds["reason"].values.ravel())
    assert close(sample["hit"], ds["hit"].values, 6)
    assert close(sample["steps"], ds["num_steps"].values, 6)
    runs = statistics.per_run(ds, AXES)
    for name in ("late_rate", "late_slope"):
        assert close(sample[name], runs[name], 6)
    gap = np.frombuffer(base64.b64decode(sample["gap"]), "<i2").reshape(
        2, -1, sample["gap_records"]
    )
    for i, (dynamics, clock) in enumerate((("flow", "time"), ("descent", "step"))):
        times = ds[clock].values.astype(float)
        index = [int(np.nanargmin(np.abs(times - t))) for t in data["records"][dynamics]]
        assert np.allclose(times[index], data["records"][dynamics], rtol=1e-5)
        assert index == sorted(set(index))
        assert index[0] == 1
        assert times[index[-1]] == np.nanmax(times) == data["ends"][dynamics]
        share = (ds["gap"] / ds["loss"].isel(save=0)).values[i][..., index].clip(1e-3)
        share = share.reshape(-1, len(index))
        failed = (ds["reason"].values[i] > 0).ravel()
        assert (gap[i, failed] == sample["gap_missing"]).all()
        found = 10.0 ** (gap[i, ~failed, : len(index)] / sample["gap_per_decade"])
        assert np.allclose(found, share[~failed], rtol=0.0013)
        assert (gap[i, :, len(index) :] == sample["gap_missing"]).all()
    assert len(data["records"]["flow"]) <= 60 < data["all_records"]["flow"] == 90
    assert len(data["records"]["descent"]) == data["all_records"]["descent"] == 10


def test_failures_are_counted_and_named(full):
    data, reason = data_of(page.render(full)), store.read(full)["reason"].values
    flat = reason.reshape(-1, 7)
    counted = {(cell, code): count for cell, code, count in data["failures"]}
    expected = {(i, c): int((row == c).sum()) for i, row in enumerate(flat) for c in (1, 2)}
    assert counted == {key: count for key, count in expected.items() if count}
    assert data["failed"] == [[i, flat[i, j], j] for i, j in np.argwhere(flat > 0).tolist()]
    assert [name for name, _ in data["outcomes"]][:3] == [
        "successful",
        "nonfinite",
        "max_steps_reached",
    ]


def test_of_many_failures_the_first_of_each_kind_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(_page_data, "_LISTED_EACH", 2)
    monkeypatch.setattr(_page_data, "_LISTED", 5)
    path = fill(
        begun(small(name="many", seeds=60, tau=(0.0, 0.1), batch_size=60), tmp_path / "many")
    )
    data, flat = _page_data.gathered(path), store.read(path)["reason"].values.reshape(2, 60)
    assert sum(count for *_, count in data["failures"]) == (flat > 0).sum()
    firsts = [
        (i, c, int(np.flatnonzero(flat[i] == c)[k])) for k in (0, 1) for i in (0, 1) for c in (1, 2)
    ]
    named = {tuple(entry) for entry in data["failed"]}
    assert named < set(firsts)
    assert named > set(firsts[:4])
    assert len(named) == 5


def test_a_page_holds_the_first_seeds_of_a_large_study(full):
    data, whole = _page_data.gathered(full, runs=30), _page_data.gathered(full)
    assert (data["sampled"], data["seeds"], whole["sampled"]) == (3, 7, 7)
    for name in ("cells", "failures", "failed"):
        assert data[name] == whole[name]
    places = [7 * cell + seed for cell in range(8) for seed in range(3)]
    for name in ("state", "hit", "late_rate", "steps"):
        assert list(data["sample"][name]) == [whole["sample"][name][i] for i in places]
    with pytest.raises(
        ValueError, match=r"has 8 combinations of dynamics.* at most 7; bwflow export"
    ):
        _page_data.gathered(full, runs=7)


def test_an_unfinished_study_is_told_as_far_as_it_is(tmp_path):
    path = begun(SPEC, tmp_path / "shown")
    text = page.render(path)
    assert "<strong>Unfinished:</strong> 0 of 56 runs are done" in text
    assert set(data_of(text)["sample"]["state"]) == {"."}
    fill(path, units=[1, 4])
    data, done = data_of(page.render(path)), store.read(path)["done"].values
    assert sum(data["cells"]["runs"]) == done.sum() == 7
    state = np.array(list(data["sample"]["state"]))
    assert ((state != ".") == done.ravel()).all()
    fill(path)
    assert "Unfinished" not in page.render(path)


def test_values_are_written_as_they_are_typed(full):
    """A number of single precision by the shortest text that is read back as the same."""
    data = data_of(page.render(full))
    assert data["axes"] == {
        "dynamics": ["flow", "descent"],
        "depth": [1, 2],
        "bottleneck": [2],
        "tau": [0.1, 0.0],
    }
    held = store.read(full)["tau"].values
    assert held.dtype == by_precision(np.float64, np.float32)
    assert (np.array(data["axes"]["tau"]).astype(held.dtype) == held).all()


def test_no_name_is_taken_for_markup(tmp_path):
    folder = tmp_path / "<"
    folder.mkdir()
    np.save(folder / "script><b>.npy", np.eye(2))
    spec = small(target={"kind": "file", "path": f"{folder}/script><b>.npy"})
    odd = tmp_path / "it's <script>alert(1)<!-- {{data}} & \u2028 é"
    path = fill(begun(spec, odd))
    text = page.render(path)
    read = Reader(text)
    tags = [tag for tag, _ in read.elements]
    assert tags.count("script") == 2
    assert "b" not in tags
    data = data_of(text)
    assert data["store"] == str(path)
    assert shlex.split(data["rerun"]) == ["bwflow", "rerun", str(path)]
    assert Experiment.from_toml(_saved(tmp_path, read.texts["toml"])) == spec
    assert data["slug"] in read.texts["title"]


def _saved(folder, text):
    (folder / "read.toml").write_text(text, encoding="utf-8")
    return folder / "read.toml"


def test_a_store_with_a_dash_is_no_option():
    assert shlex.split(_page_data._quoted(Path("-x y"))) == ["./-x y"]


def test_a_page_needs_nothing_else_and_runs_nothing_else(full):
    text = page.render(full)
    read = Reader(text)
    addresses = [
        value
        for _, attrs in read.elements
        for key, value in attrs.items()
        if key in ("src", "href")
    ]
    assert sorted(addresses) == ["#results", "data:,"]
    assert not re.search("https?:|//[a-z]+[.]|url[(]|@import|fetch[(]|XMLHttp|import[(]", text)
    policy = next(attrs["content"] for _, attrs in read.elements if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(read.texts[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert not any(key.startswith("on") for _, attrs in read.elements for key in attrs)
    assert not re.search(r"\{\{\w+\}\}", text)


def test_labels_and_lists_point_at_what_is_there(full):
    elements = Reader(page.render(full)).elements
    names = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(names) == len(set(names))
    for _, attrs in elements:
        for key in ("aria-labelledby", "data-from", "for"):
            assert attrs.get(key, names[0]) in names


def test_the_same_store_gives_the_same_page(full, tmp_path):
    one, other = (page.write(full, tmp_path / name) for name in ("one.html", "in/other.html"))
    assert one.read_bytes() == other.read_bytes()
    assert one.read_text(encoding="utf-8") == page.render(full)
    assert page.write(str(full), str(one)) == one
    assert {file.name for file in tmp_path.iterdir()} == {"one.html", "in"}


def test_a_store_that_was_written_whole_has_a_page_without_commands(full, tmp_path):
    ds = store.read(full).drop_vars("done")
    store.write(ds, tmp_path / "whole")
    here, there = (data_of(page.render(path)) for path in (tmp_path / "whole", full))
    assert here["rerun"] is None
    assert here["sample"] == there["sample"]
    for name in ("runs", "arrived", "failed", "hit"):
        assert here["cells"][name] == there["cells"][name]


def test_what_is_no_study_is_refused(full, tmp_path, as_installed):
    with pytest.raises(ValueError, match=r"nothing is not a Zarr store"):
        page.render(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"path must be a text or a pathlib.Path; got 3"):
        page.render(3)
    store.write(xr.Dataset({"x": ("seed", [1.0])}), tmp_path / "other")
    with pytest.raises(ValueError, match=r"ds must be a dataset of bwflow.study.run"):
        page.render(tmp_path / "other")
    damaged = copied(full, tmp_path)
    (damaged / "gap" / "c" / "0" / "0" / "0" / "0" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"bwflow repair"):
        page.render(damaged)


def test_what_is_no_file_is_refused_before_anything_is_read(
    full, tmp_path, as_installed, monkeypatch
):
    monkeypatch.setattr(page, "render", lambda path: "page")
    with pytest.raises(ValueError, match=r"file must be the name of a file; got the folder"):
        page.write(full, tmp_path)
    with pytest.raises(ValueError, match=r"file must be a text or a pathlib.Path; got None"):
        page.write(full, None)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=r"taken/page.html cannot be made"):
        page.write(full, tmp_path / "taken" / "page.html")


def test_the_command_writes_a_page_if_asked(tmp_path, monkeypatch, capsys, as_installed):
    enter(tmp_path, monkeypatch)
    fill(bw.stored.create(SPEC, "mine"))
    assert cli.main(["report", "mine", "--html"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "figure  mine-report/figure.png",
        "page    mine-report/report.html",
    ]
    made = tmp_path / "mine-report"
    assert {file.name for file in made.iterdir()} == {"table.txt", "figure.png", "report.html"}
    assert (
        data_of((made / "report.html").read_text(encoding="utf-8"))["rerun"] == "bwflow rerun mine"
    )
    table = (made / "table.txt").read_text(encoding="utf-8")
    assert table == report.table("mine") + "\n"
