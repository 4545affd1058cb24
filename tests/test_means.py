"""Barycenters through a store: those of the data at once, whatever interrupts them."""

import json

import covariance_oracles as oracles
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from covariance_oracles import factor
from helpers import assert_close
from studies import contents

import bwflow as bw
from bwflow import geometry
from bwflow.geometry import RESULTS, Factor

pytestmark = pytest.mark.once

N, M, RANK = 6, 2, 3
SIZES = (4, 4, 2)
START = Factor(factor(99, N, RANK))
SHORT = {"rank": RANK, "rtol": 1e-3, "progress": False}
PRECISE = {"rank": RANK, "rtol": 1e-11, "max_passes": 200, "progress": False}


def blocks_of(sizes=SIZES, seed=0):
    # Around one covariance, of which there is a mean.
    common = factor(seed + 50, N, M)
    draws = (common + 0.3 * factor(seed + i, N, M) for i in range(sum(sizes)))
    return np.split(np.stack([*draws]), np.cumsum(sizes)[:-1])


BLOCKS = blocks_of()
EVERYTHING = np.concatenate(BLOCKS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store of few passes, and what came of it."""
    path = tmp_path_factory.mktemp("means") / "store"
    return path, bw.means.barycenter(BLOCKS, path, **SHORT)


def at_once(factors, **options):
    options = {"rank": RANK, "rtol": 1e-11} | options
    return geometry.barycenter(Factor(factors), **options)


def assert_same_mean(found, expected, rtol):
    assert found.factor.shape == (N, RANK)
    S, T = (np.asarray(x.covariance, np.float64) for x in (found, expected))
    assert_close(S, T, rtol * np.linalg.norm(T))
    assert_close(found.objective, expected.objective, rtol * float(expected.objective))


@pytest.mark.parametrize("sizes", [(4, 4, 4), SIZES, (4,)], ids=str)
def test_the_mean_of_blocks_is_that_of_the_data_at_once(sizes, tmp_path):
    blocks = blocks_of(sizes)
    found = bw.means.barycenter(blocks, tmp_path / "store", start=START, **PRECISE)
    expected = at_once(np.concatenate(blocks), start=START)
    assert_same_mean(found, expected, 1e-8)
    assert found.num_steps == expected.num_steps
    assert found.result == RESULTS.successful


def test_the_mean_is_the_average_of_the_data_turned_towards_it(tmp_path):
    found = bw.means.barycenter(BLOCKS, tmp_path / "store", **PRECISE)
    F = np.asarray(found.factor)
    turned = [L @ oracles.rounded(oracles.polar(L.T @ F)) for L in EVERYTHING]
    assert_close(np.mean(turned, axis=0), F, 1e-10 * np.linalg.norm(F))
    distances = [oracles.squared_distance_of_factors(F, L) for L in EVERYTHING]
    assert_close(found.objective, float(sum(distances) / len(distances)), 1e-10)
    assert found.residual <= 1e-11 * np.linalg.norm(F)
    assert found.gap == np.inf
    assert found.mean is None


def test_an_array_of_blocks_is_a_list_of_blocks(tmp_path):
    blocks = blocks_of((4, 4, 4))
    one, other = (
        bw.means.barycenter(x, tmp_path / name, **SHORT)
        for name, x in (("list", blocks), ("array", np.stack(blocks)))
    )
    assert np.array_equal(one.factor, other.factor)
    assert contents(tmp_path / "list") == contents(tmp_path / "array")


class Interrupted(list):
    """A list that is interrupted when it is asked for the `k`-th time."""

    def __init__(self, blocks, k):
        super().__init__(blocks)
        self.left = k

    def __getitem__(self, i):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def until_done(path, accesses):
    """Calls that are interrupted at an access each, until one is not; how often that was."""
    for count, k in enumerate(accesses):
        try:
            return count, bw.means.barycenter(Interrupted(BLOCKS, k), path, **SHORT)
        except KeyboardInterrupt:
            pass
    raise AssertionError("not done")


# Every call looks at the first and the last block before it computes.
PATTERNS = {
    "after every block": [4] * 100,
    "before and after every block": [1, 2, 3] * 2 + [3, 4] * 100,
    "after every other block": [5] * 100,
    "within every pass": [7] * 100,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(pattern, finished, tmp_path):
    path, expected = finished
    count, found = until_done(tmp_path / "store", PATTERNS[pattern])
    assert count >= (int(expected.num_steps) * len(BLOCKS) - 1) // (max(PATTERNS[pattern]) - 3)
    assert np.array_equal(found.factor, expected.factor)
    assert found.objective == expected.objective
    assert contents(tmp_path / "store") == contents(path)
    assert [x.name for x in tmp_path.iterdir()] == ["store"]


def test_a_finished_mean_is_read_and_nothing_is_computed_again(finished):
    path, expected = finished
    before = contents(path)
    seen = Interrupted(BLOCKS, 100)
    found = bw.means.barycenter(seen, path, **SHORT)
    assert seen.left == 98
    assert np.array_equal(found.factor, expected.factor)
    assert contents(path) == before


def other_first():
    return [2 * BLOCKS[0], *BLOCKS[1:]]


OTHERS = {
    "data at the beginning": (other_first(), {}, "data"),
    "data at the end": ([*BLOCKS[:-1], -BLOCKS[-1]], {}, "data"),
    "fewer blocks": (BLOCKS[:-1], {}, "blocks, data"),
    "smaller blocks": (blocks_of((3, 3)), {}, "blocks, shape, data"),
    "precision": ([x.astype(np.float32) for x in BLOCKS], {}, "dtype, data"),
    "rank": (BLOCKS, {"rank": 2}, "rank"),
    "memory": (BLOCKS, {"memory": 3}, "memory"),
    "start": (BLOCKS, {"start": START}, "start"),
    "passes": (BLOCKS, {"max_passes": 99}, "max_passes"),
    "rank and memory": (BLOCKS, {"rank": 2, "memory": 0}, "rank, memory"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_store_of_another_mean_is_refused_and_kept(case, finished):
    path, _ = finished
    blocks, options, keys = OTHERS[case]
    before = contents(path)
    with pytest.raises(ValueError, match=rf"store .* is of another mean: {keys} differ"):
        bw.means.barycenter(blocks, path, **(SHORT | options))
    assert contents(path) == before


def test_a_store_of_something_else_is_refused_and_kept(tmp_path):
    bw.store.write(xr.Dataset({"x": ("seed", [1.0, 2.0])}), tmp_path / "store")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="is of another mean: kind"):
        bw.means.barycenter(BLOCKS, tmp_path / "store", **SHORT)
    assert contents(tmp_path) == before


def spoilt(i, block):
    return [block if j == i else x for j, x in enumerate(BLOCKS)]


NAN = np.where(np.arange(M) == 1, np.nan, BLOCKS[0])
BAD = {
    "no blocks": ([], {}, "blocks must have a length and items, one at least"),
    "a number": (3, {}, "blocks must have a length and items, one at least"),
    "vectors": ([np.ones((4, 6))], {}, r"blocks\[0\] must .*got shape \(4, 6\)"),
    "integers": ([np.ones((4, 6, 2), int)], {}, r"blocks\[0\]"),
    "empty": ([np.ones((0, 6, 2))], {}, r"blocks\[0\] must be finite and not empty"),
    "NaN": (spoilt(0, NAN), {}, r"blocks\[0\] must be .*finite"),
    "NaN at the end": (spoilt(2, NAN[:2]), {}, r"blocks\[2\] must be .*finite"),
    "a larger block": (
        spoilt(2, np.ones((5, N, M))),
        {},
        r"blocks\[2\] must be at most 4 factors of 6 x 2, .*got shape \(5, 6, 2\)",
    ),
    "other columns": (spoilt(2, np.ones((4, N, 3))), {}, r"blocks\[2\] must be .*\(4, 6, 3\)"),
    "rank": (BLOCKS, {"rank": 7}, "rank must be at most 6; got 7"),
    "rank 0": (BLOCKS, {"rank": 0}, "rank must be a positive integer; got 0"),
    "passes": (BLOCKS, {"max_passes": 0}, "max_passes must be a positive integer; got 0"),
    "memory": (BLOCKS, {"memory": -1}, "memory must be an integer of at least 0; got -1"),
    "rtol": (BLOCKS, {"rtol": -1.0}, "rtol must be at least 0"),
    "start": (BLOCKS, {"start": Factor(np.ones((6, 2)))}, r"start must be 6 x 3; got .*\(6, 2\)"),
    "matrix as start": (BLOCKS, {"start": np.eye(6)}, "start must be a bwflow.geometry.Factor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_written(case, tmp_path, as_installed):
    blocks, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        bw.means.barycenter(blocks, tmp_path / "store", **(SHORT | options))
    assert [*tmp_path.iterdir()] == []


def test_a_block_that_turns_out_bad_is_named_and_can_be_mended(finished, tmp_path):
    path = tmp_path / "store"
    with pytest.raises(ValueError, match=r"blocks\[1\] must be .*finite"):
        bw.means.barycenter(spoilt(1, NAN), path, **SHORT)
    bw.means.barycenter(BLOCKS, path, **SHORT)
    assert contents(path) == contents(finished[0])


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_store_is_refused_and_kept(kind, tmp_path):
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("chapter one")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("chapter one")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="precious is not a Zarr store and is not replaced"):
        bw.means.barycenter(BLOCKS, path, **SHORT)
    assert contents(tmp_path) == before


def test_too_few_passes_are_told(tmp_path):
    options = PRECISE | {"max_passes": 3}
    found = bw.means.barycenter(BLOCKS, tmp_path / "store", throw=False, **options)
    assert found.result == RESULTS.max_steps_reached
    assert found.num_steps == 3
    assert np.all(np.isfinite(found.factor))
    with pytest.raises(RuntimeError, match="maximum number of steps"):
        bw.means.barycenter(BLOCKS, tmp_path / "store", **options)


def test_blocks_in_single_precision_stay_so(tmp_path):
    blocks = [x.astype(np.float32) for x in BLOCKS]
    options = {"rank": RANK, "progress": False, "start": START}
    found = bw.means.barycenter(blocks, tmp_path / "store", **options)
    for x in (found.factor, found.objective, found.residual):
        assert x.dtype == jnp.float32
    with xr.open_zarr(tmp_path / "store", consolidated=False) as ds:
        assert ds["average"].dtype == ds["objective"].dtype == np.float32
        assert json.loads(ds.attrs["means"])["dtype"] == "float32"
    assert_same_mean(found, at_once(EVERYTHING, start=START), 1e-4)
