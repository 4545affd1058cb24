"""Initial factors: laws by moments, even splits by identities, starts by their bounds."""

import inspect
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from helpers import assert_close, by_precision, random_target

import bwflow as bw
from bwflow import initializers
from bwflow.initializers import INITIALIZERS

KEY = jax.random.key(0)
EPS = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
WIDTHS = [(4, 3), (3, 4, 3), (4, 2, 3), (3, 4, 2, 4), (4, 3, 4, 3, 4), (3, 4, 4, 2, 3, 4)]
TOL = 50 * EPS


def singular_values(W):
    return np.linalg.svd(np.asarray(W, np.float64), compute_uv=False)


def best_of_rank(W, rank):
    U, s, Vt = np.linalg.svd(np.asarray(W, np.float64), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vt[:rank]


def in_float64(factors):
    return [np.asarray(W, np.float64) for W in factors]


def product(factors):
    return reduce(lambda W, layer: layer @ W, in_float64(factors))


def assert_balanced(factors, atol=TOL):
    for inner, outer in zip(in_float64(factors), in_float64(factors[1:]), strict=False):
        gram = outer.T @ outer
        assert_close(gram, inner @ inner.T, atol * max(1.0, np.abs(gram).max()))


LAWS = [
    ("gaussian", {}, lambda a, b: (1 / a, 3.0)),
    ("gaussian", {"gamma": 0.3}, lambda a, b: (a**-0.3, 3.0)),
    ("gaussian", {"gamma": -0.5}, lambda a, b: (a**0.5, 3.0)),
    ("gaussian", {"std": 0.3}, lambda a, b: (0.09, 3.0)),
    ("gaussian", {"std": 0.3, "gamma": 2.0}, lambda a, b: (0.09, 3.0)),
    ("uniform", {}, lambda a, b: (1 / a, 1.8)),
    ("uniform", {"bound": 0.6}, lambda a, b: (0.12, 1.8)),
    ("xavier_normal", {}, lambda a, b: (2 / (a + b), 3.0)),
    ("xavier_normal", {"gain": 0.5}, lambda a, b: (0.5 / (a + b), 3.0)),
    ("xavier_uniform", {}, lambda a, b: (2 / (a + b), 1.8)),
    ("kaiming_normal", {}, lambda a, b: (2 / a, 3.0)),
    ("kaiming_normal", {"gain": 1.0}, lambda a, b: (1 / a, 3.0)),
    ("kaiming_uniform", {}, lambda a, b: (2 / a, 1.8)),
    ("kaiming_uniform", {"gain": 3.0}, lambda a, b: (9 / a, 1.8)),
]


@pytest.mark.parametrize(("name", "options", "law"), LAWS)
def test_layers_have_their_law_and_are_independent(name, options, law):
    """Mean 0, variance and kurtosis by formula (5 standard errors), no correlation of layers."""
    widths = (40, 160, 160)
    factors = INITIALIZERS[name](**options)(KEY, widths)
    for W, a, b in zip(factors, widths, widths[1:], strict=False):
        variance, kurtosis = law(a, b)
        z = np.asarray(W, np.float64).ravel() / variance**0.5
        error = z.size**-0.5
        assert abs(z.mean()) < 5 * error
        assert abs((z**2).mean() - 1) < 5 * error * (kurtosis - 1) ** 0.5
        # The eighth moments are 105 and 9: standard errors of z^4 below 10 and 3.
        assert abs((z**4).mean() - kurtosis) < 5 * error * (10 if kurtosis == 3.0 else 3)
        if kurtosis == 1.8:
            assert 0.99 * 3**0.5 < np.abs(z).max() <= 3**0.5 * (1 + 4 * EPS)
    first, second = (np.asarray(W, np.float64).ravel() for W in factors)
    correlation = np.corrcoef(first, second[: first.size])[0, 1]
    assert abs(correlation) < 5 * first.size**-0.5


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_gaussian_layers_are_standard_normals_times_a_power_of_their_fan_in(gamma):
    """`std_j = d_{j-1}^{-gamma/2}`, over the draws of standard deviation 1."""
    widths = (4, 7, 1, 9)
    standard = initializers.gaussian(1.0)(KEY, widths)
    scaled = initializers.gaussian(gamma=gamma)(KEY, widths)
    for W, Z, fan_in in zip(scaled, standard, widths, strict=False):
        factor = fan_in ** (-gamma / 2)
        assert_close(W, factor * np.asarray(Z, np.float64), 8 * EPS * factor)


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_registered_factories_draw_layers_that_fit_the_widths(name):
    for widths in ((4, 3), (3, 4, 2, 4)):
        factors = INITIALIZERS[name]()(KEY, widths)
        assert bw.factors.widths(factors) == widths
        other = INITIALIZERS[name]()(jax.random.key(1), widths)
        same = all(np.array_equal(V, W) for V, W in zip(factors, other, strict=True))
        assert same == (name == "identity")


def test_every_public_factory_without_required_arguments_is_registered():
    factories = {
        name
        for name, value in vars(initializers).items()
        if inspect.isfunction(value)
        and value.__module__.startswith(initializers.__name__)
        and not name.startswith("_")
        and all(
            p.default is not p.empty or p.kind is p.VAR_KEYWORD
            for p in inspect.signature(value).parameters.values()
        )
    }
    assert set(INITIALIZERS) == factories


@pytest.mark.parametrize("widths", WIDTHS)
def test_orthogonal_layers_are_scaled_isometries(widths):
    for W in initializers.orthogonal(0.7)(KEY, widths):
        W = np.asarray(W, np.float64)
        gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
        assert_close(gram, 0.49 * np.eye(len(gram)), TOL)


def test_orthogonal_layers_have_no_preferred_direction():
    """First and second moments of uniform orthonormal columns: 0 and I / n."""
    draw = jax.vmap(lambda key: initializers.orthogonal()(key, (2, 3))[0])
    Q = np.asarray(draw(jax.random.split(KEY, 4000)), np.float64)
    assert np.abs(Q.mean(axis=0)).max() < 5 * (3 * 4000) ** -0.5
    second = np.einsum("kij,klj->il", Q, Q) / 4000
    assert_close(second, 2 / 3 * np.eye(3), 0.03)


@pytest.mark.parametrize("widths", WIDTHS)
def test_identity_is_the_scaled_identity_up_to_the_bottleneck(widths):
    factors = initializers.identity(0.5)(KEY, widths)
    for W in factors:
        np.testing.assert_array_equal(W, 0.5 * np.eye(*W.shape))
    expected = np.zeros((widths[-1], widths[0]))
    for i in range(min(widths)):
        expected[i, i] = 0.5 ** (len(widths) - 1)
    np.testing.assert_array_equal(product(factors), expected)


@pytest.mark.parametrize("widths", WIDTHS)
def test_balanced_factors_multiply_to_the_best_approximation_of_the_draw(widths):
    """The draw itself where the bottleneck permits; else its truncated SVD (numpy)."""
    ends = (widths[0], widths[-1])
    (drawn,) = initializers.xavier_normal(2.0)(KEY, ends)
    factors = initializers.balanced(initializers.xavier_normal(2.0), scale=0.3)(KEY, widths)
    expected = 0.3 * best_of_rank(drawn, min(widths))
    if min(widths) == min(ends):
        assert_close(expected, 0.3 * np.asarray(drawn, np.float64), TOL)
    assert_close(product(factors), expected, TOL)
    assert_balanced(factors)


@pytest.mark.parametrize("widths", WIDTHS)
def test_balanced_layers_have_the_nth_roots_of_the_singular_values(widths):
    """Every layer has the singular values `s^{1/N}` and zeros."""
    factors = initializers.balanced()(KEY, widths)
    (drawn,) = initializers.gaussian()(KEY, (widths[0], widths[-1]))
    r, depth = min(widths), len(widths) - 1
    root = singular_values(drawn)[:r] ** (1 / depth)
    for W in factors:
        layer = singular_values(W)
        assert_close(layer[:r], root, TOL)
        assert_close(layer[r:], np.zeros(layer.size - r), TOL)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("init", [initializers.gaussian(), initializers.orthogonal()])
def test_rebalanced_layers_multiply_to_the_product_of_the_drawn_network(widths, init):
    """Nothing is cut, whatever the bottleneck, and every layer has the roots `s^{1/N}`."""
    drawn = 0.3 * product(init(KEY, widths))
    factors = initializers.rebalanced(init, scale=0.3)(KEY, widths)
    assert bw.factors.widths(factors) == widths
    assert_close(product(factors), drawn, TOL)
    assert_balanced(factors)
    root = singular_values(drawn)[: min(widths)] ** (1 / (len(widths) - 1))
    for W in factors:
        assert_close(singular_values(W)[: root.size], root, 2 * TOL)


def test_rebalanced_and_balanced_agree_for_one_layer_and_for_no_other():
    for widths in ((4, 3), (3, 3, 3)):
        one, other = (f()(KEY, widths) for f in (initializers.balanced, initializers.rebalanced))
        assert (len(widths) == 2) == np.array_equal(product(one), product(other))


@pytest.mark.parametrize("depth", [1, 4])
def test_rebalanced_singular_values_spread_exponentially_with_depth(depth):
    """`|det W|^2` is the product of chi-squared variables of 1 to n degrees, one set per layer."""
    n, count = 3, 4000
    init = initializers.rebalanced()
    draw = jax.jit(jax.vmap(lambda key: bw.end_to_end(init(key, (n,) * (depth + 1)))))
    W = np.asarray(draw(jax.random.split(KEY, count)), np.float64)
    logs = 2 * np.linalg.slogdet(W)[1]
    half = np.arange(1, n + 1) / 2
    mean = depth * np.sum(scipy.special.digamma(half) + np.log(2 / n))
    variance = depth * np.sum(scipy.special.polygamma(1, half))
    assert abs(logs.mean() - mean) < 5 * (variance / count) ** 0.5
    assert abs(logs.var() / variance - 1) < 0.2


def test_rebalanced_cuts_to_the_rank_and_raises_to_the_minimum():
    widths = (6, 5, 4, 6)
    drawn = product(initializers.gaussian()(KEY, widths))
    U, s, Vt = np.linalg.svd(drawn)
    floor = 1.5 * s[2]
    factors = initializers.rebalanced(rank=3, min_singular_value=floor)(KEY, widths)
    assert_close(product(factors), (U[:, :3] * np.maximum(s[:3], floor)) @ Vt[:3], TOL)
    assert_balanced(factors)


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_balanced_keeps_at_most_the_rank_asked_for(rank):
    widths = (6, 5, 4, 6)
    (drawn,) = initializers.gaussian()(KEY, (6, 6))
    factors = initializers.balanced(rank=rank)(KEY, widths)
    assert_close(product(factors), best_of_rank(drawn, min(rank, 4)), TOL)
    assert np.linalg.matrix_rank(np.asarray(product(factors))) == min(rank, 4)
    assert_balanced(factors)
    (single,) = initializers.balanced(rank=rank)(KEY, (6, 6))
    assert_close(single, best_of_rank(drawn, min(rank, 6)), TOL)


@pytest.mark.parametrize("widths", WIDTHS)
def test_balanced_raises_singular_values_to_the_minimum(widths):
    """They are `max(s, floor)`, the singular vectors are kept."""
    (drawn,) = initializers.gaussian()(KEY, (widths[0], widths[-1]))
    U, s, Vt = np.linalg.svd(np.asarray(drawn, np.float64), full_matrices=False)
    r = min(widths)
    floor = 1.5 * s[r - 1]
    raised = np.maximum(s[:r], floor)
    factors = initializers.balanced(min_singular_value=floor)(KEY, widths)
    assert_close(product(factors), (U[:, :r] * raised) @ Vt[:r], TOL)
    assert_balanced(factors)


def test_balanced_minimum_lifts_a_zero_matrix_to_an_isometry():
    factors = initializers.balanced(scale=0.0, min_singular_value=0.5)(KEY, (3, 4, 5))
    W = np.asarray(product(factors), np.float64)
    assert_close(W.T @ W, 0.25 * np.eye(3), TOL)


def test_balanced_scale_multiplies_the_end_to_end_matrix_and_can_be_differentiated():
    """`d W / d scale = W / scale`, also over a start of repeated singular values and of rank 1."""

    def start(scale, init, **options):
        factors = initializers.balanced(init, scale=scale, **options)(KEY, (4, 4, 4))
        return bw.end_to_end(factors)

    for init, options in ((initializers.orthogonal(), {}), (None, {"rank": 1})):
        W, dW = jax.jvp(partial(start, init=init, **options), (0.2,), (1.0,))
        assert_close(dW, np.asarray(W, np.float64) / 0.2, 20 * TOL)
        assert_close(start(0.4, init, **options), 2 * np.asarray(W, np.float64), TOL)


@pytest.mark.parametrize("widths", WIDTHS)
def test_split_evenly_is_a_balanced_factorisation(widths):
    W = np.random.default_rng(3).normal(size=(widths[-1], widths[0]))
    factors = initializers.split_evenly(jnp.asarray(W, float), widths)
    assert bw.factors.widths(factors) == widths
    rank = min(widths)
    assert_close(product(factors), best_of_rank(W, rank), 4 * TOL)
    assert_balanced(factors, 4 * TOL)
    if len(widths) == 2:
        np.testing.assert_array_equal(factors[0], jnp.asarray(W, float))


def test_split_evenly_gives_rounding_no_root():
    """A matrix of rank 1 has layers of rank 1, not ones with entries `eps^{1/5}`."""
    rng = np.random.default_rng(4)
    W = jnp.asarray(np.outer(rng.normal(size=6), rng.normal(size=6)), dtype=float)
    factors = initializers.split_evenly(W, (6,) * 6)
    assert_close(product(factors), W, TOL)
    for layer in factors:
        assert_close(singular_values(layer)[1:], np.zeros(5), TOL)


def test_split_evenly_of_zero_is_zero():
    factors = initializers.split_evenly(jnp.zeros((3, 2)), (2, 4, 3))
    assert not any(np.any(W) for W in factors)


@pytest.mark.parametrize("widths", [w for w in WIDTHS if min(w) >= 2])
def test_low_rank_has_its_rank_and_is_balanced(widths):
    factors = initializers.low_rank(2, scale=0.5)(KEY, widths)
    assert_balanced(factors)
    for W in (*in_float64(factors), product(factors)):
        s = singular_values(W)
        assert s[1] > 1e-3
        assert_close(s[2:], np.zeros(s.size - 2), TOL)


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_entries_have_variance_scale_squared_over_p(rank):
    """Of the product of two Gaussians: mean square `scale^2 / p`, and no mean."""
    init = initializers.low_rank(rank, scale=0.5)
    draw = jax.jit(jax.vmap(lambda key: bw.end_to_end(init(key, (4, 4, 3)))))
    W = np.asarray(draw(jax.random.split(KEY, 4000)), np.float64)
    squares = (W**2).mean(axis=(1, 2)) / (0.25 / 4)
    assert abs(squares.mean() - 1) < 5 * squares.std() / 4000**0.5 < 0.15
    assert np.abs(W.mean(axis=0)).max() < 5 * 0.5 * (4 * 4000) ** -0.5


NEAR = [((4, 4, 4), 4), ((2, 4), 4), ((7, 5, 4), 4), ((6, 3, 5, 4), 4), ((5, 3, 4), 2)]


@pytest.mark.parametrize(("widths", "rank"), NEAR)
def test_near_target_starts_inside_its_bures_wasserstein_ball(widths, rank):
    """With `l = lambda_k^{1/2}`: `BW(W W^T, Sigma_k) <= radius l`, `sigma_k >= (1 - radius) l`."""
    target = bw.Target(random_target(5, 4).covariance, rank=rank)
    k = min(*widths, rank)
    lam = np.asarray(target.eigenvalues[:k], np.float64)
    vectors = np.asarray(target.eigenvectors[:, :k], np.float64)
    cut = jnp.asarray((vectors * lam) @ vectors.T, dtype=float)
    init = initializers.near_target
    draw = jax.jit(jax.vmap(lambda key, radius: init(target, radius=radius)(key, widths)))
    radii = np.repeat([0.0, 0.5, 0.95], 4)
    batch = draw(jax.random.split(KEY, radii.size), jnp.asarray(radii, dtype=float))
    for i, radius in enumerate(radii):
        factors = [W[i] for W in in_float64(batch)]
        assert [W.shape for W in factors] == list(zip(widths[1:], widths, strict=False))
        assert_balanced(factors, 4 * TOL)
        W = product(factors)
        covariance = jnp.asarray((W @ W.T + (W @ W.T).T) / 2, dtype=float)
        distance = float(bw.bures_wasserstein(covariance, cut)) ** 0.5
        assert distance <= radius * lam[-1] ** 0.5 + by_precision(1e-7, 1e-3)
        s = singular_values(W)
        assert s[k - 1] >= (1 - radius) * lam[-1] ** 0.5 - TOL
        assert_close(s[min(widths) :], np.zeros(s.size - min(widths)), TOL)


def test_near_target_moves_the_root_by_the_radius():
    """Its distance in units of `lambda_k^{1/2}` is below the radius, and is not much smaller."""
    target = random_target(5, 4)
    draw = jax.jit(jax.vmap(lambda key: initializers.near_target(target)(key, (6, 4))[0]))
    distance = jax.jit(jax.vmap(lambda W: bw.smoothed_bures(W, target, tau=0.0)))
    squared = distance(draw(jax.random.split(KEY, 50))) / target.eigenvalues[-1]
    assert float(jnp.max(squared)) <= 0.25 * (1 + 1e-5)
    assert float(jnp.min(squared)) > 0.1 * 0.25


def test_near_target_start_at_radius_zero_attains_the_minimum():
    target = random_target(6, 5)
    factors = initializers.near_target(target, radius=0.0)(KEY, (4, 3, 5))
    loss = bw.smoothed_bures(bw.end_to_end(factors), target, tau=0.0)
    assert_close(loss, np.asarray(bw.landscape.minimum(target, 3)), 20 * EPS)


@pytest.mark.parametrize(("widths", "rank"), NEAR)
@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_near_target_starts_near_the_smoothed_optimum(widths, rank, tau):
    """`BW(W W^T, S*) <= d`, `L^{1/2} <= L*^{1/2} + d` and `sigma_k >= (l_k - tau)_+^{1/2} - d`.

    With `d = radius l_k^{1/2}`. The eigenvalues are 1, 0.464, 0.215 and 0.1.
    """
    target = bw.Target(random_target(5, 4).covariance, rank=rank)
    k = min(*widths, rank)
    lam = np.asarray(target.eigenvalues[:k], np.float64)
    lowered = np.maximum(lam - tau, 0.0)
    vectors = np.asarray(target.eigenvectors[:, :k], np.float64)
    root = vectors * lowered**0.5
    least = float(bw.landscape.minimum(target, min(widths), tau=tau)) ** 0.5
    init = initializers.near_target
    draw = jax.jit(jax.vmap(lambda key, radius: init(target, radius=radius, tau=tau)(key, widths)))
    radii = np.repeat([0.0, 0.5, 0.95], 4)
    batch = draw(jax.random.split(KEY, radii.size), jnp.asarray(radii, dtype=float))
    rounding = by_precision(1e-12, 1e-5)
    for i, radius in enumerate(radii):
        factors = [W[i] for W in in_float64(batch)]
        assert_balanced(factors, 4 * TOL)
        W, distance = product(factors), radius * lam[-1] ** 0.5
        squared = (W**2).sum() + (root**2).sum() - 2 * singular_values(root.T @ W).sum()
        assert squared <= distance**2 + rounding
        loss = float(bw.smoothed_bures(jnp.asarray(W, dtype=float), target, tau=tau))
        assert max(loss, 0.0) ** 0.5 <= least + distance + rounding**0.5
        assert singular_values(W)[k - 1] >= lowered[-1] ** 0.5 - distance - rounding
        if k == 4 and tau <= lam[-1]:
            margin = lam[-1] ** 0.5 - max(loss, 0.0) ** 0.5
            assert margin >= (1 - radius) * lam[-1] ** 0.5 - rounding**0.5


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.3, 2.0])
def test_near_target_start_at_radius_zero_is_the_smoothed_optimum(tau):
    target = random_target(6, 5)
    W = product(initializers.near_target(target, radius=0.0, tau=tau)(KEY, (4, 3, 5)))
    assert_close(W @ W.T, np.asarray(bw.landscape.minimizer(target, 3, tau=tau)), TOL)


