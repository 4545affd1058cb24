"""Programs of feedback alignment, low rank plus sparse and semi-random recovery, as lowered."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array
from programs import unordered_decompositions

import bwflow as bw
from bwflow.experimental import semirandom
from bwflow.projections import Sparsity, thresholded

pytestmark = pytest.mark.once

N, P, R = 6, 5, 2
BOUNDS = Sparsity(4, 0.3, 0.3)


def drawn(*shape):
    return array(np.random.default_rng(sum(shape)).normal(size=shape))


Y, B, W, Z = drawn(N, P), drawn(N, R), drawn(R, P), drawn(N, R)
SENSED = semirandom.sensing_problem(jax.random.key(0), N, rank=1, num_random=20).loss


def descended(Y, start, network, optimizer, **options):
    loss = bw.losses.Approximation(Y)
    return bw.gradient_descent(
        loss, start, optimizer, num_steps=2, factorization=network, throw=False, **options
    )


def feedback(Y, B, W, Z):
    run = descended(Y, (W, Z), bw.factors.FeedbackAlignment(B), optax.sgd(0.1))
    return run.factors, bw.theory.sketch_limit(Y, B)


def star(Y, B, W):
    return descended(Y, W, bw.factors.FeedbackAlignmentStar(B, Y), optax.sgd(0.1)).factors


def sparse(Y):
    loss = bw.losses.Approximation(Y)
    start = bw.initializers.low_rank_plus_sparse(loss, BOUNDS)(jax.random.key(0), (P, R, N))
    rules = bw.precondition.scaledgd(0.5), thresholded(1.0, BOUNDS)
    return descended(Y, start, bw.factors.LowRankPlusSparse(), rules, order=(1, 0)).factors


def trimmed(S, W):
    loss = bw.losses.TrimmedBuresWasserstein(S + S.T, BOUNDS, 0.1)
    return jax.value_and_grad(loss)(W + loss.initial(R))


def recovered(A, y):
    return semirandom.recover(bw.operators.Dense(A), y, rank=1, num_random=20)


def weights(shift):
    return shift + semirandom.completion_weights(*np.indices((N, P)).reshape(2, -1), (N, P))


PROGRAMS = {
    "feedback": (feedback, (Y, B, W, Z)),
    "star": (star, (Y, B, W)),
    "low rank plus sparse": (sparse, (Y,)),
    "trimmed": (trimmed, (drawn(N, N), Z)),
    "recover": (recovered, (SENSED.operator.matrices, SENSED.y)),
    "completion weights": (weights, (jnp.zeros(()),)),
    "principal angles": (bw.diagnostics.principal_angles, (W, Y[:3])),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_two_decompositions_are_computed_side_by_side(name):
    function, arguments = PROGRAMS[name]
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), arguments)
    assert unordered_decompositions(jax.vmap(function), *batch) == []


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_for_accelerators_call_neither_the_host_nor_its_libraries(name, platform):
    function, arguments = PROGRAMS[name]
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert "lapack" not in text
    assert "callback" not in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_starts_of_feedback_descent_are_one_product_of_matrices(platform):
    """A batch of networks is multiplied at once."""
    batch = 16
    arguments = [jnp.broadcast_to(x, (batch, *x.shape)) for x in (W, Z)]
    many = jax.vmap(lambda W, Z: feedback(Y, B, W, Z)[0])
    text = jax.jit(many).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all(f"tensor<{batch}x" in line for line in products if "batching_dims" in line)


def test_a_step_of_feedback_costs_what_a_gradient_does():
    """Of flops, by `cost_analysis`."""
    n, r = 64, 8
    layers = jnp.ones((r, n)), jnp.ones((n, r))
    G = jnp.ones((n, n))

    def flops(network):
        step = jax.jit(lambda layers, G: network.pullback(layers, G))
        return step.lower(layers, G).compile().cost_analysis()["flops"]

    assert flops(bw.factors.FeedbackAlignment(jnp.ones((n, r)))) <= 1.1 * flops(bw.factors.Deep())
