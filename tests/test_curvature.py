"""Hessians at given layers against differences in numpy, Lanczos against dense, and the blow-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_precision, gaussian_factors
from landscapes import LOSSES, difference, hessian, rotation, target_of

import bwflow as bw
from bwflow import landscape

TAU = 0.1
TARGET = target_of("simple")
B = np.asarray(TARGET.factor, np.float64)
LAYERS = gaussian_factors(0, (3, 2, 4))
every_loss = pytest.mark.parametrize("loss", sorted(LOSSES))


def numpy_layers(layers):
    return tuple(np.asarray(W, np.float64) for W in layers)


def saddle(J, columns):
    """A factor of `S_J` for the target and smoothing of this file, the columns rotated."""
    points = landscape.critical_points(TARGET, columns, tau=TAU)
    point = next(point for point in points if point.indices == J)
    return point.end_to_end() @ array(rotation(1, columns))


@pytest.fixture(scope="module")
def dense():
    """All eigenvalues at random layers, for both losses."""
    return {
        name: landscape.hessian_spectrum(kind(TARGET, TAU), LAYERS) for name, kind in LOSSES.items()
    }


@every_loss
def test_spectrum_in_the_layers_against_differences(dense, loss):
    expected = np.linalg.eigvalsh(hessian(numpy_layers(LAYERS), B, TAU, loss, step=1e-3))
    scale = np.max(np.abs(expected))
    assert_close(dense[loss], expected, by_precision(1e-8, 1e-5) * scale)


@every_loss
def test_lanczos_finds_the_ends_of_the_spectrum(dense, loss):
    for count in (1, 3):
        found = landscape.hessian_spectrum(LOSSES[loss](TARGET, TAU), LAYERS, count=count)
        values = np.asarray(dense[loss], np.float64)
        expected = np.concatenate([values[:count], values[-count:]])
        assert_close(found, expected, by_precision(1e-11, 1e-4) * np.max(np.abs(values)))


@pytest.mark.once
def test_any_loss_has_a_spectrum():
    """Of a weighted sum of squares the weights, doubled."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))

    def loss(W):
        return jnp.sum(weights * W**2)

    W = jnp.ones((4, 3))
    expected = 2 * np.sort(np.asarray(weights).ravel())
    assert_close(landscape.hessian_spectrum(loss, (W,)), expected, 1e-14)
    ends = landscape.hessian_spectrum(loss, (W,), count=2)
    assert_close(ends, np.concatenate([expected[:2], expected[-2:]]), 1e-13)
    assert int(landscape.morse_index(loss, (W,))) == np.sum(expected < 0)


@every_loss
def test_spectrum_over_covariances_against_differences(loss):
    """Of the gradient `I - T` by scipy's view of the optimal map, in a basis of its own."""
    W = array(np.random.default_rng(1).normal(size=(4, 3)))
    W64 = np.asarray(W, np.float64)
    pairs = [(a, b) for a in range(4) for b in range(a, 4)]
    basis = np.zeros((10, 4, 4))
    for E, (a, b) in zip(basis, pairs, strict=True):
        E[a, b] = E[b, a] = 1.0 if a == b else 0.5**0.5

    def slope(x):
        S = W64 @ W64.T + TAU * np.eye(4) + np.tensordot(x, basis, 1)
        if loss == "frobenius":
            E = 2 * (S - B @ B.T)
        else:
            mu, Q = np.linalg.eigh(B.T @ S @ B)
            E = np.eye(4) - B @ (Q / np.sqrt(mu)) @ Q.T @ B.T
        return np.tensordot(basis, E, 2)

    H = difference(slope, np.zeros(10), 1e-3)
    scale = np.linalg.norm(H, 2)
    found = landscape.hessian_spectrum(LOSSES[loss](TARGET, TAU), (W,), space="covariance")
    assert_close(found, np.linalg.eigvalsh(H), by_precision(1e-8, 1e-4) * scale)
    ends = landscape.hessian_spectrum(LOSSES[loss](TARGET, TAU), (W,), space="covariance", count=2)
    assert_close(ends, np.asarray(found)[[0, 1, -2, -1]], by_precision(1e-11, 1e-5) * scale)


@pytest.mark.once
def test_there_is_no_hessian_over_covariances_where_the_rank_is_too_low():
    loss = bw.losses.BuresWasserstein(TARGET, 0.0)
    W = array(np.random.default_rng(1).normal(size=(4, 4)))
    assert jnp.all(landscape.hessian_spectrum(loss, (W,), space="covariance") > 0)
    low = W.at[:, 0].set(0.0)
    assert jnp.all(jnp.isnan(landscape.hessian_spectrum(loss, (low,), space="covariance")))


