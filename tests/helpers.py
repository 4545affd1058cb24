"""What several test files need: the golden cases, tolerances, random inputs."""

import json
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bwflow as bw

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
X64 = bool(jax.config.jax_enable_x64)
EPS = float(jnp.finfo(jnp.ones(()).dtype).eps)


def array(nested):
    """A golden entry (numbers or decimal strings) in the precision of the run."""
    return jnp.asarray(np.array(nested, dtype=np.float64), dtype=float)


def golden_target(case):
    """The target of a golden case, from its factor where there is one."""
    if case["B"] is None:
        return bw.Target(array(case["Sigma0"]))
    return bw.Target.from_factor(array(case["B"]))


def cases(kind):
    """Golden cases of a kind, as pytest parameters with their names."""
    return {"argvalues": GOLDEN[kind], "ids": [case["id"] for case in GOLDEN[kind]]}


def first(count, cases):
    """Cases as pytest parameters; those after the first `count` run with the slow tests."""
    cases = list(cases)
    return [*cases[:count], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[count:])]


def by_precision(float64, float32):
    """A tolerance for each of the two precisions."""
    return float64 if X64 else float32


def gaussian_factors(seed, widths, scale=None):
    """Independent Gaussian layers with standard deviation `scale`, by default fan-in ** -0.5."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(b, a)) * (a**-0.5 if scale is None else scale), dtype=float)
        for a, b in pairwise(widths)
    )


def random_target(seed, n, *, condition=10.0):
    """A dense target with eigenvalues from 1 down to 1 / condition."""
    return bw.covariances.from_spectrum(
        bw.covariances.geometric(n, condition), key=jax.random.key(seed)
    )


def assert_close(actual, expected, atol):
    """Largest absolute difference at most `atol`, and nothing non-finite."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.all(np.isfinite(actual)), actual
    error = np.max(np.abs(actual - expected), initial=0.0)
    assert error <= atol, f"error {error:.3g} > {atol:.3g}"
