"""Blocks that move one after another, against loops in numpy and exact one-step results."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, by_precision, gaussian_factors, random_target

import bwflow as bw

TARGET = random_target(0, 3, condition=5.0)
FROBENIUS = bw.losses.Frobenius(TARGET)
LAYERS = gaussian_factors(1, (3, 4, 2, 3))
RATE = 0.004
PAIR = bw.factors.Rectangular()
MOMENTUM = optax.sgd(RATE, momentum=0.9)


class Approximation(eqx.Module):
    """`1/2 ||L R^T - A||^2`."""

    A: jax.Array

    def __call__(self, E):
        return jnp.sum((E.matrix() - self.A) ** 2) / 2


def matrix(seed, n, p, rank):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, p))


def numpy_momentum(layers, order, steps):
    """Heavy-ball descent layer by layer; each layer remembers its own gradients."""
    layers = [np.asarray(W, np.float64) for W in layers]
    S, memory = np.asarray(TARGET.covariance, np.float64), [0.0] * len(layers)
    for _ in range(steps):
        for j in order:
            above, below = np.eye(3), np.eye(layers[0].shape[1])
            for layer in layers[:j:-1]:
                above = above @ layer
            for layer in layers[:j]:
                below = layer @ below
            W = above @ layers[j] @ below
            memory[j] = 0.9 * memory[j] + above.T @ (4 * (W @ W.T - S) @ W) @ below.T
            layers[j] = layers[j] - RATE * memory[j]
    return layers


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_layers_in_turn_are_the_loop_in_numpy(order):
    run = bw.gradient_descent(FROBENIUS, LAYERS, MOMENTUM, num_steps=6, order=order)
    for W, V in zip(run.factors, numpy_momentum(LAYERS, order, 6), strict=True):
        assert_close(W, V, by_precision(1e-12, 1e-5))


def test_an_order_is_not_a_step_at_once():
    in_turn, at_once = (
        bw.gradient_descent(FROBENIUS, LAYERS, MOMENTUM, num_steps=6, order=order).factors
        for order in ((0, 1, 2), None)
    )
    assert max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(in_turn, at_once, strict=True)) > 1e-3


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_scaledgd_in_turn_is_alternating_scaled_descent(order):
    A, rate = matrix(0, 6, 5, 3), 0.4
    factors = [np.random.default_rng(1).normal(size=shape) for shape in ((6, 3), (5, 3))]
    run = bw.gradient_descent(
        Approximation(jnp.asarray(A, float)),
        tuple(jnp.asarray(F, float) for F in factors),
        bw.precondition.scaledgd(rate),
        num_steps=5,
        order=order,
        factorization=PAIR,
        until=bw.until.gradient_norm(1e-9),
    )
    for _ in range(5):
        for side in order:
            Z = factors[0] @ factors[1].T - A
            other = factors[1 - side]
            slope = (Z if side == 0 else Z.T) @ other
            factors[side] = factors[side] - rate * slope @ np.linalg.inv(other.T @ other)
    for F, expected in zip(run.factors, factors, strict=True):
        assert_close(F, expected, by_precision(1e-11, 2e-4))


@pytest.mark.parametrize("r", [4, 7], ids=["exact", "over-parametrised"])
def test_one_step_from_a_sketch_is_exact(r):
    """The right factor moves first, and `L R^T` is the projection of `A` on the range of `L`."""
    A = jnp.asarray(matrix(2, 9, 8, 4), float)
    start = bw.initializers.nystrom(A, rectangular=True)(jax.random.key(0), (8, r, 9))
    run = bw.gradient_descent(
        Approximation(A),
        start,
        bw.precondition.agn(1.0),
        num_steps=1,
        order=(1, 0),
        factorization=PAIR,
    )
    error = float(jnp.linalg.norm(bw.factors.Product(*run.factors).matrix() - A))
    assert error / float(jnp.linalg.norm(A)) <= by_precision(1e-11, 1e-3)


@pytest.mark.float64
def test_with_too_few_columns_the_alternation_is_subspace_iteration():
    """It reaches the error of the best approximation, at the square of the spectrum's ratio."""
    U, V = (np.linalg.qr(matrix(seed, n, n, n))[0] for seed, n in ((3, 9), (4, 8)))
    s = 0.5 ** np.arange(8)
    A = jnp.asarray((U[:, :8] * s) @ V.T)
    start = bw.initializers.nystrom(A, rectangular=True)(jax.random.key(0), (8, 3, 9))
    run = bw.gradient_descent(
        Approximation(A),
        start,
        bw.precondition.agn(1.0),
        num_steps=25,
        order=(1, 0),
        factorization=PAIR,
    )
    excess = np.asarray(run.probes["loss"]) - np.sum(s[3:] ** 2) / 2
    assert abs(excess[-1]) < 1e-13
    # Angles fall by (s_4 / s_3)^2 = 1/4 a step, their squares by 1/16.
    assert np.all(np.abs(excess[6:10] / excess[5:9] - 1 / 16) < 0.005)


def test_until_sees_the_gradient_in_all_blocks():
    run = bw.gradient_descent(
        FROBENIUS,
        LAYERS,
        MOMENTUM,
        num_steps=500,
        save_every=500,
        order=(0, 1, 2),
        until=bw.until.gradient_norm(1e-2),
    )
    norms = np.asarray(run.probes["gradient_norm"])
    assert 0 < float(run.hit) == int(run.num_steps) < 500
    assert norms[-1] <= 1e-2 * norms[0]


def test_runs_in_turn_are_batched_and_differentiated():
    def final(scale):
        start = tuple(scale * W for W in LAYERS)
        run = bw.gradient_descent(FROBENIUS, start, MOMENTUM, num_steps=3, order=(1, 2, 0))
        return run.probes["loss"][-1]

    scales = jnp.asarray([0.9, 1.0], float)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(final)))(scales)
    h = by_precision(1e-6, 1e-2)
    for value, slope, scale in zip(values, slopes, scales, strict=True):
        above, below = (float(jax.jit(final)(scale + d)) for d in (h, -h))
        assert_close(value, final(scale), by_precision(1e-12, 1e-4))
        assert_close(slope, (above - below) / (2 * h), by_precision(1e-6, 0.05) * abs(above))


@pytest.mark.parametrize(
    ("order", "params", "refusal"),
    [
        ((0, 1), LAYERS, r"each of the 3 blocks .* once, from 0 on; got \(0, 1\)"),
        ((0, 1, 1), LAYERS, "each of the 3 blocks"),
        ((1, 2, 3), LAYERS, "each of the 3 blocks"),
        ((0.0, 1.0, 2.0), LAYERS, "each of the 3 blocks"),
        (0, LAYERS, "each of the 3 blocks"),
        ("alternating", LAYERS, "each of the 3 blocks"),
        ((0,), LAYERS[2], "parameters without blocks"),
    ],
)
@pytest.mark.usefixtures("as_installed")
def test_other_orders_are_refused(order, params, refusal):
    network = bw.factors.Symmetric() if isinstance(params, jax.Array) else bw.factors.Deep()
    with pytest.raises(ValueError, match=f"order must .*{refusal}"):
        bw.gradient_descent(
            FROBENIUS, params, MOMENTUM, num_steps=1, order=order, factorization=network
        )
