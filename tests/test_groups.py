"""Groups of runs that advance together: labels, bits, and the steps that runs waited."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import studies
from helpers import by_precision, random_target
from studies import assert_same, small

import bwflow as bw
from bwflow._process import in_precision

TARGET = random_target(0, 3)
GRID = {"tau": np.array([0.1, 0.0, 0.02]), "scale": np.array([1.0, 0.2]), "seed": np.arange(5)}
CHUNK, GROUP = 12, 5  # 12, 12 and 6 runs: the last group of a chunk is padded, the very last absent
ROUNDING = by_precision(1e-10, 1e-4)


def descent(*, depth, tau, scale, seed):
    start = bw.initializers.gaussian(scale)(jax.random.key(seed), (3,) * (depth + 1))
    return bw.gradient_descent(
        bw.losses.Frobenius(TARGET, tau),
        start,
        optax.sgd(0.05),
        num_steps=60,
        save_every=20,
        until=bw.until.gap(1e-2),
        throw=False,
    )


def scrambled(tau, scale, seed):
    """An order far from that of the grid, with ties."""
    flags = (3 * (scale < 1).astype(seed.dtype), 5 * (tau > 0.01).astype(seed.dtype))
    return (7 * seed + sum(flags)) % 4, -tau


def swept(**options):
    return bw.sweep(descent, static={"depth": (1, 2)}, traced=GRID, progress=False, **options)


@pytest.fixture(scope="module")
def grouped():
    return swept(
        batch_size=CHUNK,
        group_size=GROUP,
        difficulty=lambda *, depth, tau, scale, seed: scrambled(tau, scale, seed),
    )


@pytest.fixture(scope="module")
def alone():
    return swept(batch_size=1)


def groups_by_hand():
    """The group of every run of the flattened grid, counted over all chunks."""
    points = list(itertools.product(*GRID.values()))
    group = np.zeros(len(points), int)
    for first in range(0, len(points), CHUNK):
        runs = range(first, min(first + CHUNK, len(points)))
        ordered = sorted(runs, key=lambda run: scrambled(*points[run]))  # stable
        for place, run in enumerate(ordered):
            group[run] = place // GROUP
    return group


def wasted_by_hand(steps, chunk, size):
    """Over pairs of chunk and group, or chunks: their size times their most steps."""
    total = 0
    for one in set(chunk):
        total += size * max(s for s, other in zip(steps, chunk, strict=True) if other == one)
    return 1 - sum(steps) / total


def test_runs_of_groups_are_those_of_runs_alone(grouped, alone):
    """At their own labels."""
    assert {*grouped.data_vars} - {*alone.data_vars} == {"group"}
    assert grouped["loss"].dims == alone["loss"].dims
    for name in ("num_steps", "hit", "reason", "success", "num_accepted", "num_rejected"):
        np.testing.assert_array_equal(grouped[name], alone[name])
    for name in ("loss", "gap", "gradient_norm"):
        np.testing.assert_allclose(grouped[name], alone[name], rtol=ROUNDING, atol=ROUNDING)
    assert len(np.unique(alone["num_steps"])) > 10


def test_groups_are_in_the_order_of_difficulty(grouped):
    for depth in (1, 2):
        found = grouped["group"].sel(depth=depth).values.ravel()
        np.testing.assert_array_equal(found, groups_by_hand())


def test_waste_of_groups_is_that_counted_by_hand(grouped):
    found = bw.statistics.lockstep(grouped)
    chunk = list(zip(np.arange(30) // CHUNK, groups_by_hand(), strict=True))
    assert found["wasted"].dims == ("depth",)
    for depth in (1, 2):
        steps = grouped["num_steps"].sel(depth=depth).values.ravel().tolist()
        np.testing.assert_allclose(
            found["wasted"].sel(depth=depth), wasted_by_hand(steps, chunk, GROUP), rtol=1e-12
        )
        assert found["steps"].sel(depth=depth) == sum(steps)


@pytest.mark.parametrize("size", [1, 7, None])
def test_waste_of_chunks_is_that_counted_by_hand(alone, size):
    ds = alone if size == 1 else swept(batch_size=size)
    size = size or 30
    found = bw.statistics.lockstep(ds)
    for depth in (1, 2):
        steps = alone["num_steps"].sel(depth=depth).values.ravel().tolist()
        expected = wasted_by_hand(steps, list(np.arange(30) // size), size)
        np.testing.assert_allclose(found["wasted"].sel(depth=depth), expected, atol=1e-12)


def test_order_of_dimensions_does_not_matter_and_parts_are_refused(grouped):
    turned = grouped.transpose("seed", "save", "scale", "depth", "tau")
    np.testing.assert_array_equal(
        bw.statistics.lockstep(turned)["wasted"], bw.statistics.lockstep(grouped)["wasted"]
    )
    with pytest.raises(ValueError, match="ds must be a whole sweep, with 5 values of seed; got 2"):
        bw.statistics.lockstep(grouped.isel(seed=slice(2)))
    with pytest.raises(ValueError, match="with 3 values of tau; got one"):
        bw.statistics.lockstep(grouped.isel(tau=0))
    with pytest.raises(ValueError, match="it lacks the attribute 'lockstep'"):
        bw.statistics.lockstep(grouped.drop_attrs())
    with pytest.raises(ValueError, match="it lacks num_steps"):
        bw.statistics.lockstep(grouped[["loss"]])


def at_rates(rates, **options):
    """Descents of which those with too large a rate diverge, in groups of two."""

    def run(*, rate):
        return bw.gradient_descent(
            bw.losses.Frobenius(TARGET, 0.1),
            (jnp.eye(3),) * 2,
            optax.sgd(rate),
            num_steps=30,
            save_every=10,
            until=bw.until.gap(1e-3),
            throw=False,
        )

    return bw.sweep(run, traced={"rate": np.asarray(rates)}, progress=False, **options)


def test_a_run_that_fails_changes_no_bit_of_any_group():
    order = {"group_size": 2, "difficulty": lambda *, rate: -rate}
    sound = at_rates([0.1, 0.01, 0.05, 0.02, 0.03], **order)
    failing = at_rates([0.1, 0.01, 1e30, 0.02, 0.03], **order)
    assert failing["success"].values.tolist() == [True, True, False, True, True]
    for name, place in itertools.product(("loss", "gap", "hit", "num_steps"), (0, 1, 3, 4)):
        old, new = (ds[name][place].values.tobytes() for ds in (sound, failing))
        assert old == new, name
    # 1e30 comes first, so every pair but the last run is another than before.
    assert sound["group"].values.tolist() == [0, 2, 0, 1, 1]
    assert failing["group"].values.tolist() == [0, 2, 0, 1, 1]


@pytest.mark.slow
def test_flows_in_groups_are_those_of_runs_alone():
    def run(*, tau, seed):
        return bw.gradient_flow(
            bw.losses.Frobenius(TARGET, tau),
            bw.initializers.gaussian(0.5)(jax.random.key(seed), (3, 3)),
            times=jnp.asarray([0.0, 0.2, 0.4]),
            rtol=1e-3,
            atol=1e-6,
            until=bw.until.gap(0.05),
            throw=False,
        )

    axes = {"tau": GRID["tau"], "seed": GRID["seed"]}
    single = bw.sweep(run, traced=axes, batch_size=1, progress=False)
    groups = bw.sweep(
        run, traced=axes, group_size=4, difficulty=lambda *, tau, seed: -seed, progress=False
    )
    assert np.isfinite(single["hit"]).any()
    assert np.isinf(single["hit"]).any()
    np.testing.assert_array_equal(single["num_steps"], groups["num_steps"])
    for name in ("loss", "gap", "hit"):
        np.testing.assert_allclose(single[name], groups[name], rtol=by_precision(1e-8, 2e-3))
    assert groups["group"].values.max() == 3


@pytest.mark.parametrize(
    ("difficulty", "message"),
    [
        (lambda *, rate: "hard", "difficulty must be made of numbers; got 'hard'"),
        (lambda *, rate: jnp.ones(2), "difficulty must return a real number, or a tuple of them"),
        (lambda *, rate: (rate, 1j), "difficulty must return a real number, or a tuple of them"),
        (lambda *, seed: seed, "difficulty must .* the keywords rate"),
    ],
)
def test_a_difficulty_must_be_numbers_of_the_axes(difficulty, message):
    with pytest.raises(ValueError, match=message):
        at_rates([0.1], group_size=1, difficulty=difficulty)


def test_a_difficulty_needs_groups():
    with pytest.raises(ValueError, match="group_size must be given with a difficulty"):
        at_rates([0.1], difficulty=lambda *, rate: rate)


# Studies

SPEC = small(
    target={"n": 3},
    tau=(0.1, 0.0),
    seeds=7,
    batch_size=5,
    group_size=2,
    tolerance=0.01,
    descent={"num_steps": 60},
)
"""Of each smoothing five seeds, in groups of 2, 2 and 1, and two, in one group."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return studies.finished(SPEC, tmp_path_factory.mktemp("groups") / "store")


