"""Networks against numpy products, and what gradient steps leave unchanged."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, gaussian_factors, random_target

import bwflow as bw

EPS = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
TOL = 100 * EPS
WIDTHS = [(3, 4), (3, 3, 3), (2, 4, 3), (4, 2, 3, 4), (3, 4, 2, 4, 3, 2)]


def network(widths, seed=0):
    """Factors and their float64 copies."""
    factors = gaussian_factors(seed, widths)
    return factors, [np.asarray(W, np.float64) for W in factors]


def gradient(widths, seed=1):
    """A matrix of the shape of the end-to-end matrix."""
    G = np.random.default_rng(seed).normal(size=(widths[-1], widths[0]))
    return jnp.asarray(G, dtype=float)


def chain(matrices, size):
    """`M_k ... M_1` for `matrices = [M_1, ..., M_k]`, the identity of `size` if there are none."""
    return reduce(lambda W, M: M @ W, matrices, np.eye(size))


def layer_gradients(matrices, G):
    """`W_{>j}^T G W_{<j}^T`, by the formula."""
    G = np.asarray(G, np.float64)
    n, p = G.shape
    return [
        chain([M.T for M in matrices[:j:-1]], n) @ G @ chain(matrices[:j], p).T
        for j in range(len(matrices))
    ]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_end_to_end_multiplies_the_first_layer_on_the_right(widths):
    factors, matrices = network(widths)
    expected = matrices[0] if len(matrices) == 1 else np.linalg.multi_dot(matrices[::-1])
    assert_close(bw.end_to_end(factors), expected, TOL)
    assert_close(bw.factors.Deep().assemble(factors), expected, TOL)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_partial_products_are_the_layers_above_and_below(widths):
    factors, matrices = network(widths)
    above, below = bw.factors.partial_products(factors)
    assert len(above) == len(below) == len(factors)
    for j in range(len(factors)):
        assert_close(above[j], chain(matrices[j + 1 :], widths[j + 1]), TOL)
        assert_close(below[j], chain(matrices[:j], widths[0]), TOL)
    np.testing.assert_array_equal(above[-1], np.eye(widths[-1]))
    np.testing.assert_array_equal(below[0], np.eye(widths[0]))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_pullback_is_the_gradient_between_the_partial_products(widths):
    factors, matrices = network(widths)
    G = gradient(widths)
    pulled = bw.factors.Deep().pullback(factors, G)
    for actual, expected in zip(pulled, layer_gradients(matrices, G), strict=True):
        assert_close(actual, expected, TOL)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_every_layer_has_the_same_inner_product_with_its_gradient(widths):
    """`<W_j, grad_j> = <W, G>` for every `j`."""
    factors, matrices = network(widths)
    G = gradient(widths)
    expected = np.vdot(chain(matrices, widths[0]), np.asarray(G, np.float64))
    for W, grad in zip(matrices, bw.factors.Deep().pullback(factors, G), strict=True):
        assert_close(np.vdot(W, np.asarray(grad, np.float64)), np.asarray(expected), TOL)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_grams_are_those_of_the_partial_products(widths):
    factors, matrices = network(widths)
    for j, (left, right) in enumerate(bw.factors.Deep().grams(factors)):
        above = chain(matrices[j + 1 :], widths[j + 1])
        below = chain(matrices[:j], widths[0])
        assert_close(left, above.T @ above, 4 * TOL)
        assert_close(right, below @ below.T, 4 * TOL)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_imbalance_is_the_difference_of_neighbouring_grams(widths):
    factors, matrices = network(widths)
    imbalances = bw.imbalance(factors)
    assert len(imbalances) == len(factors) - 1
    for j, D in enumerate(imbalances):
        expected = matrices[j + 1].T @ matrices[j + 1] - matrices[j] @ matrices[j].T
        assert_close(D, expected, TOL)


@pytest.mark.parametrize("widths", [w for w in WIDTHS if len(w) > 2], ids=str)
def test_imbalance_does_not_move_along_a_gradient(widths):
    """`d D_j = 0` along the layer gradients of any loss: the flow conserves it."""
    factors, _ = network(widths)
    direction = bw.factors.Deep().pullback(factors, gradient(widths))
    _, tangent = jax.jvp(bw.imbalance, (factors,), (direction,))
    _, elsewhere = jax.jvp(bw.imbalance, (factors,), (factors,))
    for moved, other in zip(tangent, elsewhere, strict=True):
        assert_close(moved, np.zeros(moved.shape), 4 * TOL)
        assert np.abs(np.asarray(other)).max() > 0.1


@pytest.mark.parametrize("widths", [w for w in WIDTHS if len(w) > 2], ids=str)
def test_imbalance_drifts_with_the_square_of_a_gradient_step(widths):
    """`D_j(new) - D_j(old) = step^2 (grad_{j+1}^T grad_{j+1} - grad_j grad_j^T)`."""
    factors, matrices = network(widths)
    G, step = gradient(widths), 0.1
    grads = bw.factors.Deep().pullback(factors, G)
    moved = tuple(W - step * g for W, g in zip(factors, grads, strict=True))
    expected = layer_gradients(matrices, G)
    pairs = zip(bw.imbalance(moved), bw.imbalance(factors), strict=True)
    for j, (new, old) in enumerate(pairs):
        drift = expected[j + 1].T @ expected[j + 1] - expected[j] @ expected[j].T
        assert_close(new - old, step**2 * drift, TOL)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_widths_are_those_of_the_layers_and_the_bottleneck_the_least(widths):
    factors, _ = network(widths)
    assert bw.factors.widths(factors) == widths
    assert bw.factors.Deep().bottleneck(factors) == min(widths)


@pytest.mark.parametrize(
    ("widths", "padded"),
    [((3, 4), (5, 4)), ((2, 3, 4), (2, 6, 4)), ((2, 4, 2, 3), (4, 4, 5, 6)), ((2, 3), (2, 3))],
    ids=str,
)
def test_zero_padding_keeps_the_end_to_end_matrix_in_the_top_left_block(widths, padded):
    factors, matrices = network(widths)
    padded_factors = bw.factors.zero_pad(factors, padded)
    assert bw.factors.widths(padded_factors) == padded
    for W, M in zip(padded_factors, matrices, strict=True):
        rows, columns = M.shape
        np.testing.assert_array_equal(np.asarray(W)[:rows, :columns], M)
        assert np.count_nonzero(W) == np.count_nonzero(M)
    expected = np.zeros((padded[-1], padded[0]))
    expected[: widths[-1], : widths[0]] = chain(matrices, widths[0])
    assert_close(bw.end_to_end(padded_factors), expected, TOL)


@pytest.mark.parametrize("tau", [0.0, 0.1])
@pytest.mark.parametrize("padded", [(4, 6, 5, 4), (6, 6, 5, 4)], ids=["inner", "inner and latent"])
def test_zero_padded_networks_descend_like_the_small_ones(padded, tau):
    """Gradient steps on the padded layers give the same end-to-end matrices; the zeros stay."""
    target = random_target(2, 4)

    @jax.jit
    def step(factors):
        W, pullback = jax.vjp(bw.end_to_end, factors)
        (grads,) = pullback(jax.grad(bw.smoothed_bures)(W, target, tau=tau))
        return tuple(W - 0.05 * g for W, g in zip(factors, grads, strict=True))

    small = gaussian_factors(3, (4, 3, 4, 4), scale=0.6)
    large = bw.factors.zero_pad(small, padded)
    start = np.asarray(bw.end_to_end(small), np.float64)
    for _ in range(20):
        small, large = step(small), step(large)
        inside = np.asarray(bw.end_to_end(large))[:, :4]
        assert_close(inside, np.asarray(bw.end_to_end(small), np.float64), 10 * TOL)
    assert np.abs(np.asarray(bw.end_to_end(small)) - start).max() > 0.1
    for W, V in zip(large, small, strict=True):
        outside = np.array(W)
        outside[: V.shape[0], : V.shape[1]] = 0
        assert np.abs(outside).max() <= 10 * EPS


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_constant_widths_are_the_inner_one_up_to_the_output(depth):
    assert bw.factors.constant_widths(7, depth) == (7,) * (depth + 1)
    assert bw.factors.constant_widths(7, depth, inner=3) == (3,) * depth + (7,)


@pytest.mark.parametrize("depth", range(2, 9))
@pytest.mark.parametrize(("n", "latent", "bottleneck"), [(16, None, 4), (9, 12, 5), (6, 2, 2)])
def test_linear_widths_fall_to_the_bottleneck_and_rise_to_the_output(depth, n, latent, bottleneck):
    """Endpoints, monotone sides, and within rounding a straight line on each of them."""
    widths = bw.factors.linear_widths(n, depth, bottleneck=bottleneck, latent=latent)
    assert len(widths) == depth + 1
    assert widths[0] == (n if latent is None else latent)
    assert widths[-1] == n
    assert min(widths) == bottleneck
    at = depth // 2
    assert widths[at] == bottleneck
    assert np.all(np.diff(widths[: at + 1]) <= 0)
    assert np.all(np.diff(widths[at:]) >= 0)
    down = np.linspace(widths[0], bottleneck, at + 1)
    up = np.linspace(bottleneck, n, depth - at + 1)
    assert np.abs(np.array(widths) - np.concatenate([down, up[1:]])).max() <= 0.5


KEY = jax.random.key(0)


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_samples_have_mean_zero_and_the_smoothed_covariance(widths, tau):
    """Of 20000 samples, within five standard errors."""
    factors, matrices = network(widths)
    x = np.asarray(bw.sample(factors, KEY, 20000, tau=tau), np.float64)
    assert x.shape == (20000, widths[-1])
    W = chain(matrices, widths[0])
    S = W @ W.T + tau * np.eye(widths[-1])
    variance = np.diag(S)
    assert np.all(np.abs(x.mean(axis=0)) < 5 * (variance / 20000) ** 0.5)
    error = ((np.outer(variance, variance) + S**2) / 20000) ** 0.5
    assert np.all(np.abs(x.T @ x / 20000 - S) < 5 * error)


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_one_key_gives_every_network_the_same_latent_samples(widths):
    """The identity shows them; the noise is what smoothing adds to any network."""
    factors, matrices = network(widths)
    z = np.asarray(bw.sample((jnp.eye(widths[0]),), KEY, 50), np.float64)
    x = np.asarray(bw.sample(factors, KEY, 50), np.float64)
    assert_close(x, z @ chain(matrices, widths[0]).T, TOL)
    silent = tuple(jnp.zeros_like(W) for W in factors)
    noise = np.asarray(bw.sample(silent, KEY, 50, tau=1.0), np.float64)
    assert_close(bw.sample(factors, KEY, 50, tau=0.25), x + noise / 2, TOL)


def test_noise_is_independent_of_the_latent_samples():
    """No correlation among 20000 samples, within five standard errors."""
    z = np.asarray(bw.sample((jnp.eye(3),), KEY, 20000), np.float64)
    noise = np.asarray(bw.sample((jnp.zeros((3, 3)),), KEY, 20000, tau=1.0), np.float64)
    assert np.abs(z.T @ noise / 20000).max() < 5 * 20000**-0.5


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_gradient_of_samples_in_the_factors_holds_the_latent_samples_fixed(widths, tau):
    """`<C, X>` has the gradient `C^T Z` in the end-to-end matrix; at `tau = 0` too."""
    factors, matrices = network(widths)
    C = np.random.default_rng(2).normal(size=(5, widths[-1]))
    weights = jnp.asarray(C, dtype=float)
    pulled = jax.grad(lambda f: jnp.sum(weights * bw.sample(f, KEY, 5, tau=tau)))(factors)
    Z = np.asarray(bw.sample((jnp.eye(widths[0]),), KEY, 5), np.float64)
    for actual, expected in zip(pulled, layer_gradients(matrices, C.T @ Z), strict=True):
        assert_close(actual, expected, TOL)


def test_samples_are_mapped_over_keys_and_their_number_is_static():
    factors, _ = network((3, 4, 2))
    keys = jax.random.split(KEY, 3)
    draw = jax.jit(jax.vmap(lambda key, tau: bw.sample(factors, key, 7, tau=tau), (0, None)))
    mapped = draw(keys, 0.2)
    for key, x in zip(keys, mapped, strict=True):
        assert_close(x, bw.sample(factors, key, 7, tau=0.2), TOL)
    assert np.abs(np.asarray(mapped[0] - mapped[1])).max() > 0.1


ONE = jnp.ones((2, 3))
BAD = {
    "empty tuple": (lambda: bw.factors.widths(()), r"factors must be a non-empty tuple of matric"),
    "empty layer": (
        lambda: bw.factors.widths((jnp.ones((0, 3)),)),
        r"factors must be non-empty matrices; W_1 has shape \(0, 3\)",
    ),
    "no chain": (
        lambda: bw.end_to_end((ONE, ONE)),
        r"factors must chain: W_2 of shape \(2, 3\) cannot follow W_1 .* expected 2 columns",
    ),
    "no chain, imbalance": (lambda: bw.imbalance((ONE, ONE)), r"factors must chain"),
    "no chain, products": (
        lambda: bw.factors.partial_products((ONE, ONE)),
        r"factors must chain",
    ),
    "no chain, sample": (lambda: bw.sample((ONE, ONE), KEY, 1), r"factors must chain"),
    "no samples": (
        lambda: bw.sample((ONE,), KEY, 0),
        r"n must be a positive integer; got 0",
    ),
    "negative smoothing": (
        lambda: bw.sample((ONE,), KEY, 1, tau=-0.5),
        r"tau must be at least 0.0; got -0.5",
    ),
    "infinite smoothing": (
        lambda: bw.sample((ONE,), KEY, 1, tau=float("inf")),
        r"tau must be a finite number; got inf",
    ),
    "too few widths": (
        lambda: bw.factors.zero_pad((ONE,), (3,)),
        r"new_widths must have at least two entries .* got \(3,\)",
    ),
    "shrinking": (
        lambda: bw.factors.zero_pad((ONE,), (3, 1)),
        r"new_widths must be 2 numbers, none below \(3, 2\); got \(3, 1\)",
    ),
    "n": (lambda: bw.factors.constant_widths(0, 2), r"n must be a positive integer; got 0"),
    "depth": (lambda: bw.factors.constant_widths(2, 0), r"depth must be a positive integer; got 0"),
    "inner": (
        lambda: bw.factors.constant_widths(2, 1, inner=-1),
        r"inner must be a positive integer; got -1",
    ),
    "bottleneck": (
        lambda: bw.factors.linear_widths(4, 2, bottleneck=0),
        r"bottleneck must be a positive integer; got 0",
    ),
    "latent": (
        lambda: bw.factors.linear_widths(4, 2, bottleneck=2, latent=0),
        r"latent must be a positive integer; got 0",
    ),
}


def test_arguments_of_another_kind_are_refused_by_sample(as_installed):
    with pytest.raises(ValueError, match=r"n must be a positive integer; got 2.5"):
        bw.sample((ONE,), KEY, 2.5)
    with pytest.raises(ValueError, match=r"key must be one random key"):
        bw.sample((ONE,), 0, 2)
    with pytest.raises(ValueError, match=r"factors\[0\] must be real floating point"):
        bw.sample((jnp.ones((2, 3), int),), KEY, 2)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