def test_near_target_maps_over_smoothings_and_has_a_slope_in_them():
    """`-Omega diag((lambda - tau)^{-1/2} / 2) V^T`; directions below the smoothing stand still."""

    def start(tau, radius=0.5):
        init = initializers.near_target(TARGET, radius=radius, tau=tau)
        return bw.end_to_end(init(KEY, (3, 3, 3)))

    taus = [0.0, 0.3, 0.7, 3.0]
    values, slopes = jax.vmap(lambda tau: jax.jvp(start, (tau,), (jnp.ones(()),)))(jnp.array(taus))
    lam = np.array([2.0, 1.0, 0.5])
    omega_v = np.asarray(start(0.0, radius=0.0), np.float64) / lam[:, None] ** 0.5
    for i, tau in enumerate(taus):
        assert_close(values[i], start(tau), TOL)
        rates = np.where(lam > tau, 0.5 * np.abs(lam - tau) ** -0.5, 0.0)
        assert_close(slopes[i], -rates[:, None] * omega_v, by_precision(1e-11, 1e-4))


def test_near_target_rotates_the_latent_space_at_random():
    """`W^T W` has mean `tr / p` times the identity over keys: no direction is preferred."""
    target = random_target(7, 3)
    init = initializers.near_target(target, radius=0.5)
    draw = jax.jit(jax.vmap(lambda key: bw.end_to_end(init(key, (2, 3)))))
    W = np.asarray(draw(jax.random.split(KEY, 4000)), np.float64)
    gram = np.einsum("kij,kil->kjl", W, W)
    error = 5 * gram.std(axis=0).max() / 4000**0.5
    assert_close(gram.mean(axis=0), np.trace(gram.mean(axis=0)) / 2 * np.eye(2), error)
    assert np.abs(W.mean(axis=0)).max() < 5 * W.std() / 4000**0.5