def test_a_study_is_grouped_by_the_least_singular_value_of_the_start(store):
    init = bw.initializers.balanced()
    with in_precision(studies.PRECISION):
        starts = [init(jax.random.key(seed), (3, 3, 3), studies.PRECISION) for seed in range(7)]
        least = [np.linalg.svd(np.asarray(V @ W), compute_uv=False)[-1] for W, V in starts]
    expected = np.zeros(7, int)
    for seeds in (range(5), range(5, 7)):
        for place, seed in enumerate(sorted(seeds, key=lambda seed: -least[seed])):
            expected[seed] = place // 2
    found = studies.arrays(store)["group"].squeeze()
    np.testing.assert_array_equal(found, [expected, expected])


def test_smoothings_of_a_chunk_are_kept_apart_first(tmp_path):
    spec = small(target={"n": 3}, tau=(0.1, 0.0), seeds=4, batch_size=8, group_size=4)
    path = studies.finished(spec, tmp_path / "store")
    np.testing.assert_array_equal(studies.arrays(path)["group"].squeeze(), [[1] * 4, [0] * 4])


def test_a_store_that_was_interrupted_has_the_same_bytes(store, tmp_path):
    path = studies.begun(SPEC, tmp_path / "store")
    for part in (3, 2):
        bw.jobs.work(path, part=part, parts=4, progress=False)
    partly = bw.statistics.lockstep(path)
    assert 0 < partly["steps"] < bw.statistics.lockstep(store)["steps"]
    studies.compute(path)
    assert_same(path, store)