def test_morse_indices_of_saddles():
    """Against the counts of pairs, `sum (j_l - l) + (p - k) #{i not in J}`; one program for all."""
    loss = bw.losses.BuresWasserstein(TARGET, TAU)
    expected = {(0, 1, 2): 0, (0, 1, 3): 1, (1, 3): 3 + 2, (2,): 2 + 2 * 3, (): 12}
    points = jnp.stack([saddle(J, 3) for J in expected])
    counts = jax.vmap(lambda W: landscape.morse_index(loss, (W,)))(points)
    assert counts.tolist() == list(expected.values())


@pytest.mark.once
def test_the_tolerance_of_the_index_is_relative():
    def loss(W):
        return 50 * W[0, 0] ** 2 - 0.5 * W[1, 0] ** 2

    W = (jnp.zeros((2, 1)),)
    assert int(landscape.morse_index(loss, W)) == 1
    assert int(landscape.morse_index(loss, W, tolerance=0.009)) == 1
    assert int(landscape.morse_index(loss, W, tolerance=0.011)) == 0


@pytest.mark.float64
def test_escape_directions_are_eigenvectors_of_negative_curvature():
    """Against differences; and downhill both ways, by `c eps^2 / 2`."""
    loss = bw.losses.BuresWasserstein(TARGET, TAU)
    W = saddle((1, 2), 2)
    U, s, Vt = np.linalg.svd(np.asarray(W))
    layers = (jnp.asarray(np.diag(s**0.5) @ Vt), jnp.asarray(U[:, :2] * s**0.5))
    values, directions = landscape.escape_directions(loss, layers, count=2)
    assert [D.shape for D in directions] == [(2, 2, 2), (2, 4, 2)]
    H = hessian(numpy_layers(layers), B, TAU, "bures_wasserstein", step=1e-3)
    flat = np.concatenate([np.asarray(D).reshape(2, -1) for D in directions], axis=1)
    assert_close(values, np.linalg.eigvalsh(H)[:2], 1e-8)
    assert_close(flat @ H, np.asarray(values)[:, None] * flat, 1e-8)
    assert_close(flat @ flat.T, np.eye(2), 1e-13)
    for c, *D in zip(values, *directions, strict=True):
        for step in (1e-4, -1e-4):
            moved = tuple(x + step * d for x, d in zip(layers, D, strict=True))
            fall = loss(bw.end_to_end(moved)) - loss(W)
            assert_close(fall, np.asarray(c) * step**2 / 2, 1e-11)


@pytest.mark.float64
def test_blowup_over_covariances():
    """As `e^{-3/2}` in the smoothing, `sigma^{-3}`; constant `(u^T S0^{-1} u)^{-1/2} / 2`."""
    n = 4
    U, V = rotation(2, n), rotation(3, n)
    inverse = np.linalg.inv(B @ B.T)
    u = U[:, 3]
    values = np.geomspace(1e-4, 1e-8, 5)
    constant = 0.5 * (u @ inverse @ u) ** -0.5
    singular = jnp.asarray((U * [1.5, 1.0, 0.7, 0.0]) @ V.T)
    along_tau = landscape.hessian_blowup(TARGET, singular, values, space="covariance")
    assert_close(along_tau.slopes.largest, np.full(4, -1.5), 0.015)
    assert_close(along_tau.largest / (constant * values**-1.5), np.ones(5), 0.01)
    along_sigma = landscape.hessian_blowup(
        TARGET, singular, values**0.5, along="singular_values", space="covariance"
    )
    assert_close(along_sigma.slopes.largest, np.full(4, -3.0), 0.03)
    assert_close(along_sigma.largest / (constant * values**-1.5), np.ones(5), 0.01)
    assert np.all(np.asarray(along_tau.least) > 0)


@pytest.mark.float64
def test_blowup_in_the_smoothing_at_matrices_of_low_rank():
    """Downwards, as `-2 (lambda_max((U^T S0^{-1} U)^{-1}) / tau)^{1/2}`; never above 2."""
    U, V = rotation(2, 4), rotation(3, 4)
    inverse = np.linalg.inv(B @ B.T)
    values = np.geomspace(1e-6, 1e-10, 5)
    for null in (1, 2):
        s = np.where(np.arange(4) < 4 - null, [1.5, 1.0, 0.7, 0.5], 0.0)
        complement = U[:, 4 - null :]
        worst = 1 / np.linalg.eigvalsh(complement.T @ inverse @ complement)[0]
        run = landscape.hessian_blowup(TARGET, jnp.asarray((U * s) @ V.T), values)
        assert_close(run.values, values, 0)
        assert_close(run.slopes.least, np.full(4, -0.5), 0.005)
        assert_close(run.least / (-2 * np.sqrt(worst / values)), np.ones(5), 0.01)
        assert np.max(run.largest) <= 2 + 1e-10


