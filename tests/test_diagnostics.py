"""Named quantities against numpy, at random networks and at the optimum."""

from functools import reduce
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from helpers import assert_close, by_precision, gaussian_factors, random_target
from jax.tree_util import Partial

import bwflow as bw
from bwflow import diagnostics, landscape

ROUNDING = by_precision(1e-12, 3e-5)
TAU = 0.05
WIDTHS = [(4, 3), (3, 2, 3), (2, 4, 3, 3)]
TARGET = random_target(1, 3)
LOSS = bw.losses.BuresWasserstein(TARGET, TAU)


def chain(layers, size):
    """The product of layers, the first one rightmost; of none the identity."""
    return reduce(lambda product, layer: layer @ product, layers, np.eye(size))


def numpy_point(factors):
    """Layers, end-to-end matrix and covariance in double precision."""
    layers = [np.asarray(W, np.float64) for W in factors]
    W = chain(layers, layers[0].shape[1])
    return layers, W, W @ W.T


def root(S):
    """Square root of a symmetric matrix, negative eigenvalues of rounding cut off."""
    values, vectors = np.linalg.eigh(S)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def squared_distance(A, B):
    """`BW^2` of two covariances by matrix square roots of scipy."""
    cross = scipy.linalg.sqrtm(root(A) @ B @ root(A)).real
    return np.trace(A) + np.trace(B) - 2 * np.trace(cross)


def optimum(rank, tau):
    """The eigenvalues above `tau` of the target, lowered by it, up to a rank."""
    values, vectors = np.linalg.eigh(np.asarray(TARGET.covariance, np.float64))
    lowered = np.maximum(values[::-1] - tau, 0.0) * (np.arange(3) < rank)
    return (vectors[:, ::-1] * lowered) @ vectors[:, ::-1].T


def network_at(S, depth):
    """A balanced network of a given depth whose covariance is `S`."""
    values, vectors = np.linalg.eigh(S)
    s = np.maximum(values, 0.0) ** (0.5 / depth)
    layers = [np.diag(s)] * (depth - 1) + [vectors * s]
    return tuple(jnp.asarray(W, dtype=float) for W in layers)


@pytest.fixture(scope="module", params=WIDTHS, ids=str)
def recorded(request):
    """A random network and all quantities of it."""
    factors = gaussian_factors(0, request.param)
    probe = diagnostics.record(*diagnostics.QUANTITIES)
    return factors, jax.jit(probe)(LOSS, factors)


def test_loss_and_gap_are_those_of_the_covariance(recorded):
    factors, values = recorded
    layers, _, S = numpy_point(factors)
    Sigma, eye = np.asarray(TARGET.covariance, np.float64), np.eye(3)
    rank = min(min(W.shape) for W in layers)
    loss = squared_distance(S + TAU * eye, Sigma)
    least = squared_distance(optimum(rank, TAU) + TAU * eye, Sigma)
    assert_close(values["loss"], loss, ROUNDING)
    assert_close(values["gap"], loss - least, ROUNDING)


def test_gradient_norm_is_that_of_the_layer_gradients(recorded):
    """By the transport map `T`: the gradient in `W` is `2 (I - T) W`."""
    factors, values = recorded
    layers, W, S = numpy_point(factors)
    B = root(np.asarray(TARGET.covariance, np.float64))
    T = B @ np.linalg.inv(root(B @ (S + TAU * np.eye(3)) @ B)) @ B
    G = 2 * (np.eye(3) - T) @ W
    gradients = [
        chain(layers[j + 1 :], len(layer)).T @ G @ chain(layers[:j], layers[0].shape[1]).T
        for j, layer in enumerate(layers)
    ]
    expected = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    assert_close(values["gradient_norm"], expected, 10 * ROUNDING)


def test_spectral_quantities_are_those_of_the_svd(recorded):
    factors, values = recorded
    s = np.linalg.svd(numpy_point(factors)[1], compute_uv=False)
    p = s / np.sum(s)
    assert_close(values["singular_values"], s, ROUNDING)
    assert_close(values["effective_rank"], np.prod(p**-p), 10 * ROUNDING)
    rank = np.linalg.matrix_rank(np.diag(s), tol=by_precision(1e-8, 3e-4) * s[0])
    assert int(values["numerical_rank"]) == rank


def test_imbalance_has_a_norm_for_each_pair_of_neighbours(recorded):
    factors, values = recorded
    layers, _, _ = numpy_point(factors)
    expected = [
        np.linalg.norm(outer.T @ outer - inner @ inner.T) for inner, outer in pairwise(layers)
    ]
    assert_close(values["imbalance"], np.array(expected), ROUNDING)


