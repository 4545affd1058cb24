"""Gradient descent against a loop in numpy, exact one-step results, and optax's optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, by_precision, gaussian_factors, random_target
from jax.tree_util import Partial

import bwflow as bw

TARGET = random_target(0, 3, condition=5.0)
LOSS = bw.losses.BuresWasserstein(TARGET, 0.02)
FACTORS = gaussian_factors(1, (3, 4, 3))
SGD = optax.sgd(0.05)


def numpy_descent(factors, tau, rate, steps):
    """Descent with the gradient by numpy's eigendecomposition, `2 (I - T) W`."""
    S0 = np.asarray(TARGET.covariance, np.float64)
    values, vectors = np.linalg.eigh(S0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    layers = [np.asarray(W, np.float64) for W in factors]
    for _ in range(steps):
        W = np.linalg.multi_dot(layers[::-1]) if len(layers) > 1 else layers[0]
        inner, basis = np.linalg.eigh(root @ (W @ W.T + tau * np.eye(3)) @ root)
        G = 2 * (W - root @ (basis / np.sqrt(inner)) @ basis.T @ root @ W)
        gradients = []
        for j in range(len(layers)):
            above = np.eye(3)
            for layer in layers[:j:-1]:
                above = above @ layer
            below = np.eye(layers[0].shape[1])
            for layer in layers[:j]:
                below = layer @ below
            gradients.append(above.T @ G @ below.T)
        layers = [W - rate * g for W, g in zip(layers, gradients, strict=True)]
    return layers


def test_descent_is_the_loop_in_numpy():
    run = bw.gradient_descent(LOSS, FACTORS, SGD, num_steps=30)
    expected = numpy_descent(FACTORS, 0.02, 0.05, 30)
    for W, V in zip(run.factors, expected, strict=True):
        assert_close(W, V, by_precision(1e-12, 1e-5))


def test_one_step_of_one_half_reaches_the_optimum_of_one_layer():
    W = gaussian_factors(2, (4, 3))[0]
    run = bw.gradient_descent(
        bw.losses.BuresWasserstein(TARGET, 0.0), (W,), optax.sgd(0.5), num_steps=1
    )
    assert_close(run.factors[0] @ run.factors[0].T, TARGET.covariance, by_precision(1e-14, 1e-6))
    assert run.probes["loss"][-1] <= by_precision(1e-28, 1e-12)


def test_one_layer_contracts_by_the_exact_factor():
    """`L_{k+1} = (1 - 2 eta)^2 L_k` at tau = 0 and full rank."""
    eta = 0.1
    W = gaussian_factors(2, (4, 3))[0]
    run = bw.gradient_descent(
        bw.losses.BuresWasserstein(TARGET, 0.0), (W,), optax.sgd(eta), num_steps=8
    )
    expected = float(run.probes["loss"][0]) * (1 - 2 * eta) ** (2 * np.arange(9))
    assert_close(run.probes["loss"], expected, by_precision(1e-13, 1e-5))


def test_rows_are_counted_in_steps_and_the_last_is_the_end():
    fine = bw.gradient_descent(LOSS, FACTORS, SGD, num_steps=10)
    coarse = bw.gradient_descent(LOSS, FACTORS, SGD, num_steps=10, save_every=4)
    assert fine.times.tolist() == list(range(11))
    assert coarse.times.tolist() == [0, 4, 8, 10]
    assert_close(
        coarse.probes["loss"], fine.probes["loss"][coarse.times], by_precision(1e-15, 1e-6)
    )
    few = bw.gradient_descent(LOSS, FACTORS, SGD, num_steps=2, save_every=4)
    assert few.times.tolist() == [0, 2]
    assert coarse.clock == "step"
    assert int(coarse.num_steps) == 10


OPTIMIZERS = {
    "momentum": optax.sgd(0.02, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.02),
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.1, 60)),
    "clip": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
    "polyak": optax.polyak_sgd(max_learning_rate=0.2),
    "line search": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_of_optimizer_descends(name):
    run = bw.gradient_descent(LOSS, FACTORS, OPTIMIZERS[name], num_steps=60, save_every=30)
    assert run.probes["gap"][-1] < 0.2 * run.probes["gap"][0]
    assert all(W.dtype == FACTORS[0].dtype for W in run.factors)


def test_optimizer_receives_value_gradient_and_value_function():
    seen = {}

    def update(updates, state, params=None, *, value, grad, value_fn, **_):
        seen.update(value=value.shape, grad=jax.tree.structure(grad), same=value_fn(params).shape)
        return jax.tree.map(lambda g: -0.01 * g, updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    bw.gradient_descent(LOSS, FACTORS, optimizer, num_steps=1)
    assert seen == {"value": (), "grad": jax.tree.structure(FACTORS), "same": ()}


def test_divergence_is_recorded_and_named():
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        bw.gradient_descent(LOSS, FACTORS, optax.sgd(1e3), num_steps=30)
    run = bw.gradient_descent(LOSS, FACTORS, optax.sgd(1e3), num_steps=30, throw=False)
    assert run.result == bw.RESULTS.nonfinite


def test_a_gradient_that_breaks_is_a_failure_though_the_loss_is_finite():
    kinked = Partial(lambda W: jnp.sum(jnp.sqrt(W)))
    run = bw.gradient_descent(
        kinked,
        (jnp.zeros((1, 1)),),
        SGD,
        num_steps=3,
        throw=False,
        until=bw.until.gradient_norm(1e-3),
    )
    assert run.probes["loss"][0] == 0
    assert run.result == bw.RESULTS.nonfinite


@pytest.mark.parametrize("until", [None, bw.until.gap(1e-3)])
def test_a_run_that_diverges_changes_no_bit_of_its_neighbours(until):
    @jax.jit
    @jax.vmap
    def descend(rate):
        return bw.gradient_descent(
            LOSS, FACTORS, optax.sgd(rate), num_steps=40, save_every=10, until=until, throw=False
        )

    mixed, healthy = descend(array([0.05, 1e4, 0.02])), descend(array([0.05, 0.01, 0.02]))
    kept = np.array([0, 2])
    for name in mixed.probes:
        np.testing.assert_array_equal(mixed.probes[name][kept], healthy.probes[name][kept])
    assert mixed.outcome.tolist() == [0, 1, 0]


def test_learning_rate_is_swept_inside_one_program():
    descend = jax.vmap(
        lambda rate: bw.gradient_descent(LOSS, FACTORS, optax.sgd(rate), num_steps=20).probes[
            "loss"
        ][-1]
    )
    rates = array([0.01, 0.05])
    expected = [
        bw.gradient_descent(LOSS, FACTORS, optax.sgd(float(rate)), num_steps=20).probes["loss"][-1]
        for rate in rates
    ]
    assert_close(descend(rates), expected, by_precision(1e-12, 1e-5))


def test_descent_is_differentiable_in_both_modes():
    def final(tau):
        loss = Partial(bw.smoothed_bures, target=TARGET, tau=tau)
        return bw.gradient_descent(loss, FACTORS, SGD, num_steps=10).probes["loss"][-1]

    h = by_precision(1e-5, 3e-3)
    expected = (final(0.05 + h) - final(0.05 - h)) / (2 * h)
    assert_close(jax.grad(final)(0.05), expected, by_precision(1e-8, 2e-3))
    assert_close(jax.jvp(final, (0.05,), (1.0,))[1], expected, by_precision(1e-8, 2e-3))