INITS = {
    "gaussian": lambda: initializers.gaussian(0.1),
    "gaussian_fan_in": initializers.gaussian,
    "uniform": lambda: initializers.uniform(0.3),
    "uniform_fan_in": initializers.uniform,
    "xavier_normal": lambda: initializers.xavier_normal(0.7),
    "xavier_uniform": initializers.xavier_uniform,
    "kaiming_normal": initializers.kaiming_normal,
    "kaiming_uniform": initializers.kaiming_uniform,
    "orthogonal": lambda: initializers.orthogonal(0.3),
    "identity": lambda: initializers.identity(0.3),
    "gaussian_gamma": lambda: initializers.gaussian(gamma=0.4),
    "balanced": lambda: initializers.balanced(scale=0.3, min_singular_value=0.1),
    "rebalanced": lambda: initializers.rebalanced(scale=0.3, min_singular_value=0.1),
    "low_rank": lambda: initializers.low_rank(2, scale=0.3),
    "near_target": lambda: initializers.near_target(random_target(8, 4)),
}


@pytest.mark.parametrize("name", sorted(INITS))
def test_dtype_is_the_one_asked_for_and_float_the_default(name):
    init = INITS[name]()
    for dtype in (jnp.float32, float, "float32", by_precision(np.float64, np.float32)):
        expected = jax.dtypes.canonicalize_dtype(dtype)
        assert all(W.dtype == expected for W in init(KEY, (3, 4, 4), dtype))
    assert all(W.dtype == by_precision(jnp.float64, jnp.float32) for W in init(KEY, (3, 4, 4)))


