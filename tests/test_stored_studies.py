"""Studies on disk: computed, resumed, extended, repaired, and one run made again."""

import contextlib
import fcntl
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import studies
import xarray as xr
from helpers import by_precision
from studies import PRECISION, arrays, assert_same, contents, copied, small

import bwflow as bw
from bwflow import _units

pytestmark = pytest.mark.once

OTHER = {"float64": "float32", "float32": "float64"}[PRECISION]
LAYERED = ("loss", "gap", "imbalance")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Finished stores of small studies by what distinguishes them, each computed once."""
    made = {}

    def get(**changes):
        key = repr(sorted(changes.items()))
        if key not in made:
            path = tmp_path_factory.mktemp("stores") / "store"
            made[key] = studies.finished(small(**changes), path)
        return made[key]

    return get


def seeds(found):
    """Firsts of the seeds of units."""
    return [box["seed"].start for box in found]


def edit_root(path, **attributes):
    """Change attributes of a store as an editor would."""
    file = path / "zarr.json"
    data = json.loads(file.read_text())
    data["attributes"] |= attributes
    file.write_text(json.dumps(data))


# What is stored


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 3},
        {"seeds": 2, "tau": (0.0, 0.1, 0.3)},
        {"seeds": 2, "network": {"depth": (1, 3), "bottleneck": (0, 1)}, "probe": LAYERED},
        {"seeds": 2, "batch_size": 4, "tau": (0.0, 0.1)},
    ],
    ids=["padded", "tau", "networks", "a chunk of several tau"],
)
def test_stored_results_are_those_of_a_study_in_memory(stores, changes):
    """Bit for bit: the same runs advance together in both."""
    memory = bw.study.run(small(**changes), progress=False)
    with xr.open_zarr(stores(**changes), consolidated=False) as ds:
        ds = ds.load()
    assert ds["done"].all()
    assert set(ds.variables) == {*memory.variables, "done"}
    for name, variable in memory.variables.items():
        assert ds[name].dims == variable.dims, name
        if name == "seed":  # 64 bits in the store, whatever the precision
            assert ds[name].values.tolist() == variable.values.tolist()
            continue
        assert ds[name].dtype == variable.dtype, name
        assert ds[name].values.tobytes() == variable.values.tobytes(), name


def test_runs_of_a_padded_chunk_have_the_bits_of_a_longer_study(stores):
    short, long = arrays(stores(seeds=3)), arrays(stores(seeds=5))
    for name in ("loss", "gap", "hit", "num_steps", "reason"):
        assert np.array_equal(short[name], long[name][:, :, :, :, :3]), name
    assert not np.array_equal(short["loss"][..., 2, :], short["loss"][..., 1, :])


# Going on


def test_what_is_done_is_not_done_again(stores, tmp_path, monkeypatch):
    store = studies.begun(small(seeds=5), tmp_path / "store")
    computed = studies.counted(monkeypatch)
    bw.jobs.work(store, part=1, parts=2, progress=False)
    assert seeds(computed) == [0, 4]
    bw.jobs.run(store, progress=False)
    assert seeds(computed) == [0, 4, 2]
    bw.jobs.run(store, progress=False)
    bw.jobs.work(store, part=1, parts=1, progress=False)
    bw.stored.create(small(seeds=5), store)
    assert seeds(computed) == [0, 4, 2]
    assert_same(store, stores(seeds=5))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"descent": {"num_steps": 20}, "tau": (0.2,)},
            ["descent.num_steps is 10 there and 20 here", "tau is (0.1,) there and (0.2,) here"],
        ),
        ({"precision": OTHER}, [f"precision is '{PRECISION}' there and '{OTHER}' here"]),
        ({"target": {"seed": 3}}, ["target.seed is 0 there and 3 here"]),
        ({"batch_size": 3}, ["batch_size is 2 there and 3 here"]),
    ],
)
def test_a_store_of_another_study_is_refused(stores, tmp_path, changes, named):
    """With every key that differs, both values, and no other key."""
    store = copied(stores(seeds=3), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds another study: ") as error:
        bw.stored.create(small(**changes), store)
    for text in [*named, "choose another store, or ask for overwrite"]:
        assert text in str(error.value)
    assert str(error.value).count(" there and ") == len(named)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"seeds": 5}, "bwflow extend adds runs"),
        ({"tau": (0.1, 0.2)}, "bwflow extend adds runs"),
        ({"network": {"depth": (2, 3)}, "dynamics": ("descent", "flow")}, "bwflow extend"),
        ({"seeds": 2}, "it was extended; bwflow work goes on"),
        ({"seeds": 5, "tau": (0.2,)}, "choose another store"),
        ({"seeds": 5, "tolerance": 0.5}, "choose another store"),
    ],
)
def test_to_extend_is_advised_where_only_axes_have_grown(stores, changes, advice):
    with pytest.raises(ValueError, match=f"; {advice}"):
        bw.stored.create(small(**changes), stores(seeds=3))


@pytest.mark.parametrize(
    ("attribute", "named"),
    [
        ({"versions": "jaxlib"}, "jaxlib is 0.0.1 there and "),
        ({"platform": "abacus"}, "platform is abacus there and "),
        ({"x64": PRECISION != "float64"}, "x64 is "),
    ],
    ids=["versions", "platform", "x64"],
)
def test_nothing_is_added_to_what_was_begun_elsewhere(stores, tmp_path, attribute, named):
    """But it is read, and a finished one is left as it is."""
    store = copied(stores(seeds=3), tmp_path)
    half = studies.begun(small(seeds=3), tmp_path / "half")
    bw.jobs.work(half, part=1, parts=2, progress=False)
    if "versions" in attribute:
        versions = json.loads(
            json.loads((store / "zarr.json").read_text())["attributes"]["versions"]
        )
        attribute = {"versions": json.dumps(versions | {"jaxlib": "0.0.1"})}
    for path in (store, half):
        edit_root(path, **attribute)
    before = contents(half), contents(store)
    adding = [
        lambda: bw.jobs.run(half, progress=False),
        lambda: bw.jobs.work(half, part=2, parts=2, progress=False),
        lambda: bw.stored.extend(store, seeds=5),
        lambda: bw.stored.rerun(store, seed=0),
    ]
    for add in adding:
        with pytest.raises(ValueError, match="begun elsewhere: ") as error:
            add()
        assert named in str(error.value)
    bw.jobs.run(store, progress=False)
    assert (contents(half), contents(store)) == before
    assert "UNFINISHED: 2 of 3 runs" in bw.report.table(half)
    assert bw.progress.status(store).done == 3
    assert np.isfinite(bw.store.read(store)["loss"]).all()


# Extensions


@pytest.mark.parametrize(
    ("before", "more", "computed"),
    [
        ({"seeds": 3}, {"seeds": 5}, 2),
        pytest.param({"seeds": 2}, {"seeds": 4}, 1, marks=pytest.mark.slow),
        pytest.param({"seeds": 3}, {"tau": (0.2, 0.1, 0.0)}, 4, marks=pytest.mark.slow),
        ({"seeds": 2, "batch_size": 4, "tau": (0.0, 0.1)}, {"tau": (0.3,)}, 1),
        pytest.param({"seeds": 2}, {"depth": (3, 1)}, 2, marks=pytest.mark.slow),
        ({"seeds": 3}, {"bottleneck": (1,), "seeds": 4}, 3),
        pytest.param(
            {"seeds": 5, "batch_size": 4, "group_size": 2}, {"seeds": 7}, 1, marks=pytest.mark.slow
        ),
    ],
    ids=["seeds", "full chunks", "tau", "padded tau", "depth", "bottleneck and seeds", "groups"],
)
def test_an_extended_store_is_that_of_the_whole_study(
    stores, tmp_path, monkeypatch, before, more, computed
):
    """Only new chunks, and those that were not full, are computed."""
    store = copied(stores(**before), tmp_path)
    old = arrays(store)
    asked = bw.stored.extend(store, **more)
    assert bw.stored.experiment_of(store) == asked
    assert int(arrays(store)["done"].sum()) == old["done"].size
    seen = studies.counted(monkeypatch)
    bw.jobs.run(store, progress=False)
    assert len(seen) == computed
    new = arrays(store)
    for name in ("loss", "gap", "hit", "num_steps", "reason"):
        kept = tuple(map(slice, old[name].shape))
        assert np.array_equal(new[name][kept], old[name]), name
    chunks = json.loads(json.loads((store / "zarr.json").read_text())["attributes"]["chunks"])
    if bw.plan.chunk(asked) == (chunks["tau"], chunks["seed"]):
        assert_same(store, studies.finished(asked, tmp_path / "whole"))


def records_grew(store, spec, tmp_path):
    """See that an extension to larger records is read, whole, and has the values of the study."""
    blocks = list(_units.finished(store))
    assert bw.stored.repair(store) == ([], [])
    bw.jobs.run(store, progress=False)
    assert len(list(_units.finished(store))) > len(blocks)
    assert bw.stored.repair(store) == ([], [])
    found, whole = arrays(store), arrays(studies.finished(spec, tmp_path / "whole"))
    assert sorted(found) == sorted(whole)
    for name, values in whole.items():
        same = np.array_equal(found[name], values, equal_nan=values.dtype.kind == "f")
        assert same, name


@pytest.mark.parametrize(("depth", "more"), [((1,), (3,)), ((2,), (4,)), ((3,), (1,))])
@pytest.mark.slow
def test_a_deeper_network_has_more_layers_to_record(stores, tmp_path, depth, more):
    store = copied(stores(seeds=2, probe=LAYERED, network={"depth": depth}), tmp_path)
    asked = bw.stored.extend(store, depth=more)
    assert asked.network.depth == depth + more
    records_grew(store, asked, tmp_path)


@pytest.mark.slow
def test_dynamics_are_added(stores, tmp_path):
    """The flow has more records than the descent, and a clock of its own."""
    changes = {"seeds": 2, "flow": {"num_saves": 4}, "probe": ("loss", "gap", "numerical_rank")}
    store = copied(stores(**changes), tmp_path)
    asked = bw.stored.extend(store, dynamics=("flow",))
    assert asked == small(**changes, dynamics=("descent", "flow"))
    with xr.open_zarr(store, consolidated=False) as ds:
        assert ds["time"].sizes == {"save": 5}
        assert np.isfinite(ds["loss"].sel(dynamics="descent")).sum() == 6
    records_grew(store, asked, tmp_path)


def test_records_of_every_quantity_can_be_filled_up_with_nan(tmp_path):
    store = studies.begun(small(probe=tuple(bw.diagnostics.QUANTITIES)), tmp_path / "store")
    found = arrays(store)
    for name in bw.diagnostics.QUANTITIES:
        assert found[name].dtype.kind == "f", name
        assert np.isnan(found[name]).all(), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seeds": 2}, "seeds must be at least the store's 3; got 2"),
        ({"seeds": 0}, "seeds must be at least the store's 3; got 0"),
        ({"tau": (-0.1,)}, "tau must be"),
        ({"depth": (0,)}, "network.depth must be"),
        ({"bottleneck": (3,)}, "network.bottleneck must be"),
        ({"bottleneck": (2,)}, "distinct widths, 0 standing for 2"),
        ({"dynamics": ("newton",)}, "dynamics must be"),
    ],
)
def test_what_is_no_extension_is_refused(stores, tmp_path, as_installed, more, message):
    store = copied(stores(seeds=3), tmp_path)
    before = contents(store)
    with pytest.raises(ValueError, match=message):
        bw.stored.extend(store, **more)
    assert contents(store) == before


@contextlib.contextmanager
def locked(store):
    """Another process changes the store."""
    folder = Path(bw.progress.log_folder(store))
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_one_at_a_time_changes_a_store(stores, tmp_path):
    store = copied(stores(seeds=3), tmp_path)
    before = contents(store)
    with locked(store):
        for change in (lambda: bw.stored.extend(store, seeds=5), lambda: bw.stored.repair(store)):
            with pytest.raises(ValueError, match="is being extended or repaired already"):
                change()
        bw.jobs.run(store, progress=False)
        assert contents(store) == before
    assert bw.stored.extend(store, seeds=5).seeds == 5


@contextlib.contextmanager
def interrupted_at(count, store):
    """The replacement `count` of a file of a store, from 1, fails, and so does all after it."""
    replace, seen = Path.replace, itertools.count(1)

    def failing(source, destination):
        if Path(destination).is_relative_to(store) and next(seen) >= count:
            raise OSError(28, "No space left on device")
        return replace(source, destination)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="No space left on device"):
            yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "more", "computed", "by"),
    [
        ({"seeds": 3}, {"seeds": 5}, 2, "run"),
        ({"seeds": 3}, {"seeds": 5}, 2, "run, interrupted too"),
        ({"seeds": 3}, {"seeds": 5}, 2, "repair"),
        ({"seeds": 3}, {"seeds": 5}, 2, "extend"),
        ({"seeds": 3}, {"seeds": 4, "tau": (0.0,), "depth": (1,)}, 7, "run"),
    ],
    ids=["seeds", "seeds, twice", "seeds, repaired", "seeds, extended again", "axes"],
)
def test_an_extension_interrupted_anywhere_is_completed(
    stores, tmp_path, monkeypatch, before, more, computed, by
):
    """Whether the next one who comes computes, repairs or extends; no run is lost."""
    original, store, failures = stores(**before), tmp_path / "store", []
    whole = copied(original, tmp_path / "whole")
    bw.stored.extend(whole, **more)
    unchanged = contents(original)
    replaced = sum(unchanged.get(name) != data for name, data in contents(whole).items())
    bw.jobs.run(whole, progress=False)
    seen = studies.counted(monkeypatch)
    for count in range(1, replaced + 1):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(original, store)
        with interrupted_at(count, store):
            bw.stored.extend(store, **more)
        if count == 1:  # the root is the first
            assert_same(store, original)
            bw.stored.extend(store, **more)
        if by == "run, interrupted too" and 1 < count < replaced:
            with interrupted_at(1, store):
                bw.jobs.run(store, progress=False)
        seen.clear()
        try:
            if by == "extend":
                bw.stored.extend(store, **more)
            if by == "repair":
                assert bw.stored.repair(store)[1] == []
            bw.jobs.run(store, progress=False)
        except ValueError as error:
            failures.append((count, str(error)))
            continue
        assert len(seen) == computed
        assert_same(store, whole)
    assert failures == []


# One run again


def test_a_run_is_made_again_with_its_layers(stores):
    probe = ("loss", "gap", "singular_values")
    changes = {"seeds": 2, "network": {"depth": (1, 3)}, "probe": probe, "tau": (0.0, 0.1)}
    store = stores(**changes)
    again = bw.stored.rerun(store, depth=3, tau=0.1, seed=1)
    with xr.open_zarr(store, consolidated=False) as ds:
        stored = ds.load().isel(tau=[1], depth=[1], seed=[1])
    accuracy = by_precision(1e-12, 1e-5)
    for name in (*probe, "num_steps", "reason", "step", "tau", "seed", "depth"):
        assert again[name].dims == stored[name].dims
        assert np.allclose(again[name], stored[name], rtol=accuracy, atol=accuracy), name
    layers = [np.asarray(again[f"W_{j}"], float).squeeze() for j in (1, 2, 3)]
    assert [layer.shape for layer in layers] == 3 * [(3, 2, 2)]
    product = layers[2] @ layers[1] @ layers[0]
    values = np.linalg.svd(product, compute_uv=False)
    assert np.allclose(values, stored["singular_values"].squeeze(), rtol=accuracy, atol=accuracy)
    assert "W_4" not in again


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        ({"seed": 0}, r"tau must be given, of .*0.1"),
        ({"tau": 0.1}, r"seed must be given, of .*0.*1"),
        ({"tau": 0.05, "seed": 0}, r"tau must be one of .*0.*0.1; got 0.05"),
        ({"tau": 0.1, "seed": 2}, r"seed must be one of .*0.*1; got 2"),
        ({"tau": 0.1, "seed": "x"}, r"seed must be one of .*; got 'x'"),
        ({"tau": 0.1, "seed": None}, r"seed must be one of .*; got None"),
        ({"tau": 0.1, "seed": 0, "depth": 9}, "depth must be one of .*2; got 9"),
        (
            {"tau": 0.1, "seed": 0, "dynamics": "flow"},
            "dynamics must be one of descent; got",
        ),
        ({"tau": 0.1, "seed": 0, "width": 9}, "coordinates must be of dynamics, .*; got width"),
    ],
)
def test_a_run_that_is_not_there_is_refused(stores, as_installed, coordinates, message):
    """With the values that are there."""
    with pytest.raises(ValueError, match=message):
        bw.stored.rerun(stores(seeds=2, tau=(0.0, 0.1)), **coordinates)


@pytest.mark.parametrize(
    ("changes", "coordinate", "value"),
    [({"seeds": 100_002}, "seed", 100_001), ({"tau": (0.1, 0.1000005)}, "tau", 0.1000005)],
    ids=["seed", "tau"],
)
def test_a_run_is_not_taken_for_one_beside_it(tmp_path, changes, coordinate, value):
    store = studies.begun(small(**({"seeds": 1} | changes)), tmp_path / "store")
    again = bw.stored.rerun(store, **{coordinate: value})
    assert again[coordinate].values.tolist() == [np.asarray(value, again[coordinate].dtype)]