def test_alignment_is_the_cosine_of_singular_and_eigenvectors(recorded):
    factors, values = recorded
    _, W, _ = numpy_point(factors)
    U, s, _ = np.linalg.svd(W, full_matrices=False)
    Q = np.linalg.eigh(np.asarray(TARGET.covariance, np.float64))[1][:, ::-1]
    cosines = np.abs(np.diag(U.T @ Q[:, : U.shape[1]])) * (s > 1e-6 * s[0])
    assert_close(values["alignment"], cosines, by_precision(1e-11, 3e-4))


def test_distances_are_those_to_the_smoothed_optimum(recorded):
    factors, values = recorded
    layers, _, S = numpy_point(factors)
    best = optimum(min(min(W.shape) for W in layers), TAU)
    smoothing = TAU * np.eye(3)
    assert_close(values["distance_frobenius"], np.linalg.norm(S - best), ROUNDING)
    expected = np.sqrt(squared_distance(S + smoothing, best + smoothing))
    assert_close(values["distance_bures"], expected, 10 * ROUNDING)


def test_the_distance_of_a_network_of_low_rank_is_that_without_smoothing():
    """The optimum has full rank and the product rank one: directions are missing."""
    layers = (np.diag([1.0, 0.0, 0.0]), np.random.default_rng(5).normal(size=(3, 3)))
    factors = tuple(jnp.asarray(W, dtype=float) for W in layers)
    loss = bw.losses.BuresWasserstein(TARGET, 0.0)
    values = diagnostics.record("distance_bures", "gap")(loss, factors)
    w, Sigma = layers[1][:, 0], np.asarray(TARGET.covariance, np.float64)
    expected = w @ w + np.trace(Sigma) - 2 * np.sqrt(w @ Sigma @ w)
    assert_close(values["distance_bures"] ** 2, expected, 10 * ROUNDING)
    assert_close(values["gap"], expected, 10 * ROUNDING)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_product_of_low_rank_has_that_numerical_rank(rank):
    """Layers of full size whose product is of lower rank up to rounding."""
    rng = np.random.default_rng(3)
    inner = rng.normal(size=(3, rank)) @ rng.normal(size=(rank, 3))
    factors = tuple(jnp.asarray(W, dtype=float) for W in (inner, rng.normal(size=(3, 3))))
    values = diagnostics.record("numerical_rank", "effective_rank")(LOSS, factors)
    assert int(values["numerical_rank"]) == rank
    assert 1 - ROUNDING <= values["effective_rank"] <= rank + ROUNDING


def test_effective_rank_of_equal_singular_values_is_their_number():
    values = diagnostics.record("effective_rank")(LOSS, (3.0 * jnp.eye(3),))
    assert_close(values["effective_rank"], 3.0, ROUNDING)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values():
    """Of 2, 1 and 1 the entropy is that of three coin tosses: `log 2^{3/2}`; not of 4, 1 and 1."""
    values = diagnostics.record("effective_rank")(LOSS, (jnp.diag(jnp.array([1.0, 2.0, 1.0])),))
    assert_close(values["effective_rank"], 2**1.5, ROUNDING)


def test_cosines_are_those_of_all_eigenvectors_and_left_singular_vectors(recorded):
    """Up to the sign of each column; the alignment is the diagonal of their absolute values."""
    factors, values = recorded
    _, W, _ = numpy_point(factors)
    U, s, _ = np.linalg.svd(W, full_matrices=False)
    Q = np.linalg.eigh(np.asarray(TARGET.covariance, np.float64))[1][:, ::-1]
    expected = np.abs(Q.T @ U) * (s > 1e-6 * s[0])
    tolerance = by_precision(1e-11, 3e-4)
    assert_close(np.abs(values["cosines"]), expected, tolerance)
    assert_close(np.abs(np.diagonal(values["cosines"])), values["alignment"], tolerance)
    # The columns are orthonormal, signs and all, up to the rank.
    C = np.asarray(values["cosines"], np.float64)
    assert_close(C.T @ C, np.diag((s > 1e-6 * s[0]).astype(float)), tolerance)