@pytest.mark.parametrize("name", sorted(set(INITS) - {"near_target"}))
def test_float32_draws_do_not_depend_on_whether_float64_is_enabled(name):
    drawn = []
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            factors = INITS[name]()(jax.random.key(2), (3, 4, 4), jnp.float32)
            drawn.append([np.asarray(W) for W in factors])
    for V, W in zip(*drawn, strict=True):
        assert V.dtype == W.dtype == np.float32
        np.testing.assert_array_equal(V, W)


TARGET = bw.Target(jnp.diag(jnp.array([2.0, 1.0, 0.5])))
SCALED = {
    "gaussian": initializers.gaussian,
    "uniform": initializers.uniform,
    "xavier_normal": initializers.xavier_normal,
    "xavier_uniform": initializers.xavier_uniform,
    "kaiming_normal": initializers.kaiming_normal,
    "kaiming_uniform": initializers.kaiming_uniform,
    "orthogonal": initializers.orthogonal,
    "identity": initializers.identity,
    "gaussian_gamma": lambda gamma: initializers.gaussian(gamma=gamma),
    "balanced": lambda scale: initializers.balanced(scale=scale),
    "rebalanced": lambda scale: initializers.rebalanced(scale=scale),
    "rebalanced_inner": lambda gamma: initializers.rebalanced(initializers.gaussian(gamma=gamma)),
    "balanced_floor": lambda floor: initializers.balanced(min_singular_value=floor),
    "balanced_inner": lambda std: initializers.balanced(initializers.gaussian(std)),
    "low_rank": lambda scale: initializers.low_rank(2, scale=scale),
    "near_target": lambda radius: initializers.near_target(TARGET, radius=radius),
    "near_target_tau": lambda tau: initializers.near_target(TARGET, tau=tau),
}


