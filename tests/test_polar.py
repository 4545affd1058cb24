"""Ways to a polar factor: each against an oracle, and what each compiles to."""

import re
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import (
    EPS,
    GOLDEN,
    array,
    assert_close,
    by_precision,
    first,
    golden_target,
    random_target,
)

import bwflow as bw
from bwflow import _polar, linalg

METHODS = get_args(linalg.Method)
GAUSSIAN = np.random.default_rng(0).normal(size=(8, 3, 3))


def conditioned(n, q, least, seed=0):
    """A matrix with singular values from 1 down to `least`, in the precision of the run."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.normal(size=(size, n)))[0] for size in (n, q))
    return jnp.asarray((U * np.geomspace(1.0, least, n)) @ V.T, dtype=float)


def exact_polar(Y):
    """`(Y Y^T)^{-1/2} Y` in 60 digits."""
    with mpmath.workdps(60):
        Y = mpmath.matrix(np.asarray(Y, np.float64).tolist())
        values, Q = mpmath.eigsy(Y * Y.T)
        inverse = Q * mpmath.diag([1 / mpmath.sqrt(x) for x in values]) * Q.T
        return np.array((inverse * Y).tolist(), dtype=float)


@pytest.mark.parametrize("method", ["auto", "svd", "newton_schulz"])
@pytest.mark.parametrize("least", [0.5, 1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("shape", [(6, 6), (6, 11), (11, 6)])
def test_polar_factors_are_as_good_as_their_condition_allows(shape, least, method):
    if least < 1e-3 and jax.dtypes.canonicalize_dtype(float) == np.float32:
        pytest.skip("rounding has changed the small singular values by then")
    Y = conditioned(6, max(shape), least)
    s = np.linalg.svd(np.asarray(Y), compute_uv=False)
    P = np.asarray(linalg.polar(Y if shape[1] >= shape[0] else Y.T, method=method), np.float64)
    P, Y64 = (P if shape[1] >= shape[0] else P.T), np.asarray(Y, np.float64)
    # Only sums of singular values are divided by, unless there is a null space beside the range.
    spread = s[-1] + (s[-2] if shape[0] == shape[1] else 0.0)
    assert np.linalg.norm(P - exact_polar(Y), 2) <= 10 * EPS / spread
    assert np.linalg.norm(P @ P.T - np.eye(6), 2) <= by_precision(1e-13, 1e-5)
    assert np.linalg.norm(P @ Y64.T - Y64 @ P.T, 2) <= by_precision(1e-13, 1e-5)


@pytest.mark.parametrize("n", [1, 2, 20, 64])
@pytest.mark.parametrize("least", [1.0, 1e-4, 1e-8])
def test_products_alone_give_isometries_down_to_the_documented_singular_value(n, least):
    for Y in (conditioned(n, n, least), conditioned(n, 2 * n, least)):
        P = np.asarray(linalg.polar(7.5 * Y, method="newton_schulz"), np.float64)
        Y64 = np.asarray(Y, np.float64)
        assert np.linalg.norm(P @ P.T - np.eye(n), 2) <= by_precision(1e-13, 1e-5)
        assert np.linalg.norm(P @ Y64.T - Y64 @ P.T, 2) <= by_precision(1e-13, 1e-5)


def mapped(polynomial, x):
    return polynomial[0] * x + polynomial[1] * x**3 + polynomial[2] * x**5


def test_polynomials_map_as_their_comment_says():
    expand, *three, newton_schulz = _polar.POLYNOMIALS
    x = np.linspace(0, 1, 200_001)
    assert np.max(mapped(expand, x)) < 0.9901
    assert np.min(mapped(expand, x)[x > 0.05]) > 0.197
    assert np.all(mapped(expand, x) >= np.minimum(3.99 * x, 0.09))
    for polynomial, start, end in zip(three[:2], (0.09, 0.3434), (0.3434, 0.8526), strict=True):
        assert np.all(mapped(polynomial, x[x >= start]) >= end)
        assert np.max(mapped(polynomial, x)) < 1 + 1e-6
    assert np.max(np.abs(mapped(three[2], x[x >= 0.8526]) - 1)) < 3.4e-4
    # At 1 it is flat, with a third derivative as its first: cubic convergence.
    h = 1e-3
    assert abs(mapped(newton_schulz, 1 + h) - 1) < 3 * h**3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_polar_does_not_depend_on_scale(method, factor):
    Y = conditioned(4, 6, 0.1)
    expected = linalg.polar(Y, method=method)
    assert_close(linalg.polar(factor * Y, method=method), expected, 200 * EPS)


@pytest.mark.parametrize("method", ["auto", "gram"])
def test_rank_deficient_matrices_of_a_batch_leave_the_others_as_they_are(method):
    way = jax.vmap(partial(linalg.polar, method=method))
    deficient = array(GAUSSIAN).at[2].set(0.0).at[5, :, 1].set(0.0).at[6].set(jnp.nan)
    alone, together = way(array(GAUSSIAN)), way(deficient)
    others = np.array([0, 1, 3, 4, 7])
    np.testing.assert_array_equal(together[others], alone[others])
    assert_close(together[2], np.zeros((3, 3)), 0.0)
    s = jnp.linalg.svd(together[5], compute_uv=False)
    assert_close(s, [1.0, 1.0, 0.0], by_precision(1e-13, 1e-5))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", first(6, GOLDEN["static"]), ids=lambda case: case["id"])
def test_golden_gradients_by_every_method(case, method):
    if case["grad_end_to_end"] is None:
        pytest.skip("not differentiable there")
    target = golden_target(case)
    W = bw.end_to_end(tuple(array(layer) for layer in case["W"]))
    smoothing = np.sqrt(case["tau"]) * np.diag(np.sqrt(target.eigenvalues))
    Y = np.concatenate([np.asarray(target.factor.T @ W), smoothing], axis=1)
    s = np.linalg.svd(Y, compute_uv=False)[: W.shape[1] if case["tau"] == 0 else None]
    if method == "newton_schulz" and s[-1] < _polar.RESOLVED * s[0]:
        pytest.skip("below what products alone resolve")
    loss = partial(bw.smoothed_bures, target=target, method=method)
    gradient = jax.grad(lambda W: loss(W, tau=case["tau"]))(W)
    by_traced = jax.jit(jax.grad(lambda W, tau: loss(W, tau=tau)))(W, array(case["tau"]))
    scale = float(jnp.linalg.norm(W) + jnp.linalg.norm(target.factor))
    tolerance = by_precision(1e-13, 5e-6) * scale
    if method == "gram":
        # What is lost is documented: the square of the condition.
        tolerance += 4 * EPS * min(s[0] / s[-1], EPS**-0.25) ** 2 * scale
    assert_close(gradient, array(case["grad_end_to_end"]), tolerance)
    assert_close(by_traced, array(case["grad_end_to_end"]), tolerance)


def gradient_program(method, tau, platform, n=5):
    loss = bw.losses.BuresWasserstein(random_target(0, n), tau, method=method)

    def gradients(layers):
        return jax.grad(lambda layers: loss(bw.end_to_end(layers)))(layers)

    layers = (jnp.ones((8, n, n)),) * 3
    return jax.jit(jax.vmap(gradients)).trace(layers).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_products_alone_lower_to_products_alone(tau, platform):
    if platform == "tpu" and jax.config.jax_enable_x64:
        pytest.skip("TPUs compute in float32")
    text = gradient_program("newton_schulz", tau, platform).as_text()
    for absent in ("custom_call", "cholesky", "triangular_solve", "callback", "while"):
        assert absent not in text
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert all(re.search(r"tensor<8x", line) for line in products)


@pytest.mark.parametrize("shape", [(16, 16), (16, 48)])
def test_products_alone_are_as_many_as_documented(shape):
    compiled = jax.jit(partial(linalg.polar, method="newton_schulz")).lower(jnp.ones(shape))
    analysis = compiled.compile().cost_analysis()
    flops = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    n, q = shape
    square, wide = 18, 34
    assert compiled.as_text().count("stablehlo.dot_general") == square + wide
    assert 1.0 <= flops / (2 * n**2 * (square * n + wide * q)) < 1.2


@pytest.mark.parametrize("method", ["fast", None, 1])
def test_an_unknown_method_is_refused(method, as_installed):
    for door in (
        lambda: linalg.polar(jnp.eye(2), method=method),
        lambda: bw.smoothed_bures(jnp.eye(2), bw.Target(jnp.eye(2)), tau=0.1, method=method),
        lambda: bw.losses.BuresWasserstein(bw.Target(jnp.eye(2)), 0.1, method=method),
    ):
        with pytest.raises(ValueError, match="method must be one of auto, svd, gram, newton_sch"):
            door()