def test_cosines_of_a_rotated_network_are_the_rotation():
    """In the plane of the first and the last eigenvector, and none with a direction missing."""
    c, s = np.cos(0.4), np.sin(0.4)
    R = np.array([[c, -s], [0.0, 0.0], [s, c]])
    W = jnp.asarray(np.asarray(TARGET.eigenvectors) @ (R * np.array([3.0, 2.0])), dtype=float)
    cosines = np.asarray(diagnostics.record("cosines")(LOSS, (W,))["cosines"])
    assert cosines.shape == (3, 2)
    signs = np.sign(cosines[2])
    assert_close(cosines * signs[None, :], R, by_precision(1e-13, 1e-5))
    cut = np.asarray(TARGET.eigenvectors) @ (R * np.array([3.0, 0.0]))
    cosines = diagnostics.record("cosines")(LOSS, (jnp.asarray(cut, dtype=float),))["cosines"]
    assert not np.any(cosines[:, 1])
    assert_close(np.linalg.norm(cosines[:, 0]), 1.0, by_precision(1e-13, 1e-5))


def test_cosines_have_a_row_for_each_eigenvector_of_a_target_of_low_rank():
    target = bw.Target(TARGET.covariance, rank=2)
    loss = bw.losses.BuresWasserstein(target, TAU)
    values = diagnostics.record("cosines", "alignment")(loss, gaussian_factors(0, (4, 3)))
    assert values["cosines"].shape == (2, 3)
    diagonal = np.abs(np.diagonal(values["cosines"]))
    assert_close(diagonal, values["alignment"], by_precision(1e-13, 1e-5))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("widths", [*WIDTHS, (2, 3), (3, 1, 4, 3)], ids=str)
def test_eigenvalue_errors_are_those_of_what_the_bottleneck_lets_be_learnt(widths, tau, rank):
    """`sigma_i^2 - (lambda_i - tau)_+`, nothing wanted beyond bottleneck and target's rank."""
    factors = gaussian_factors(0, widths)
    loss = bw.losses.BuresWasserstein(bw.Target(TARGET.covariance, rank=rank), tau)
    values = diagnostics.record("eigenvalue_errors", "singular_values")(loss, factors)
    entries = min(widths[0], widths[-1])
    lam = np.linalg.eigvalsh(np.asarray(TARGET.covariance, np.float64))[::-1][:entries]
    wanted = np.maximum(lam - tau, 0.0) * (np.arange(entries) < min(rank, *widths))
    squares = np.linalg.eigvalsh(numpy_point(factors)[2])[::-1][:entries]
    assert values["eigenvalue_errors"].shape == values["singular_values"].shape == (entries,)
    assert_close(values["eigenvalue_errors"], squares - wanted, ROUNDING)


@pytest.mark.parametrize("loss", [bw.losses.BuresWasserstein, bw.losses.Frobenius])
@pytest.mark.parametrize("tau", [0.0, 0.05])
def test_residual_is_the_norm_of_what_is_missing_of_the_target(loss, tau):
    """For every loss that has a target and a smoothing."""
    factors = gaussian_factors(0, (3, 2, 3))
    value = diagnostics.record("residual")(loss(TARGET, tau), factors)["residual"]
    _, _, S = numpy_point(factors)
    missing = S + tau * np.eye(3) - np.asarray(TARGET.covariance, np.float64)
    assert_close(value, np.linalg.norm(missing), ROUNDING)


def test_an_aligned_network_has_alignment_one():
    """The left singular vectors are the eigenvectors, up to sign and in order."""
    Q = np.asarray(TARGET.eigenvectors) * np.array([1.0, -1.0, 1.0])
    factors = tuple(
        jnp.asarray(W, dtype=float) for W in (np.diag([2.0, 1.0, 0.5]), Q * np.array([2.0, 1, 1]))
    )
    values = diagnostics.record("alignment")(LOSS, factors)
    assert_close(values["alignment"], np.ones(3), by_precision(1e-13, 1e-5))


def test_missing_singular_directions_count_as_not_aligned():
    Q = np.asarray(TARGET.eigenvectors)
    values = diagnostics.record("alignment")(LOSS, (jnp.asarray(Q * np.array([1.0, 0, 0])),))
    assert_close(values["alignment"], np.array([1.0, 0.0, 0.0]), by_precision(1e-13, 1e-5))


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("depth", [1, 2])
def test_gap_and_distances_vanish_at_the_optimum(depth, tau):
    """The smallest eigenvalue is 0.1 and the middle one 0.316, so `tau` outgrows them in turn."""
    factors = network_at(np.asarray(landscape.minimizer(TARGET, 3, tau=tau), np.float64), depth)
    loss = bw.losses.BuresWasserstein(TARGET, tau)
    names = ("gap", "distance_frobenius", "distance_bures", "gradient_norm", "eigenvalue_errors")
    values = diagnostics.record(*names)(loss, factors)
    assert_close(values["gap"], 0.0, by_precision(1e-13, 1e-5))
    assert_close(values["distance_frobenius"], 0.0, by_precision(1e-13, 1e-5))
    assert_close(values["distance_bures"], 0.0, by_precision(1e-7, 2e-3))
    assert_close(values["gradient_norm"], 0.0, by_precision(1e-7, 5e-3))
    assert_close(values["eigenvalue_errors"], np.zeros(3), by_precision(1e-13, 1e-5))


