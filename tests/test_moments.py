"""Samples in blocks against numpy on all of them at once, and what is refused of blocks."""

import pickle
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, by_precision

import bwflow as bw
from bwflow.covariances import Moments

DTYPE = np.dtype(jnp.result_type(float))
# A mean of so many standard deviations: of single numbers, not much is left of the samples then.
FAR = by_precision(1e6, 1e2)


def samples(seed, count, n, rank=None, mean=FAR):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n if rank is None else rank, n))
    X = rng.normal(size=(count, len(A))) @ A / len(A) ** 0.5 + mean * rng.normal(size=n)
    return X.astype(DTYPE)


def blocks(X, size):
    return [X[i : i + size] for i in range(0, len(X), size)]


def two_pass(X, ddof=0):
    return np.cov(X.astype(np.float64), rowvar=False, ddof=ddof)


def assert_covariance(target, expected):
    scale = np.abs(expected).max()
    assert_close(target.covariance / scale, expected / scale, by_precision(1e-14, 1e-6))


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("size", [1, 7, 400], ids="blocks of {}".format)
@pytest.mark.parametrize("shape", [(400, 5), (40, 60), (3, 5)], ids=str)
def test_target_of_blocks_far_from_zero_is_the_covariance_by_numpy(shape, size, ddof):
    """Many samples and few, in blocks of any size, which are taken once."""
    X = samples(0, *shape)
    target = bw.Target.from_samples(iter(blocks(X, size)), ddof=ddof)
    assert target.factor.dtype == DTYPE
    assert target.rank == min(shape[0] - 1, shape[1])
    assert_covariance(target, two_pass(X, ddof))


def test_neither_the_order_of_blocks_nor_that_of_merging_matters():
    X = samples(1, 600, 6)
    parts = [Moments(block) for block in blocks(X, 37)]
    pairs = [a.merge(b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
    if len(parts) % 2:
        pairs.append(parts[-1])
    expected = two_pass(X)
    for moments in (
        reduce(Moments.merge, parts),
        reduce(Moments.merge, parts[::-1]),
        reduce(Moments.merge, pairs),
        reduce(Moments.merge, pickle.loads(pickle.dumps(parts))),
        reduce(Moments.update, blocks(X, 50)[1:], Moments(X[:50])),
    ):
        assert moments.count == 600
        assert_close(moments.mean / FAR, X.astype(np.float64).mean(axis=0) / FAR, 1e-15 * 40)
        assert_covariance(bw.Target.from_samples(moments), expected)


def test_moments_are_not_changed_by_what_is_made_of_them():
    X = samples(2, 300, 4)
    first = Moments(X[:200])
    before = np.asarray(first.factor())
    first.update(X[200:]).merge(first)
    assert first.count == 200
    assert_close(first.factor(), before, 0.0)


@pytest.mark.float64
def test_rows_that_are_held_stay_about_twice_the_rank():
    """Of 2000 samples of rank 3 in dimension 1500, nothing near `n x n`."""
    X = samples(3, 2000, 1500, rank=3, mean=0.0)
    moments, held = Moments(X[:20]), []
    for block in blocks(X[20:], 20):
        moments = moments.update(block)
        held.append(sum(part.size for part in moments._parts))
    assert max(held) <= (2 * 128 + 21) * 1500
    assert bw.Target.from_samples(moments).rank == 3
    assert_covariance(bw.Target.from_samples(moments), two_pass(X))


@pytest.mark.float64
def test_samples_of_single_numbers_are_summed_in_double_precision():
    X = samples(4, 300, 5, mean=1e3).astype(np.float32)
    target = bw.Target.from_samples(iter(blocks(X, 10)))
    expected = two_pass(X)
    assert target.factor.dtype == jnp.float32
    assert_close(target.covariance, expected, 5e-7 * np.abs(expected).max())


def test_columns_that_do_not_vary_have_no_variance():
    """Also where the mean of equal numbers is not that number after rounding."""
    X = samples(5, 100, 3)
    X[:, 1] = 0.1
    S = bw.Target.from_samples(iter(blocks(X, 9)), rank=2).covariance
    assert_close(S[1] / S[0, 0], np.zeros(3), 0.0)


@pytest.mark.once
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (lambda: iter(()), "X must hold at least one block of samples; got none"),
        ([], "X must hold at least one block of samples; got none"),
        ([np.eye(2), np.ones((3, 3))], "must have one width and one dtype; got 2 columns of .* 3 "),
        ([np.eye(2), np.eye(2, dtype=np.float32)], "one dtype; got 2 columns of float64 and 2 of"),
        ([np.eye(2), np.full((1, 2), np.nan)], "block 1 of X must be finite; it holds NaN"),
        ([np.eye(2), np.zeros((0, 2))], r"block 1 of X must not be empty; got shape \(0, 2\)"),
        ([np.eye(2), np.ones(2)], r"block 1 of X must have 2 dimensions; got shape \(2,\)"),
        ([np.eye(2), "eye"], "block 1 of X must be made of numbers; got 'eye'"),
        (lambda: iter(["eye"]), "block 0 of X must be made of numbers; got 'eye'"),
        ([np.eye(2, dtype=int)], "block 0 of X must be real floating point"),
        (lambda: iter([np.ones((3, 2)), np.ones((2, 2))]), "X must hold samples that differ"),
        ({"a": np.eye(2)}, "X must be made of numbers"),
    ],
)
def test_bad_blocks_are_refused_by_name(X, message, as_installed):
    with pytest.raises(ValueError, match=message):
        bw.Target.from_samples(X() if callable(X) else X)


@pytest.mark.once
def test_too_few_samples_and_what_is_no_moments_are_refused(as_installed):
    moments = Moments(np.eye(2))
    with pytest.raises(ValueError, match=r"X must hold more than ddof=2 samples .* got 2"):
        bw.Target.from_samples(moments, ddof=2)
    with pytest.raises(ValueError, match=r"ddof must be an integer of at least 0; got 0.5"):
        moments.factor(ddof=0.5)
    with pytest.raises(ValueError, match=r"other must be bwflow.covariances.Moments; got 3"):
        moments.merge(3)
    with pytest.raises(ValueError, match="X must not be traced"):
        jax.jit(lambda X: Moments(X).factor())(jnp.eye(2))
