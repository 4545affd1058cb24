"""The Frobenius loss, the loss modules, and Hessians at the critical points of both losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    EPS,
    GOLDEN,
    array,
    assert_close,
    by_precision,
    cases,
    gaussian_factors,
    golden_target,
    random_target,
)

import bwflow as bw

CRITICAL = [case for case in GOLDEN["static"] if "hessian_eigenvalues" in case]


@pytest.mark.parametrize("case", **cases("static"))
def test_golden_frobenius_loss_and_layer_gradients(case):
    target = golden_target(case)
    factors = tuple(array(W) for W in case["W"])
    loss = lambda factors: bw.frobenius(bw.end_to_end(factors), target)
    W = bw.end_to_end(factors)
    # The residual is known to the rounding of its two terms; the loss is quadratic in it.
    rounding = 20 * EPS * float(jnp.linalg.norm(W) ** 2 + jnp.linalg.norm(target.factor) ** 2)
    expected = float(case["fro_loss"])
    assert_close(loss(factors), expected, 2 * np.sqrt(expected) * rounding + rounding**2)
    reach = max(1.0, *(float(jnp.linalg.norm(W, 2)) for W in factors)) ** (2 * len(factors) - 1)
    for gradient, row in zip(jax.grad(loss)(factors), case["fro_grad_W"], strict=True):
        assert_close(gradient, array(row), 4 * rounding * reach)


@pytest.mark.float64
@pytest.mark.parametrize("case", CRITICAL, ids=[case["id"] for case in CRITICAL])
def test_golden_hessian_spectrum_and_morse_index_at_critical_points(case):
    target, W = golden_target(case), array(case["W"][0])
    loss = lambda w: bw.smoothed_bures(w.reshape(W.shape), target, tau=case["tau"])
    values = np.linalg.eigvalsh(jax.hessian(loss)(W.ravel()))
    assert_close(values, np.sort(array(case["hessian_eigenvalues"])), 1e-11)
    assert np.sum(values < -1e-9) == case["morse_index"]
    assert_close(loss(W.ravel()), float(case["critical_value"]), 1e-13)


@pytest.mark.parametrize("kind", ["BuresWasserstein", "Frobenius"])
def test_module_is_the_function_bound_to_its_target(kind):
    plain = {"BuresWasserstein": bw.smoothed_bures, "Frobenius": bw.frobenius}[kind]
    target, W = random_target(0, 3), gaussian_factors(0, (2, 3))[0]
    loss = getattr(bw.losses, kind)(target, 0.05)
    assert_close(loss(W), plain(W, target, tau=0.05), 0.0)
    slope = jax.grad(lambda loss: loss(W))(loss).tau
    assert_close(
        slope, jax.grad(lambda tau: plain(W, target, tau=tau))(0.05), by_precision(1e-14, 1e-5)
    )
    assert loss.convex


@pytest.mark.parametrize("kind", ["BuresWasserstein", "Frobenius"])
def test_minimum_is_the_loss_of_the_minimizer(kind):
    target = random_target(0, 4)
    loss = getattr(bw.losses, kind)(target, 0.15)
    values = bw.landscape.minimizing_eigenvalues(target, 2, tau=0.15)
    W = target.eigenvectors * jnp.sqrt(values)[None, :]
    assert_close(loss(W), loss.minimum(2), by_precision(1e-14, 1e-6))