def test_unknown_quantities_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown quantity 'gaps'; choose from loss, gap, "):
        diagnostics.record("loss", "gaps")


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("gap", "minimum"),
        ("alignment", "target"),
        ("cosines", "target"),
        ("eigenvalue_errors", "target"),
        ("residual", "tau"),
        ("distance_bures", "tau"),
    ],
)
def test_plain_losses_are_refused_where_their_optimum_is_asked_for(name, attribute):
    plain = Partial(bw.smoothed_bures, target=TARGET, tau=0.1)
    with pytest.raises(ValueError, match=f"loss must offer `{attribute}`.*Partial does not"):
        diagnostics.record(name)(plain, (jnp.eye(3),))


def test_the_standard_probe_records_the_gap_of_losses_that_know_it():
    factors = gaussian_factors(0, (3, 3))
    plain = Partial(bw.smoothed_bures, target=TARGET, tau=TAU)
    assert set(diagnostics.standard(plain, factors)) == {"loss", "gradient_norm"}
    known = diagnostics.standard(LOSS, factors)
    assert set(known) == {"loss", "gap", "gradient_norm"}
    assert_close(known["loss"] - known["gap"], LOSS.minimum(3), ROUNDING)


def test_a_probe_may_be_any_function_of_loss_and_parameters():
    def probe(loss, factors):
        return {"matrix": bw.end_to_end(factors), "twice": 2 * loss(bw.end_to_end(factors))}

    start = gaussian_factors(0, (3, 2, 3))
    run = bw.gradient_descent(LOSS, start, optax.sgd(0.1), num_steps=4, probe=probe)
    assert_close(run.probes["matrix"][0], numpy_point(start)[1], ROUNDING)
    assert_close(run.probes["matrix"][-1], numpy_point(run.factors)[1], ROUNDING)
    for matrix, twice in zip(run.probes["matrix"], run.probes["twice"], strict=True):
        assert_close(twice, 2 * LOSS(matrix), ROUNDING)


class Product(eqx.Module):
    """`W = L R^T`: what the layers `(R^T, L)` are to `Deep`."""

    def assemble(self, params):
        return params["L"] @ params["R"].T

    def pullback(self, params, G):
        return {"L": G @ params["R"], "R": G.T @ params["L"]}

    def bottleneck(self, params):
        return params["L"].shape[1]


def test_named_quantities_follow_another_factorization():
    """The same matrices read as `L R^T` and as two layers move alike and are probed alike."""
    R, L = (np.asarray(W) for W in gaussian_factors(0, (3, 2, 3)))
    names = ("loss", "gap", "gradient_norm", "eigenvalue_errors", "residual", "distance_bures")
    options = {"num_steps": 3, "probe": diagnostics.record(*names)}
    deep = bw.gradient_descent(LOSS, (jnp.asarray(R), jnp.asarray(L)), optax.sgd(0.1), **options)
    params = {"L": jnp.asarray(L), "R": jnp.asarray(R.T)}
    other = bw.gradient_descent(LOSS, params, optax.sgd(0.1), factorization=Product(), **options)
    for name in names:
        assert_close(other.probes[name], deep.probes[name], 10 * ROUNDING)


def test_a_factorization_without_a_bottleneck_has_that_of_its_matrix():
    """What a factorization has to offer is `assemble` and `pullback`."""

    class Symmetric:
        def assemble(self, params):
            return params["X"] + params["X"].T

        def pullback(self, params, G):
            return {"X": G + G.T}

    start = {"X": jnp.eye(2) / 4}
    loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), 0.0)
    run = bw.gradient_descent(loss, start, optax.sgd(0.1), num_steps=100, factorization=Symmetric())
    assert_close(run.factors["X"], np.diag([1.0, 0.5]), by_precision(1e-12, 1e-5))
    assert_close(run.probes["gap"][-1], np.zeros(()), by_precision(1e-12, 1e-5))
