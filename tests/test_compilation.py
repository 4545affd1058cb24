"""How often programs are traced, what they hold, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gaussian_factors, random_target
from jax.tree_util import Partial

import bwflow as bw

TARGET = random_target(0, 3)
FACTORS = gaussian_factors(0, (3, 3, 3))
SGD = optax.sgd(0.01)


def counted_loss(calls):
    def loss(W, target, *, tau):
        calls.append(1)
        return bw.smoothed_bures(W, target, tau=tau)

    return loss


@pytest.mark.parametrize("dynamics", ["flow", "descent"])
def test_new_numbers_make_no_new_program(dynamics):
    calls = []
    loss = counted_loss(calls)

    def run(tau, scale, tolerance):
        bound = Partial(loss, target=TARGET, tau=tau)
        start = tuple(scale * W for W in FACTORS)
        until = bw.until.gap(tolerance, minimum=0.0)
        if dynamics == "flow":
            bw.gradient_flow(
                bound,
                start,
                times=jnp.array([0.0, scale]),
                rtol=tolerance,
                atol=tolerance,
                until=until,
            )
        else:
            bw.gradient_descent(bound, start, SGD, num_steps=3, until=until)

    run(0.1, 1.0, 1e-3)
    traced = len(calls)
    for numbers in (
        (0.0, 1.0, 1e-3),
        (0.2, 0.5, 1e-3),
        (0.1, 1.0, 1e-4),
        (np.float64(0.3), 1.0, 0.1),
    ):
        run(*numbers)
    assert len(calls) == traced > 0


def batched_program(batch, dynamics="descent"):
    def run(tau, scale):
        loss = bw.losses.BuresWasserstein(TARGET, tau)
        start = tuple(scale * W for W in FACTORS)
        if dynamics == "flow":
            return bw.gradient_flow(
                loss,
                start,
                times=jnp.array([0.0, 1.0]),
                rtol=1e-4,
                atol=1e-6,
                until=bw.until.gap(1e-3),
                throw=False,
            ).hit
        return bw.gradient_descent(
            loss, start, SGD, num_steps=5, until=bw.until.gap(1e-3), throw=False
        ).hit

    numbers = jnp.ones(batch)
    return jax.jit(jax.vmap(run)).trace(numbers * 0.1, numbers)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dynamics", ["descent", "flow"])
def test_accelerator_programs_have_static_shapes_and_no_host_callbacks(dynamics, platform):
    if platform == "tpu" and jax.config.jax_enable_x64:
        pytest.skip("TPUs compute in float32")
    text = batched_program(8, dynamics).lower(lowering_platforms=(platform,)).as_text()
    assert "callback" not in text
    assert "tensor<?" not in text
    # One GEMM serves all runs: the number of products does not grow with the batch.
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    larger = batched_program(16, dynamics).lower(lowering_platforms=(platform,)).as_text()
    assert len(products) == larger.count("stablehlo.dot_general") > 0
    networks = [line for line in products if "8x3x3x" in line]
    assert networks
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in networks)


def analysed(batch):
    """Curvature, velocity of the product and a rate, of a batch."""

    def analyse(W, tau, depth):
        loss = bw.losses.BuresWasserstein(TARGET, tau)
        value, G = jax.value_and_grad(loss)(W)
        return (
            bw.landscape.hessian_spectrum(loss, (W,)),
            bw.factors.EndToEnd(depth).pullback(W, G),
            bw.factors.Covariance(depth).pullback(W @ W.T, G),
            bw.theory.sharp_rate(TARGET, value, depth=depth, tau=tau),
        )

    numbers = jnp.ones(batch)
    return jax.jit(jax.vmap(analyse)).trace(jnp.ones((batch, 3, 3)), numbers, numbers)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_analyses_of_batches_lower_for_accelerators(platform):
    if platform == "tpu" and jax.config.jax_enable_x64:
        pytest.skip("TPUs compute in float32")
    text, larger = (
        analysed(batch).lower(lowering_platforms=(platform,)).as_text() for batch in (8, 16)
    )
    assert "callback" not in text
    assert "tensor<?" not in text
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == larger.count("stablehlo.dot_general") > 0
    networks = [line for line in products if "8x3x3x" in line]
    assert len(networks) > 10
    # One line of the test's own, `W @ W.T`, asks for no precision.
    default = [line for line in networks if "precision = [HIGHEST, HIGHEST]" not in line]
    assert len(default) == 1


def cost(function, *arguments):
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def test_layer_gradients_cost_linearly_many_products():
    """Twice the depth at most about twice the operations: no quadratic partial products."""

    def gradients(depth):
        factors = gaussian_factors(0, (6,) * (depth + 1))
        G = jnp.ones((6, 6))
        return cost(bw.factors.Deep().pullback, factors, G)

    per_layer = gradients(32) / 32
    assert gradients(64) / 64 < 1.1 * per_layer
    assert per_layer < 3.5 * 2 * 6**3


def test_gradient_and_value_share_one_factorisation():
    loss = bw.losses.BuresWasserstein(TARGET, 0.1)
    program = jax.jit(jax.value_and_grad(loss)).lower(jnp.eye(3)).compile().as_text()
    assert program.count("gesdd") == 1
