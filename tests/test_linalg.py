"""Matrix functions: scipy as oracle, and derivatives at the points where SVD rules break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import array, assert_close, by_precision

from bwflow import linalg

SHAPES = [(3, 3), (2, 5), (5, 2), (4, 1), (1, 1)]


def gaussian(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


def rank_one(seed, shape):
    return np.outer(gaussian(seed, shape[0]), gaussian(seed + 1, shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_is_the_isometry_of_the_polar_decomposition(shape):
    Y = gaussian(0, shape)
    expected, _ = scipy.linalg.polar(Y)
    assert_close(linalg.polar(array(Y)), expected, by_precision(1e-13, 1e-5))


@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (4, 3)])
def test_polar_has_the_rank_of_its_argument(shape):
    P = linalg.polar(array(rank_one(0, shape)))
    assert_close(
        jnp.linalg.svd(P, compute_uv=False),
        [1.0, 0.0, 0.0, 0.0][: min(shape)],
        by_precision(1e-14, 1e-6),
    )
    assert_close(linalg.polar(jnp.zeros(shape)), np.zeros(shape), 0.0)


@pytest.mark.float64
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_derivative_matches_differences_along_smooth_directions(shape):
    Y, Z, h = gaussian(0, shape), gaussian(2, shape), 1e-5
    expected = (scipy.linalg.polar(Y + h * Z)[0] - scipy.linalg.polar(Y - h * Z)[0]) / (2 * h)
    _, derivative = jax.jvp(linalg.polar, (array(Y),), (array(Z),))
    assert_close(derivative, expected, 1e-8)


@pytest.mark.float64
def test_polar_derivative_is_right_where_the_rank_is_deficient_but_constant():
    u, v, du, dv, h = *(gaussian(seed, 4) for seed in range(4)), 1e-5
    isometry = lambda a, b: np.outer(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    expected = (isometry(u + h * du, v + h * dv) - isometry(u - h * du, v - h * dv)) / (2 * h)
    Y, Z = np.outer(u, v), np.outer(du, v) + np.outer(u, dv)
    assert_close(jax.jvp(linalg.polar, (array(Y),), (array(Z),))[1], expected, 1e-8)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3)])
def test_polar_derivatives_of_three_orders_are_finite_at_degenerate_points(shape):
    derivative = lambda Y: jnp.sum(linalg.polar(Y) ** 2 * array(gaussian(5, shape)))
    for transform in (jax.grad, jax.jacfwd, jax.jacrev):
        derivative = transform(derivative)
        compiled = jax.jit(derivative)
        for Y in (np.eye(*shape), np.zeros(shape), rank_one(0, shape)):
            assert np.all(np.isfinite(compiled(array(Y))))


@pytest.mark.float64
def test_polar_second_derivative_does_not_depend_on_the_order_of_modes():
    Y, D, E = (array(gaussian(seed, (3, 4))) for seed in range(3))
    Y = jnp.eye(3, 4) + 0 * Y
    along = lambda f, direction: lambda Y: jax.jvp(f, (Y,), (direction,))[1]
    forward = along(along(linalg.polar, D), E)(Y)
    scalar = lambda Y: jnp.vdot(linalg.polar(Y), forward)
    reverse = jnp.vdot(jax.grad(lambda Y: jnp.vdot(jax.grad(scalar)(Y), D))(Y), E)
    assert_close(reverse, jnp.vdot(forward, forward), 1e-11)


def test_polar_under_vmap_is_the_loop():
    Y = array(gaussian(0, (6, 3, 5)))
    assert_close(
        jax.vmap(linalg.polar)(Y),
        jnp.stack([linalg.polar(y) for y in Y]),
        by_precision(1e-14, 1e-6),
    )


@pytest.mark.parametrize("eigenvalues", [[3.0, 1.0, 0.5], [2.0, 2.0, 2.0]])
def test_symmetric_sylvester_agrees_with_scipy(eigenvalues):
    Q = np.linalg.qr(gaussian(0, (3, 3)))[0]
    H, C = Q @ np.diag(eigenvalues) @ Q.T, gaussian(1, (3, 3))
    expected = scipy.linalg.solve_sylvester(H, H, C)
    assert_close(
        linalg.symmetric_sylvester(array(H), array(C)), expected, by_precision(1e-13, 1e-5)
    )


@pytest.mark.float64
def test_symmetric_sylvester_differentiates_the_square_root():
    """`d(H^2) = C` means `H dH + dH H = C`; its own derivative is the second one of the root."""
    Q = np.linalg.qr(gaussian(0, (3, 3)))[0]
    S, D = Q @ np.diag([4.0, 4.0, 1.0]) @ Q.T, np.diag([1.0, -0.3, 0.2])
    root = lambda h: scipy.linalg.sqrtm(S + h * D).real

    def slope(H, D):
        return linalg.symmetric_sylvester(H, D)

    H, h = array(root(0.0)), 1e-3
    first = slope(H, array(D))
    second = jax.jvp(lambda H: slope(H, array(D)), (H,), (first,))[1]
    assert_close(first, (root(h) - root(-h)) / (2 * h), 1e-6)
    assert_close(second, (root(h) - 2 * root(0.0) + root(-h)) / h**2, 1e-5)