@pytest.mark.parametrize("name", sorted(SCALED))
def test_vmap_over_keys_and_traced_scales_is_a_loop_over_them(name):
    """In float32 layers too, whatever the precision of the scale."""
    scales, keys = [0.2, 1.8], jax.random.split(jax.random.key(9), 2)

    def draw(key, scale):
        return SCALED[name](scale)(key, (3, 4, 3), jnp.float32)

    batch = jax.jit(jax.vmap(draw))(keys, jnp.asarray(scales, dtype=float))
    for i, scale in enumerate(scales):
        expected = draw(keys[i], scale)
        for V, W in zip(batch, expected, strict=True):
            assert V.dtype == jnp.float32
            assert_close(V[i], W, 5e-6)
        other = draw(keys[i], scales[1 - i])
        assert np.abs(product(expected) - product(other)).max() > 1e-2


def test_initializer_under_jit_traces_once_for_all_keys_and_scales():
    traces = []

    @jax.jit
    def draw(key, scale):
        traces.append(1)
        return initializers.balanced(scale=scale)(key, (3, 4, 4))

    for seed, scale in ((0, 0.1), (1, 0.2), (2, 0.3)):
        draw(jax.random.key(seed), scale)
    assert len(traces) == 1


BAD = [
    (lambda: initializers.gaussian(-1.0), r"std must be at least 0.0; got -1"),
    (lambda: initializers.gaussian(float("nan")), r"std must be a finite number; got nan"),
    (lambda: initializers.gaussian(gamma=float("inf")), r"gamma must be a finite number; got inf"),
    (lambda: initializers.gaussian(gamma=jnp.ones(2)), r"gamma must be a scalar; got shape"),
    (lambda: initializers.gaussian(jnp.ones(2)), r"std must be a scalar; got shape \(2,\)"),
    (lambda: initializers.uniform(-0.5), r"bound must be at least 0.0; got -0.5"),
    (lambda: initializers.xavier_normal(-1.0), r"gain must be at least 0.0; got -1"),
    (lambda: initializers.xavier_uniform(-1.0), r"gain must be at least 0.0"),
    (lambda: initializers.kaiming_normal(float("inf")), r"gain must be a finite number; got inf"),
    (lambda: initializers.kaiming_uniform(-2.0), r"gain must be at least 0.0; got -2"),
    (lambda: initializers.orthogonal(-1.0), r"scale must be at least 0.0"),
    (lambda: initializers.identity(-1.0), r"scale must be at least 0.0"),
    (lambda: initializers.balanced(scale=-1.0), r"scale must be at least 0.0"),
    (
        lambda: initializers.balanced(min_singular_value=-0.1),
        r"min_singular_value must be at least 0.0; got -0.1",
    ),
    (lambda: initializers.balanced(rank=0), r"rank must be a positive integer; got 0"),
    (lambda: initializers.rebalanced(scale=-1.0), r"scale must be at least 0.0; got -1"),
    (
        lambda: initializers.rebalanced(min_singular_value=float("nan")),
        r"min_singular_value must be a finite number; got nan",
    ),
    (lambda: initializers.rebalanced(rank=1.5), r"rank must be a positive integer; got 1.5"),
    (lambda: initializers.low_rank(-1), r"rank must be a positive integer; got -1"),
    (lambda: initializers.low_rank(1, scale=-1.0), r"scale must be at least 0.0"),
    (
        lambda: initializers.low_rank(3)(KEY, (4, 2, 4)),
        r"rank must be at most the bottleneck 2 of widths \(4, 2, 4\); got 3",
    ),
    (lambda: initializers.near_target(TARGET, radius=-0.5), r"radius must be at least 0.0"),
    (lambda: initializers.near_target(TARGET, tau=-0.5), r"tau must be at least 0.0; got -0.5"),
    (
        lambda: initializers.near_target(TARGET)(KEY, (3, 4)),
        r"widths must end with 3, the dimension of the target; got \(3, 4\)",
    ),
    (
        lambda: initializers.split_evenly(jnp.ones((3, 2)), (3, 4, 2)),
        r"W must have shape \(2, 3\) for widths \(3, 4, 2\); got \(3, 2\)",
    ),
    (lambda: initializers.split_evenly(jnp.ones(3), (1, 3)), r"W must have 2 dimensions"),
    (lambda: initializers.split_evenly(jnp.ones((2, 2), int), (2, 2)), r"W must be real floating"),
    (lambda: initializers.split_evenly(jnp.full((2, 2), jnp.nan), (2, 2)), r"W must be finite"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_bad_input_is_refused_by_name(call, message, as_installed):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", sorted(INITS))
def test_every_initializer_refuses_bad_widths_and_dtypes(name):
    init = INITS[name]()
    with pytest.raises(ValueError, match=r"widths must have at least two entries .* got \(4,\)"):
        init(KEY, (4,))
    with pytest.raises(ValueError, match=r"widths must have at least two entries .* got \(\)"):
        init(KEY, ())
    with pytest.raises(ValueError, match=r"widths\[1\] must be a positive integer; got 0"):
        init(KEY, (4, 0, 4))
    with pytest.raises(ValueError, match=r"widths\[0\] must be a positive integer; got -4"):
        init(KEY, (-4, 4))
    for dtype in (jnp.int32, jnp.complex64):
        with pytest.raises(ValueError, match=r"dtype must be float32, float64 or float, .*; got"):
            init(KEY, (4, 4), dtype)


def test_values_are_not_looked_at_under_a_trace():
    """A negative scale that only the trace knows of is no error: it gives minus the draw."""
    positive = initializers.gaussian(0.5)(KEY, (3, 3))[0]
    negative = jax.jit(lambda std: initializers.gaussian(std)(KEY, (3, 3))[0])(-0.5)
    assert_close(negative, -positive, 4 * EPS)


def test_a_forgotten_key_and_forgotten_widths_are_named(as_installed):
    for start in (initializers.balanced(), initializers.gaussian(), initializers.low_rank(1)):
        with pytest.raises(ValueError, match=r"key must be one random key.*got \(4, 4, 4\)"):
            start((4, 4, 4))
        with pytest.raises(ValueError, match="widths must have at least two entries"):
            start(jax.random.key(0))
