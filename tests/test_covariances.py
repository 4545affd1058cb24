"""Targets against numpy, their derivatives against finite differences, recipes against formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, by_precision

import bwflow as bw
from bwflow import covariances

KEY = jax.random.key(0)
EPS = float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps)
TOL = 50 * EPS


def rng(seed):
    return np.random.default_rng(seed)


def covariance(seed, eigenvalues):
    """A float64 covariance with the given eigenvalues in a random basis."""
    Q, _ = np.linalg.qr(rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    Sigma = (Q * np.asarray(eigenvalues, np.float64)) @ Q.T
    return (Sigma + Sigma.T) / 2


def device(x):
    return jnp.asarray(x, dtype=float)


def assert_factorizes(target, Sigma, atol=TOL):
    """`B B^T = Omega diag(lambda) Omega^T = Sigma`, orthonormal `Omega`, decreasing `lambda`."""
    B, lam, Omega = (
        np.asarray(part, np.float64)
        for part in (target.factor, target.eigenvalues, target.eigenvectors)
    )
    m = target.rank
    assert B.shape == Omega.shape == (len(Sigma), m)
    assert lam.shape == (m,)
    assert target.dim == len(Sigma)
    scale = np.abs(Sigma).max()
    assert_close(B @ B.T, Sigma, atol * scale)
    assert_close((Omega * lam) @ Omega.T, Sigma, atol * scale)
    assert_close(target.covariance, Sigma, atol * scale)
    assert_close(Omega.T @ Omega, np.eye(m), atol)
    assert_close(lam, np.linalg.eigvalsh(Sigma)[::-1][:m], atol * scale)
    assert np.all(np.diff(lam) <= 0)


@pytest.mark.parametrize(
    "eigenvalues",
    [(3.0, 2.0, 0.5), (1.0, 1.0, 1.0), (5.0, 2.0, 2.0, 0.0), (1e4, 1.0, 1e-2), (7.0, 0.0, 0.0)],
    ids=str,
)
def test_target_of_a_covariance_has_its_eigenpairs(eigenvalues):
    Sigma = covariance(0, eigenvalues)
    target = bw.Target(device(Sigma))
    assert target.rank == np.count_nonzero(eigenvalues)
    assert_factorizes(target, Sigma)


def test_rank_is_cut_at_n_eps_times_the_largest_eigenvalue():
    """Eigenvalues on either side of the tolerance, where a diagonal matrix keeps them exact."""
    tolerance = 4 * EPS * 8.0
    target = bw.Target(device(np.diag([8.0, 1.0, 4 * tolerance, tolerance / 4])))
    assert target.rank == 3
    assert_close(target.eigenvalues[:2], np.array([8.0, 1.0]), TOL)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_rank_keeps_the_leading_eigenpairs(rank):
    """The best approximation of that rank (numpy), whichever way the target came."""
    lam = np.array([4.0, 2.0, 1.0, 0.5])
    Sigma = covariance(1, lam)
    values, vectors = np.linalg.eigh(Sigma)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    best = (vectors * values) @ vectors.T
    B = np.linalg.cholesky(Sigma)
    for target in (
        bw.Target(device(Sigma), rank=rank),
        bw.Target(factor=device(B), rank=rank),
        bw.Target.from_factor(device(B), rank=rank),
    ):
        assert target.rank == rank
        assert_close(target.covariance, best, TOL * 4)
        assert_close(target.eigenvalues, values, TOL * 4)


@pytest.mark.parametrize("shape", [(4, 4), (5, 2), (3, 7), (1, 1), (1, 4)], ids=str)
def test_target_of_a_factor_is_its_outer_product(shape):
    """Tall, square and wide factors of full rank."""
    B = rng(2).normal(size=shape)
    target = bw.Target.from_factor(device(B))
    assert target.rank == min(shape)
    if shape[1] >= shape[0]:
        assert_factorizes(target, B @ B.T)
    assert_close(target.covariance, B @ B.T, 4 * TOL)
    assert_close(target.eigenvalues, np.linalg.svd(B, compute_uv=False) ** 2, 4 * TOL)


@pytest.mark.parametrize("shape", [(5, 4), (4, 6)], ids=str)
def test_target_of_a_rank_deficient_factor_has_full_column_rank(shape):
    B = rng(3).normal(size=(shape[0], 2)) @ rng(4).normal(size=(2, shape[1]))
    target = bw.Target.from_factor(device(B))
    assert target.rank == 2
    assert_close(target.covariance, B @ B.T, 20 * TOL)
    smallest = np.linalg.svd(np.asarray(target.factor, np.float64), compute_uv=False)[-1]
    assert_close(smallest, np.linalg.svd(B, compute_uv=False)[1], 20 * TOL)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("samples", [20, 3], ids=["more than n", "fewer than n"])
def test_target_of_samples_is_the_empirical_covariance(samples, ddof):
    """`numpy.cov`; of rank `samples - 1` where there are few."""
    X = rng(5).normal(size=(samples, 4)) + np.array([5.0, 0.0, -3.0, 1.0])
    target = bw.Target.from_samples(device(X), ddof=ddof)
    assert target.rank == min(4, samples - 1)
    assert_close(target.covariance, np.cov(X, rowvar=False, ddof=ddof), by_precision(1e-14, 2e-5))


def sampling_error(X):
    """By the sum of `E^T (I x S + S x I)^+ E / 2` over samples, with `E` their shares of `S`."""
    X = X - X.mean(axis=0)
    n, count = X.shape[1], len(X)
    S = X.T @ X / count
    lyapunov = np.kron(np.eye(n), S) + np.kron(S, np.eye(n))
    shares = (np.einsum("ki,kj->kij", X, X) - S).reshape(count, -1) / count
    return (0.5 * np.sum(shares @ np.linalg.pinv(lyapunov, rcond=1e-12) * shares)) ** 0.5


def white(X):
    """The samples with all variances equal."""
    U, _, Vt = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    return U @ Vt


DATA = {
    "full rank": lambda: rng(20).laplace(size=(40, 4)),
    "deficient": lambda: rng(21).laplace(size=(40, 2)) @ rng(22).normal(size=(2, 4)),
    "few": lambda: rng(23).normal(size=(3, 4)),
    "repeated": lambda: white(rng(24).laplace(size=(40, 4))),
    "one coordinate": lambda: rng(25).normal(size=(40, 1)),
}


@pytest.mark.parametrize("name", DATA)
def test_sampling_error_is_the_second_order_term_of_the_distance(name):
    X = DATA[name]()
    expected = sampling_error(X)
    for error in (covariances.sampling_error, jax.jit(covariances.sampling_error)):
        assert_close(error(device(X)), expected, by_precision(1e-13, 2e-5) * expected)
    more = covariances.sampling_error(device(X), ddof=1) / expected
    assert_close(more, (len(X) / (len(X) - 1)) ** 0.5, by_precision(1e-13, 2e-5))


LAWS = {
    "normal": lambda key, shape: jax.random.normal(key, shape),
    "uniform": lambda key, shape: jax.random.uniform(key, shape, minval=-(3**0.5), maxval=3**0.5),
    "Laplace": lambda key, shape: jax.random.laplace(key, shape) / 2**0.5,
}


@pytest.mark.parametrize("rows", [3, 5], ids=["full rank", "deficient"])
@pytest.mark.parametrize("law", LAWS)
def test_sampling_error_is_the_distance_of_the_sample_covariance_from_the_true_one(law, rows):
    """Root mean square of 400 distances, within five standard errors and `2 m / N` of bias."""
    count, redraws = 400, 400
    A = device(rng(26).normal(size=(rows, 3)) * np.array([2.0, 1.0, 0.3]))

    @jax.jit
    @jax.vmap
    def estimated_and_squared(key):
        X = LAWS[law](key, (count, 3)).astype(A.dtype) @ A.T
        squared = bw.smoothed_bures(A, bw.Target.from_samples(X, rank=3), tau=0.0)
        return covariances.sampling_error(X), squared

    estimated, squared = (
        np.asarray(values, np.float64)
        for values in estimated_and_squared(jax.random.split(KEY, redraws))
    )
    ratio = (estimated**2).mean() / squared.mean()
    standard_error = squared.std() / squared.mean() / redraws**0.5
    assert abs(ratio - 1) < 5 * standard_error + 2 * 3 / count


@pytest.mark.parametrize("spectrum", [(3.0, 2.0, 1.0), (2.0, 2.0, 0.1)], ids=str)
def test_sampling_error_of_gaussian_samples_has_a_closed_form(spectrum):
    """Within 3%; of 20000 samples, the sum of fourth moments has a standard error below 1%."""
    lam = np.array(spectrum)
    X = rng(27).normal(size=(20000, 3)) * np.sqrt(lam)
    squared = (np.outer(lam, lam) / np.add.outer(lam, lam)).sum() + lam.sum() / 2
    error = float(covariances.sampling_error(device(X)))
    assert abs(error / (squared / 40000) ** 0.5 - 1) < 0.03


def test_covariance_of_signs_has_no_sampling_error():
    """Of `a` and `-a`, equally often, `x x^T` is constant; rounding leaves nothing negative."""
    a = rng(28).normal(size=3)
    X = device(np.concatenate([np.tile(a, (8, 1)), np.tile(-a, (8, 1))]))
    assert_close(covariances.sampling_error(X), 0.0, 10 * EPS)


@pytest.mark.float64
@pytest.mark.parametrize("name", ["full rank", "deficient", "repeated"])
def test_derivatives_of_the_sampling_error_match_differences(name):
    """First and second; where the rank is deficient, along samples of the same rank."""
    X = DATA[name]()
    D = X @ rng(29).normal(size=(4, 4)) if name == "deficient" else rng(29).normal(size=X.shape)
    error = covariances.sampling_error
    slope = jax.jvp(error, (device(X),), (device(D),))[1]
    h = 1e-5
    differences = (sampling_error(X + h * D) - sampling_error(X - h * D)) / (2 * h)
    assert_close(slope, differences, 1e-8)
    gradient = jax.jit(jax.grad(error))
    assert_close(np.vdot(gradient(device(X)), D), differences, 1e-8)
    if name != "deficient":
        hvp = jax.jvp(gradient, (device(X),), (device(D),))[1]
        plus, minus = (gradient(device(X + t * D)) for t in (h, -h))
        assert_close(hvp, (plus - minus) / (2 * h), 1e-7)


def test_target_under_jit_is_the_eager_one():
    Sigma = device(covariance(6, (3.0, 2.0, 1.0, 0.0)))
    for rank in (2, 3, None):
        target = jax.jit(partial(bw.Target, rank=rank))(Sigma)
        assert target.rank == (4 if rank is None else rank)
        expected = bw.Target(Sigma, rank=4 if rank is None else rank)
        assert_close(target.covariance, expected.covariance, TOL * 3)
        assert_close(target.eigenvalues, expected.eigenvalues, TOL * 3)
    B = target.factor[:, :3]
    assert_close(jax.jit(bw.Target.from_factor)(B).covariance, B @ B.T, TOL * 3)


@pytest.mark.parametrize("seed", range(3))
def test_rank_above_that_of_the_covariance_changes_no_loss(seed):
    """As in a trace, where the rank cannot be counted: the columns to spare are zero."""
    Sigma = device(covariance(seed, (1.0, 0.5, 0.0, 0.0)))
    exact, padded = bw.Target(Sigma), bw.Target(Sigma, rank=4)
    W = device(rng(7).normal(size=(4, 3)))
    assert np.all(np.asarray(padded.eigenvalues) >= 0)
    for tau in (0.1, 0.0):
        value, gradient = jax.value_and_grad(bw.smoothed_bures)(W, padded, tau=tau)
        expected, slope = jax.value_and_grad(bw.smoothed_bures)(W, exact, tau=tau)
        assert_close(value, expected, 20 * TOL)
        assert_close(gradient, slope, 20 * TOL)
    assert_close(
        bw.landscape.minimum(padded, 2, tau=0.1), bw.landscape.minimum(exact, 2, tau=0.1), TOL
    )


def test_target_is_a_pytree_that_can_be_stacked_and_mapped():
    Sigmas = device(np.stack([covariance(seed, (3.0, 1.0, 0.5)) for seed in range(3)]))
    targets = jax.vmap(partial(bw.Target, rank=3))(Sigmas)
    W = device(rng(7).normal(size=(3, 2)))
    losses = jax.vmap(lambda target: bw.smoothed_bures(W, target, tau=0.1))(targets)
    for i in range(3):
        assert_close(losses[i], bw.smoothed_bures(W, bw.Target(Sigmas[i]), tau=0.1), TOL * 10)


def loss_of_covariance(Sigma, W, tau, rank):
    return bw.smoothed_bures(W, bw.Target(Sigma, rank=rank), tau=tau)


def smoothed_bures_by_scipy_formula(Sigma, W, tau):
    """`tr S + tr Sigma - 2 sum of the square roots of the eigenvalues of S Sigma`, in float64."""
    S = W @ W.T + tau * np.eye(len(W))
    values = np.linalg.eigvals(S @ Sigma).real
    return np.trace(S) + np.trace(Sigma) - 2 * np.sqrt(np.maximum(values, 0)).sum()


def optimal_map_gradient(Sigma, W, tau):
    """`I - T`, with `T = A (A Sigma A)^{-1/2} A` for `A = S^{1/2}` the optimal map to `S`."""

    def power(H, exponent):
        h, Q = np.linalg.eigh(H)
        return (Q * h**exponent) @ Q.T

    A = power(W @ W.T + tau * np.eye(len(W)), 0.5)
    return np.eye(len(W)) - A @ power(A @ Sigma @ A, -0.5) @ A


SPECTRA = {
    "simple": (3.0, 2.0, 1.0),
    "repeated": (2.0, 2.0, 1.0),
    "nearly repeated": (2.0, 2.0 + 1e-9, 1.0),
}


@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
def test_gradient_in_the_covariance_is_identity_minus_the_optimal_map(spectrum):
    Sigma = covariance(8, SPECTRA[spectrum])
    W = rng(9).normal(size=(3, 2))
    gradient = jax.grad(loss_of_covariance)(device(Sigma), device(W), 0.1, 3)
    assert_close(gradient, optimal_map_gradient(Sigma, W, 0.1), by_precision(1e-12, 2e-5))
    # The oracle itself, by central differences of the eigenvalue formula.
    D = rng(10).normal(size=(3, 3))
    D = D + D.T
    plus, minus = (smoothed_bures_by_scipy_formula(Sigma + h * D, W, 0.1) for h in (1e-5, -1e-5))
    slope = np.vdot(np.asarray(gradient, np.float64), D)
    assert abs((plus - minus) / 2e-5 - slope) < by_precision(1e-8, 2e-4)


def test_gradient_at_the_identity_where_all_eigenvalues_agree():
    """At `Sigma = I` it is `I - S^{1/2}`."""
    W = rng(11).normal(size=(4, 2))
    gradient = jax.grad(loss_of_covariance)(jnp.eye(4), device(W), 0.1, 4)
    s, Q = np.linalg.eigh(W @ W.T + 0.1 * np.eye(4))
    assert_close(gradient, np.eye(4) - (Q * s**0.5) @ Q.T, by_precision(1e-12, 2e-5))


@pytest.mark.float64
@pytest.mark.parametrize("spectrum", ["simple", "repeated"])
def test_second_derivative_in_the_covariance_matches_differences_of_the_gradient(spectrum):
    """Finite at repeated eigenvalues too."""
    Sigma, W = covariance(8, SPECTRA[spectrum]), rng(9).normal(size=(3, 2))
    D = rng(12).normal(size=(3, 3))
    D = D + D.T
    gradient = jax.grad(loss_of_covariance)
    _, hvp = jax.jvp(lambda S: gradient(S, device(W), 0.1, 3), (device(Sigma),), (device(D),))
    h = 1e-5
    plus, minus = (optimal_map_gradient(Sigma + t * D, W, 0.1) for t in (h, -h))
    assert_close(hvp, (plus - minus) / (2 * h), 1e-7)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_derivative_of_the_factor_is_the_one_of_its_covariance(mode):
    """`d(B B^T) = dSigma`: the factor moves with Sigma, up to a rotation, at a repeat as well."""
    Sigma = device(covariance(13, (2.0, 2.0, 2.0, 1.0)))
    D = rng(14).normal(size=(4, 4))
    D = device(D + D.T)

    def rebuild(S):
        return bw.Target(S, rank=4).covariance

    if mode == "forward":
        _, tangent = jax.jvp(rebuild, (Sigma,), (D,))
    else:
        (tangent,) = jax.vjp(rebuild, Sigma)[1](D)
    assert_close(tangent, D, 20 * TOL)


def test_derivative_of_simple_eigenvalues_is_the_rayleigh_quotient():
    Sigma = covariance(15, (3.0, 2.0, 1.0))
    D = rng(16).normal(size=(3, 3))
    D = D + D.T
    _, dlam = jax.jvp(lambda S: bw.Target(S, rank=3).eigenvalues, (device(Sigma),), (device(D),))
    _, vectors = np.linalg.eigh(Sigma)
    assert_close(dlam, np.einsum("ik,ij,jk->k", vectors, D, vectors)[::-1], 20 * TOL)


def test_gradient_in_a_factor_passes_through_the_target():
    """`2 (I - T) B` of the covariance gradient, square and tall, by the chain rule."""
    W = rng(17).normal(size=(4, 3))
    for columns in (4, 6):
        B = rng(18).normal(size=(4, columns))

        def loss(B):
            return bw.smoothed_bures(device(W), bw.Target.from_factor(B, rank=4), tau=0.1)

        expected = 2 * optimal_map_gradient(B @ B.T, W, 0.1) @ B
        assert_close(jax.grad(loss)(device(B)), expected, by_precision(1e-12, 1e-4))


def bad(Sigma):
    return lambda: bw.Target(device(Sigma))


BAD = {
    "not square": (bad(np.ones((2, 3))), r"Sigma must be square and not empty; got shape \(2, 3\)"),
    "empty": (bad(np.zeros((0, 0))), r"Sigma must be square and not empty; got shape \(0, 0\)"),
    "vector": (bad(np.ones(3)), r"Sigma must have 2 dimensions; got shape \(3,\)"),
    "asymmetric": (bad([[1.0, 0.5], [0.0, 1.0]]), r"Sigma must be symmetric; .* by up to 0.5"),
    "indefinite": (
        bad(np.diag([3.0, 1.0, -0.25])),
        r"Sigma must be positive semi-definite; its smallest eigenvalue is -0.25 \(largest 3\)",
    ),
    "negative": (bad(-np.eye(2)), r"positive semi-definite; its smallest eigenvalue is -1 "),
    "NaN": (bad([[1.0, np.nan], [np.nan, 1.0]]), r"Sigma must be finite"),
    "infinite": (bad([[np.inf, 0.0], [0.0, 1.0]]), r"Sigma must be finite"),
    "complex": (lambda: bw.Target(jnp.eye(2, dtype=complex)), r"real floating point.*complex"),
    "integer": (lambda: bw.Target(jnp.eye(2, dtype=int)), r"Sigma must be real floating .*int"),
    "zero": (bad(np.zeros((2, 2))), r"Sigma must not be zero"),
    "nothing": (lambda: bw.Target(), r"either a covariance Sigma or factor=; got both or none"),
    "both": (lambda: bw.Target(jnp.eye(2), factor=jnp.eye(2)), r"got both or none"),
    "zero factor": (lambda: bw.Target.from_factor(jnp.zeros((3, 2))), r"factor must not be zero"),
    "factor NaN": (lambda: bw.Target.from_factor(jnp.full((3, 2), jnp.nan)), r"factor must be fin"),
    "factor vector": (lambda: bw.Target.from_factor(jnp.ones(3)), r"factor must have 2 dimensions"),
    "factor integer": (
        lambda: bw.Target.from_factor(jnp.ones((2, 2), int)),
        r"factor must be real",
    ),
    "rank zero": (lambda: bw.Target(jnp.eye(2), rank=0), r"rank must be a positive integer; got 0"),
    "rank high": (lambda: bw.Target(jnp.eye(2), rank=3), r"rank must be at most 2; got 3"),
    "factor rank": (
        lambda: bw.Target.from_factor(jnp.ones((4, 2)), rank=3),
        r"rank must be at most 2; got 3",
    ),
    "no samples": (
        lambda: bw.Target.from_samples(jnp.ones((1, 3)), ddof=1),
        r"X must hold more than ddof=1 samples in its rows.* got 1 samples",
    ),
    "equal samples": (
        lambda: bw.Target.from_samples(jnp.ones((4, 2))),
        r"X must hold samples that",
    ),
    "error of no samples": (
        lambda: covariances.sampling_error(jnp.ones((2, 3)), ddof=2),
        r"X must hold more than ddof=2 samples in its rows.* got 2 samples",
    ),
    "error of equal samples": (
        lambda: covariances.sampling_error(jnp.ones((4, 2))),
        r"X must hold samples that differ",
    ),
    "samples vector": (lambda: bw.Target.from_samples(jnp.ones(4)), r"X must have 2 dimensions"),
    "negative spectrum": (
        lambda: covariances.from_spectrum(jnp.array([1.0, -0.5])),
        r"eigenvalues must be one or more numbers, none negative .*; got .*-0.5",
    ),
    "zero spectrum": (lambda: covariances.from_spectrum(jnp.zeros(2)), r"zero"),
    "matrix spectrum": (lambda: covariances.from_spectrum(jnp.eye(2)), r"eigenvalues must have 1 "),
    "n": (lambda: covariances.power_law(0), r"n must be a positive integer; got 0"),
    "empty spectrum": (lambda: covariances.from_spectrum(jnp.zeros(0)), r"eigenvalues must be one"),
    "condition NaN": (
        lambda: covariances.geometric(3, float("nan")),
        r"condition must be .* got nan",
    ),
    "condition": (
        lambda: covariances.geometric(3, 0.5),
        r"condition must be at least 1.0; got 0.5",
    ),
    "step rank": (lambda: covariances.step(3, 4), r"rank must be at most n=3; got 4"),
    "step low": (lambda: covariances.step(3, 1, -0.1), r"low must be at least 0.0; got -0.1"),
    "wishart dof": (
        lambda: covariances.wishart(KEY, 3, dof=0),
        r"dof must be a positive integer; got 0",
    ),
    "random rank": (
        lambda: covariances.random_spectrum(KEY, 3, rank=4),
        r"rank must be at most n=3; got 4",
    ),
    "random minimum": (
        lambda: covariances.random_spectrum(KEY, 3, minimum=-1.0),
        r"minimum must be at least 0.0; got -1.0",
    ),
    "random minimum infinite": (
        lambda: covariances.random_spectrum(KEY, 3, minimum=float("inf")),
        r"minimum must be a finite number; got inf",
    ),
    "random n": (
        lambda: covariances.random_spectrum(KEY, 0, rank=1),
        r"n must be a positive integer; got 0",
    ),
    "sampled": (
        lambda: covariances.random_spectrum(KEY, 3, sampled="roots"),
        r"sampled must be one of eigenvalues, singular_values; got 'roots'",
    ),
    "distribution": (
        lambda: covariances.random_spectrum(KEY, 3, distribution="cauchy"),
        r"must be one of zipf, ginibre, uniform, exponential, normal; got 'cauchy'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_rounding_of_symmetry_and_of_zero_eigenvalues_is_tolerated():
    """What products leave behind is no reason to refuse: a Gram matrix formed in floating point."""
    B = device(rng(19).normal(size=(8, 3)))
    Sigma = B @ B.T + EPS * jnp.triu(jnp.ones((8, 8)))
    assert bw.Target(Sigma).rank == 3


def test_values_are_not_looked_at_under_a_trace_but_shapes_are():
    indefinite = device(np.diag([1.0, -1.0]))
    target = jax.jit(partial(bw.Target, rank=1))(indefinite)
    assert_close(target.eigenvalues, np.array([1.0]), TOL)
    with pytest.raises(ValueError, match="square"):
        jax.jit(partial(bw.Target, rank=1))(jnp.ones((2, 3)))


def test_deterministic_spectra_follow_their_formulas():
    i = np.arange(1, 8)
    assert_close(covariances.power_law(7), 1.0 / i, TOL)
    assert_close(covariances.power_law(7, 2.5), i**-2.5, TOL)
    assert_close(covariances.geometric(7, 1e4), 1e4 ** (-(i - 1) / 6), TOL)
    assert_close(covariances.geometric(1, 10.0), np.ones(1), TOL)
    assert_close(covariances.step(7, 3), np.where(i <= 3, 1.0, 0.0), 0.0)
    assert_close(covariances.step(7, 3, 0.25), np.where(i <= 3, 1.0, 0.25), 0.0)


@pytest.mark.parametrize("dtype", [jnp.float32, float])
def test_spectra_have_the_dtype_asked_for(dtype):
    expected = jax.dtypes.canonicalize_dtype(dtype)
    for spectrum in (
        covariances.power_law(3, dtype=dtype),
        covariances.geometric(3, 10.0, dtype=dtype),
        covariances.step(3, 2, dtype=dtype),
        covariances.random_spectrum(KEY, 3, dtype=dtype),
        covariances.random_spectrum(KEY, 3, distribution="normal", dtype=dtype),
        covariances.haar(KEY, 3, dtype=dtype),
        covariances.wishart(KEY, 3, dof=3, dtype=dtype).factor,
    ):
        assert spectrum.dtype == expected


SAMPLED = ["eigenvalues", "singular_values"]


def random_values(n, distribution, sampled, **options):
    """A random spectrum in float64, as the values sampled: of singular values the roots."""
    draw = partial(covariances.random_spectrum, distribution=distribution, sampled=sampled)
    lam = np.asarray(draw(KEY, n, **options), np.float64)
    return lam**0.5 if sampled == "singular_values" else lam


@pytest.mark.parametrize("distribution", covariances.DISTRIBUTIONS)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_random_spectrum_is_ordered_bounded_below_and_padded_with_zeros(distribution, sampled):
    lam = covariances.random_spectrum(
        KEY, 60, distribution=distribution, sampled=sampled, minimum=0.2, rank=50
    )
    lam = np.asarray(lam)
    assert np.all(np.diff(lam[:51]) < 0)
    assert np.all(lam[:50] >= lam.dtype.type(0.2))
    assert np.all(lam[50:] == 0)


@pytest.mark.parametrize("distribution", covariances.DISTRIBUTIONS)
@pytest.mark.parametrize("sampled", SAMPLED)
def test_random_spectrum_is_moved_as_a_whole_to_have_the_minimum(distribution, sampled):
    """Its least eigenvalue is the minimum; differences, of singular values if sampled, stay."""
    plain = random_values(30, distribution, sampled, rank=20)
    minimum = 4 * (plain**2 if sampled == "singular_values" else plain)[19] + 0.5
    lam = covariances.random_spectrum(
        KEY, 30, distribution=distribution, sampled=sampled, minimum=minimum, rank=20
    )
    assert_close(lam[19], minimum, 2 * EPS * minimum)
    moved = random_values(30, distribution, sampled, minimum=minimum, rank=20)[:20]
    assert_close(np.diff(moved), np.diff(plain[:20]), 4 * EPS * moved[0])
    assert np.all(np.diff(moved) < 0)


@pytest.mark.parametrize("distribution", covariances.DISTRIBUTIONS)
def test_a_minimum_that_is_met_moves_nothing(distribution):
    plain = covariances.random_spectrum(KEY, 30, distribution=distribution, rank=20)
    again = covariances.random_spectrum(
        KEY, 30, distribution=distribution, rank=20, minimum=float(plain[19]) * (1 - 2 * EPS)
    )
    np.testing.assert_array_equal(plain, again)


@pytest.mark.parametrize("distribution", covariances.DISTRIBUTIONS)
def test_random_spectrum_keeps_the_largest_of_n_values(distribution):
    every = covariances.random_spectrum(KEY, 30, distribution=distribution)
    kept = covariances.random_spectrum(KEY, 30, distribution=distribution, rank=7)
    np.testing.assert_array_equal(kept[:7], every[:7])
    assert not np.any(kept[7:])


@pytest.mark.parametrize("distribution", covariances.DISTRIBUTIONS)
def test_random_singular_values_are_squared_into_eigenvalues(distribution):
    draw = partial(covariances.random_spectrum, KEY, 40, distribution=distribution)
    roots = np.asarray(draw(sampled="eigenvalues"), np.float64)
    assert_close(draw(sampled="singular_values"), roots**2, TOL * max(1.0, roots.max() ** 2))


def assert_mean(draws, mean):
    """Their mean is the one expected, to 5 standard errors."""
    assert abs(np.mean(draws) - mean) < 5 * np.std(draws) / len(draws) ** 0.5


def many_spectra(count, n, distribution, **options):
    draw = partial(covariances.random_spectrum, n=n, distribution=distribution, **options)
    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, count)), np.float64)


def test_ginibre_values_are_the_singular_values_of_a_small_gaussian_matrix():
    """Of size 2: `(R + R') / 2` and `|R - R'| / 2`, with `R^2` exponential of mean 4."""
    s = many_spectra(20000, 2, "ginibre")
    assert_mean(s[:, 0], np.pi**0.5)
    assert_mean(s[:, 0] ** 2, 2 + np.pi / 2)
    assert_mean(s[:, 1] ** 2, 2 - np.pi / 2)
    assert_mean(s[:, 0] * s[:, 1], 1.0)


def test_ginibre_values_fill_the_quarter_circle():
    """Of `s / sqrt(n)` for large n: `s^2` has mean 1, `s^4` mean 2, `s` mean 8 / (3 pi)."""
    s = np.asarray(covariances.random_spectrum(KEY, 400, distribution="ginibre"), np.float64) / 20
    for power, moment in ((1, 8 / (3 * np.pi)), (2, 1.0), (4, 2.0)):
        assert abs((s**power).mean() / moment - 1) < 0.02
    assert abs(s[0] - 2) < 0.1


def test_zipf_values_of_a_small_spectrum_have_their_law():
    """Of two values the least is 1/2, and their difference `|g / 2 + z_1 - z_2|`."""
    lam = many_spectra(20000, 2, "zipf")
    np.testing.assert_array_equal(lam[:, 1], 0.5)
    # The mean square of the largest singular value of a 2 x 2 Gaussian is 2 + pi / 2.
    assert_mean((lam[:, 0] - 0.5) ** 2, (2 + np.pi / 2) / 4 + 2)


def test_zipf_values_follow_the_inverse_of_their_index_up_to_noise():
    """`lambda_i - lambda_j = g (1/i - 1/j) + N(0, 2)` while `g` is large, and `g ~ 2 sqrt(n)`."""
    n, count = 400, 50
    lam = many_spectra(count, n, "zipf")
    assert_close(lam[:, -1], np.full(count, 1 / n), 2 * EPS)
    first, second = lam[:, 0] - lam[:, 1], lam[:, 1] - lam[:, 2]
    assert_mean(first - 3 * second, 0.0)
    assert abs(2 * first.mean() / (2 * n**0.5) - 1) < 0.05
    i = np.arange(1, n + 1)
    variance = 1 - 1 / n + 4 * n * np.var(1 / i)
    assert abs(lam.var(axis=1).mean() / variance - 1) < 0.05


def test_zipf_spectrum_of_one_value_is_one():
    assert_close(covariances.random_spectrum(KEY, 1), np.ones(1), 0.0)


@pytest.mark.parametrize("distribution", covariances.DISTRIBUTIONS)
def test_float32_spectra_do_not_depend_on_whether_float64_is_enabled(distribution):
    drawn = []
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            draw = partial(covariances.random_spectrum, distribution=distribution, minimum=0.1)
            drawn.append(np.asarray(draw(jax.random.key(2), 6, rank=4, dtype=jnp.float32)))
    assert drawn[0].dtype == drawn[1].dtype == np.float32
    np.testing.assert_array_equal(*drawn)


def test_random_spectra_are_mapped_over_keys_and_minima():
    draw = partial(covariances.random_spectrum, n=5, rank=3)
    keys, minima = jax.random.split(KEY, 3), jnp.array([0.0, 0.5, 9.0])
    mapped = jax.jit(jax.vmap(lambda key, minimum: draw(key, minimum=minimum)))(keys, minima)
    for lam, key, minimum in zip(mapped, keys, minima, strict=True):
        assert_close(lam, draw(key, minimum=minimum), 20 * TOL)


@pytest.mark.parametrize(
    ("distribution", "mean", "variance"),
    [
        ("uniform", 1 / 2, 1 / 12),
        ("exponential", 1.0, 1.0),
        ("normal", (2 / np.pi) ** 0.5, 1 - 2 / np.pi),
    ],
)
def test_random_spectrum_has_the_moments_of_its_distribution(distribution, mean, variance):
    lam = np.asarray(covariances.random_spectrum(KEY, 20000, distribution=distribution), np.float64)
    assert abs(lam.mean() - mean) < 5 * (variance / 20000) ** 0.5
    assert abs(lam.var() - variance) < 0.1 * variance


def test_random_spectrum_depends_on_the_key_alone():
    first = covariances.random_spectrum(jax.random.key(1), 30)
    again = covariances.random_spectrum(jax.random.key(1), 30)
    other = covariances.random_spectrum(jax.random.key(2), 30)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_haar_matrices_are_orthogonal_without_a_preferred_direction():
    """First moment 0; fourth moment of an entry `3 / (n (n + 2))`; both signs of determinant."""
    n, count = 3, 4000
    draw = jax.jit(jax.vmap(lambda key: covariances.haar(key, n)))
    Q = np.asarray(draw(jax.random.split(KEY, count)), np.float64)
    assert_close(np.einsum("kij,klj->kil", Q, Q), np.tile(np.eye(n), (count, 1, 1)), TOL)
    assert np.abs(Q.mean(axis=0)).max() < 5 * (n * count) ** -0.5
    fourth = (Q**4).mean(axis=0)
    error = 5 * (Q**4).std(axis=0).max() / count**0.5
    assert_close(fourth, np.full((n, n), 3 / (n * (n + 2))), error)
    assert abs(np.mean(np.linalg.det(Q) > 0) - 0.5) < 5 * 0.5 * count**-0.5


def test_from_spectrum_has_its_eigenvalues_in_the_standard_or_a_random_basis():
    lam = np.array([0.5, 0.0, 2.0, 1.0])
    standard = covariances.from_spectrum(device(lam))
    assert_close(standard.covariance, np.diag(lam), TOL)
    rotated = covariances.from_spectrum(device(lam), key=KEY)
    assert rotated.rank == standard.rank == 3
    assert_factorizes(rotated, np.asarray(rotated.covariance, np.float64))
    assert_close(rotated.eigenvalues, np.array([2.0, 1.0, 0.5]), TOL)
    off_diagonal = np.asarray(rotated.covariance) - np.diag(np.diag(rotated.covariance))
    assert np.abs(off_diagonal).max() > 0.1


@pytest.mark.parametrize("dof", [2, 5, 9])
def test_wishart_has_rank_min_n_dof(dof):
    assert covariances.wishart(KEY, 5, dof=dof).rank == min(5, dof)


def test_wishart_has_mean_identity_and_the_fluctuations_of_a_sample_covariance():
    """`E S = I`, `E (S_12)^2 = 1 / dof`."""
    dof, count = 4, 400
    draws = np.stack(
        [
            np.asarray(covariances.wishart(key, 2, dof=dof).covariance, np.float64)
            for key in jax.random.split(KEY, count)
        ]
    )
    error = 5 * draws.std(axis=0).max() / count**0.5
    assert_close(draws.mean(axis=0), np.eye(2), error)
    squares = draws[:, 0, 1] ** 2
    assert abs(squares.mean() - 1 / dof) < 5 * squares.std() / count**0.5