def test_a_study_in_memory_has_the_numbers_of_the_store(store):
    spec = small(target={"n": 3}, tau=(0.0,), seeds=7, batch_size=5, group_size=2)
    ds = bw.study.run(spec, progress=False)
    stored = bw.store.read(studies.finished(spec, store.parent / "one"))
    for name in ("loss", "gap", "hit", "num_steps", "group"):
        np.testing.assert_array_equal(ds[name], stored[name])
    found, expected = bw.statistics.lockstep(ds), bw.statistics.lockstep(stored)
    np.testing.assert_array_equal(found["lane_steps"], expected["lane_steps"])


def test_groups_are_told_apart_by_results_to_rounding_only(store, tmp_path):
    whole = bw.store.read(studies.finished(small(**vars_of(SPEC), group_size=0), tmp_path / "s"))
    groups = bw.store.read(store)
    assert "group" not in whole
    np.testing.assert_array_equal(whole["num_steps"], groups["num_steps"])
    np.testing.assert_allclose(whole["gap"], groups["gap"], rtol=ROUNDING, atol=ROUNDING)


def vars_of(spec):
    """What a spec says otherwise than the small one."""
    names = ("target", "tau", "seeds", "batch_size", "tolerance", "descent")
    return {name: getattr(spec, name) for name in names}


@pytest.mark.parametrize("group_size", [0, 2])
def test_waste_of_a_store_is_that_counted_by_hand(store, tmp_path, group_size):
    if not group_size:
        spec = small(**vars_of(SPEC), group_size=0)
        store = studies.finished(spec, tmp_path / "store")
    arrays = studies.arrays(store)
    steps = arrays["num_steps"].squeeze()
    group = arrays["group"].squeeze() if group_size else np.zeros_like(steps)
    units = np.arange(2)[:, None], (np.arange(7) // 5)[None]
    chunk = [*zip(*(np.broadcast_to(x, (2, 7)).ravel() for x in (*units, group)), strict=True)]
    expected = wasted_by_hand(steps.ravel().tolist(), chunk, group_size or 5)
    for ds in (store, bw.store.open(store)):
        np.testing.assert_allclose(bw.statistics.lockstep(ds)["wasted"].item(), expected)
    assert bw.progress.status(store).wasted == pytest.approx(expected)
    text = bw.progress.describe(bw.progress.status(store))
    assert f"{'waiting':10}{100 * expected:.0f} % of the steps" in text
    rows = bw.report.table(store).splitlines()
    assert rows[0].endswith("waiting")
    assert all(re.search(rf" {100 * expected:.0f}%$", row) for row in rows[2:4])


def test_nothing_is_known_of_a_store_without_results(tmp_path):
    path = studies.begun(SPEC, tmp_path / "store")
    assert np.isnan(bw.statistics.lockstep(path)["wasted"]).all()
    assert np.isnan(bw.progress.status(path).wasted)
    assert "waiting" not in bw.progress.describe(bw.progress.status(path))


def test_a_store_whose_steps_are_damaged_is_said_to_be(store, tmp_path):
    path = studies.copied(store, tmp_path)
    studies.damage(next(x for x in (path / "num_steps" / "c").rglob("*") if x.is_file()), "flip")
    with pytest.raises(bw.store.DamagedStoreError):
        bw.statistics.lockstep(path)