@pytest.mark.float64
def test_blowup_without_smoothing_takes_two_small_singular_values_or_few_columns():
    """`-1/x`, but bounded where `B^T W` is square and one singular value is small."""
    U, V = rotation(2, 4), rotation(3, 4)
    W = jnp.asarray((U * [1.5, 1.0, 0.7, 0.5]) @ V.T)
    values = np.geomspace(1e-4, 1e-7, 4)
    along = {"along": "singular_values"}
    square = landscape.hessian_blowup(TARGET, W, values, count=2, **along)
    few = landscape.hessian_blowup(TARGET, W[:, :3], values, **along)
    one = landscape.hessian_blowup(TARGET, W, values, **along)
    for run in (square, few):
        assert_close(run.slopes.least, np.full(3, -1.0), 0.01)
        assert np.all(np.asarray(run.least) < 0)
    assert_close(one.slopes.least, np.zeros(3), 0.01)
    assert np.max(np.abs(one.least)) < 10
    for run in (square, few, one):
        assert_close(run.largest, np.full(4, 2.0), 1e-7)
    # With a smoothing it saturates, at what a matrix of lower rank has.
    smoothed = landscape.hessian_blowup(TARGET, W[:, :3], values, tau=1e-4, **along)
    assert_close(smoothed.slopes.least[-1], np.zeros(()), 1e-4)
    assert np.asarray(smoothed.least)[-1] < -50


def test_one_layer_never_bends_up_by_more_than_two():
    """Of the Bures-Wasserstein loss, at any matrix and smoothing."""
    rng = np.random.default_rng(4)
    W = array(rng.normal(size=(50, 4, 3)) * 10.0 ** rng.uniform(-2, 1, size=(50, 1, 1)))
    tau = array(10.0 ** rng.uniform(-3, 1, size=50))
    largest = jax.vmap(
        lambda W, tau: landscape.hessian_spectrum(bw.losses.BuresWasserstein(TARGET, tau), (W,))[
            jnp.array([0, -1])
        ]
    )(W, tau)
    scale = np.max(np.abs(largest), axis=1)
    assert np.all(np.asarray(largest)[:, 1] <= 2 + by_precision(1e-13, 1e-5) * scale)
    assert np.max(largest) > 1.99


REFUSED = {
    "loss": ("hessian_spectrum", {"loss": 3}, "loss must be a function of the end-to-end matrix"),
    "value": ("morse_index", {"loss": lambda W: W}, "loss must return a real scalar"),
    "layers": ("escape_directions", {"factors": LAYERS[::-1]}, "factors must chain"),
    "space": ("hessian_spectrum", {"space": "layers"}, "space must be one of factors, covariance"),
    "covariance": (
        "hessian_spectrum",
        {"loss": jnp.sum, "space": "covariance"},
        "loss must be of bwflow.losses",
    ),
    "count": ("hessian_spectrum", {"count": 8}, "count must be at most half of the 14 eigenv"),
    "no count": ("hessian_spectrum", {"count": 0}, "count must be a positive integer"),
    "directions": ("escape_directions", {"count": 15}, "count must be at most 14, the number"),
    "tolerance": ("morse_index", {"tolerance": -1.0}, "tolerance must be at least 0"),
}


@pytest.mark.once
@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refusals(case, as_installed):
    function, change, message = REFUSED[case]
    loss = bw.losses.BuresWasserstein(TARGET, TAU)
    with pytest.raises(ValueError, match=message):
        getattr(landscape, function)(**({"loss": loss, "factors": LAYERS} | change))


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.eye(4)}, "target must be a bwflow.Target"),
        ({"W": np.ones((3, 3))}, "W must have 4 rows"),
        ({"values": [0.0, 1.0]}, "values must be positive"),
        ({"along": "rank"}, "along must be one of tau, singular_values"),
        ({"count": 5}, "count must be at most 4"),
        ({"tau": -1.0}, "tau must be at least 0"),
        ({"space": "all"}, "space must be one of"),
    ],
)
def test_refusals_of_the_blowup(change, message, as_installed):
    with pytest.raises(ValueError, match=message):
        landscape.hessian_blowup(**({"target": TARGET, "W": np.eye(4), "values": [1.0]} | change))


@pytest.mark.once
def test_lanczos_is_refused_under_a_trace():
    loss = bw.losses.BuresWasserstein(TARGET, TAU)
    for transform in (jax.jit, lambda f: lambda W: jax.vmap(f)(W[None])):
        with pytest.raises(ValueError, match="count must be left out where"):
            transform(lambda W: landscape.hessian_spectrum(loss, (W,), count=1))(jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="count must be left out where"):
        jax.jit(lambda: landscape.hessian_spectrum(loss, LAYERS, count=1))()


@pytest.mark.once
def test_spectra_trace_the_smoothing_and_the_layers():
    """A batch is what its members are."""
    points = jnp.stack([LAYERS[1] @ LAYERS[0], 2 * LAYERS[1] @ LAYERS[0]])
    taus = array([0.1, 0.4])

    def spectrum(W, tau):
        return landscape.hessian_spectrum(bw.losses.BuresWasserstein(TARGET, tau), (W,))

    batch = jax.jit(jax.vmap(spectrum))(points, taus)
    for row, W, tau in zip(batch, points, taus, strict=True):
        assert_close(row, np.asarray(spectrum(W, tau)), by_precision(1e-12, 1e-4))
