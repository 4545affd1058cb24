"""Certificates of optimality against independent solvers, and the runs that they stop."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dynamics import power
from helpers import EPS, assert_close, by_precision, gaussian_factors, random_target
from scipy.special import betainc
from scipy.stats import kstest

import bwflow as bw
from bwflow import _extremal, certificate, perturbation, until
from bwflow.factors import Deep, Product, Rectangular, Symmetric

FLOAT = jnp.result_type(float)
SLACK = by_precision(1e-12, 1e-6)  # of the loss itself, and of the solvers


def psd_least_squares(A, y, steps=1500):
    """`min 1/2 ||A vec(M) - y||^2` over `M >= 0`, by projected accelerated gradients."""
    n = int(A.shape[1] ** 0.5)
    L = np.linalg.norm(A, 2) ** 2
    M = N = np.zeros((n, n))
    for k in range(steps):
        G = (A.T @ (A @ N.ravel() - y)).reshape(n, n)
        new = power(N - (G + G.T) / 2 / L, 1.0)
        momentum = k / (k + 3)
        if np.sum((N - new) * (new - M)) > 0:
            momentum = 0.0
        M, N = new, new + momentum * (new - M)
    G = (A.T @ (A @ M.ravel() - y)).reshape(n, n)
    assert np.linalg.eigvalsh(G + G.T)[0] > -1e-9
    assert abs(np.sum(G * M)) < 1e-9
    return np.sum((A @ M.ravel() - y) ** 2) / 2, M


# --- measurements --------------------------------------------------------------------------------

N, NOISE = 15, (0.0, 0.02)


@pytest.fixture(scope="module")
def problems():
    """The same operator with exact and with noisy measurements, and both convex minima."""
    rng = np.random.default_rng(2)
    A, W = rng.normal(size=(120, N * N)) / 120**0.5, np.linalg.qr(rng.normal(size=(N, 2)))[0]
    exact, e = A @ (W @ W.T).ravel(), rng.normal(size=120)
    ys = [exact + sigma * e for sigma in NOISE]
    solved = [psd_least_squares(A, y) for y in ys]
    operator = bw.operators.Dense(jnp.asarray(A.reshape(120, N, N), FLOAT))
    return [bw.losses.Sensing(operator, jnp.asarray(y, FLOAT)) for y in ys], A, solved


def certified(loss, params, trace, smoothness, factorization):
    """Bounds in both forms for a batch of parameters."""

    @jax.jit
    @jax.vmap
    def bounds(params):
        rule = partial(
            certificate.optimality_gap,
            loss,
            params,
            trace_bound=trace,
            factorization=factorization,
        )
        return rule().bound, rule(form="rank_deficiency", smoothness=smoothness).bound

    return tuple(np.asarray(x, np.float64) for x in bounds(params))


def kept(loss, params):
    return {"loss": loss(Deep().assemble(params) if isinstance(params, tuple) else params)} | {
        str(i): x for i, x in enumerate(jax.tree.leaves(params))
    }


def runs(problems, r):
    """PrecGD on both, with certificates in both forms along the way."""
    losses, A, solved = problems
    start = bw.initializers.spectral(losses[0])(jax.random.key(1), (r, N))
    found = []
    for loss, (minimum, M) in zip(losses, solved, strict=True):
        rows = bw.gradient_descent(
            loss,
            start,
            bw.precondition.precgd(0.2, damping="gradient_norm"),
            num_steps=1000,
            save_every=10,
            probe=kept,
        ).probes
        L = float(np.linalg.norm(A, 2) ** 2)
        bounds = certified(loss, (rows["0"],), float(np.trace(M)), L, Deep())
        found.append((np.asarray(rows["loss"], np.float64) - minimum, *bounds))
    return (np.stack(x) for x in zip(*found, strict=True))


@pytest.mark.parametrize(
    "r", [pytest.param(2, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow), 10]
)
def test_along_a_descent_every_certificate_is_above_the_gap_of_the_convex_problem(problems, r):
    """Of exact measurements it falls to rounding. With noise the optimum has a higher rank, and two
    columns, as many as the truth has, stall at a bound of the size of the noise."""
    gap, dual, other = runs(problems, r)
    assert np.all(gap <= dual + SLACK)
    assert np.all(dual <= other + SLACK)
    assert np.all(gap >= -SLACK)
    exact, noisy = dual[:, -1]
    assert dual[0, 0] > 1e-2
    assert exact < by_precision(1e-10, 1e-3)
    rank = np.sum(np.linalg.eigvalsh(problems[-1][1][1]) > 1e-6)
    assert 2 < rank < 10
    if r < rank:
        assert noisy > 1e-2
        assert gap[1, -1] > 1e-4
    else:
        assert noisy < by_precision(1e-9, 1e-3)


@pytest.mark.parametrize("method", ["dense", pytest.param("lanczos", marks=pytest.mark.slow)])
def test_a_pair_is_certified_against_least_squares_over_all_matrices(method):
    rng = np.random.default_rng(0)
    A, y = rng.normal(size=(60, 35)) / 60**0.5, rng.normal(size=60)
    best = np.linalg.lstsq(A, y)[0].reshape(7, 5)
    minimum = np.sum((A @ best.ravel() - y) ** 2) / 2
    U, s, Vt = np.linalg.svd(best)
    pairs = [(rng.normal(size=(7, 5)) * scale, rng.normal(size=(5, 5))) for scale in (0.5, 0.01)]
    pairs.append((U[:, :5] * np.sqrt(s), Vt.T * np.sqrt(s)))
    operator = bw.operators.Dense(jnp.asarray(A.reshape(60, 7, 5), FLOAT))
    loss = bw.losses.Sensing(operator, jnp.asarray(y, FLOAT))

    @jax.jit
    @jax.vmap
    def certify(pair):
        options = {"trace_bound": float(s.sum()), "factorization": Rectangular()}
        return certificate.optimality_gap(loss, pair, method=method, steps=3, **options)

    found = certify(tuple(jnp.asarray(np.stack(X), FLOAT) for X in zip(*pairs, strict=True)))
    E = np.stack([L @ R.T for L, R in pairs])
    residual = E.reshape(3, 35) @ A.T - y
    Z = (residual @ A).reshape(3, 7, 5)
    norms = np.linalg.norm(Z, 2, axis=(1, 2))
    tiny = by_precision(1e-11, 1e-4)
    assert np.all(np.sum(residual**2, axis=1) / 2 - minimum <= found.bound + SLACK)
    assert_close(found.stationarity, np.sum(Z * E, axis=(1, 2)), tiny)
    assert np.all(-np.asarray(found.smallest_eigenvalue, np.float64) >= norms - tiny)
    assert np.all(found.probability == (0.0 if method == "dense" else np.asarray(1e-6, FLOAT)))
    if method == "dense":
        assert_close(found.smallest_eigenvalue, -norms, tiny)
        assert found.bound[2] < by_precision(1e-10, 1e-2)


# --- targets -------------------------------------------------------------------------------------

TAU = 0.35
TARGET = random_target(0, 5, condition=20.0)


def convex_minimum(kind, tau):
    """Over all `M >= 0`, eigenvalue by eigenvalue; with the minimiser's trace."""
    lam = np.linalg.eigvalsh(np.asarray(TARGET.covariance, np.float64))
    left = np.minimum(lam, tau)
    missed = (left - tau) ** 2 if kind == "Frobenius" else (np.sqrt(left) - np.sqrt(tau)) ** 2
    return float(np.sum(missed)), float(np.sum(np.maximum(lam - tau, 0)))


@pytest.mark.parametrize(
    ("kind", "widths"),
    [
        pytest.param("Frobenius", (1, 5), marks=pytest.mark.slow),
        ("BuresWasserstein", (5, 5)),
        pytest.param("BuresWasserstein", (6, 3, 5), marks=pytest.mark.slow),
        pytest.param("BuresWasserstein", (1, 5), marks=pytest.mark.slow),
        pytest.param("Frobenius", (5, 5), marks=pytest.mark.slow),
        pytest.param("Frobenius", (6, 3, 5), marks=pytest.mark.slow),
    ],
)
def test_certificates_against_a_target_are_above_the_gap_at_every_step(kind, widths):
    minimum, trace = convex_minimum(kind, TAU)
    # Over covariances the curvature of the Bures-Wasserstein loss is at most this.
    L = 2.0 if kind == "Frobenius" else float(TARGET.eigenvalues[0] ** 0.5 * TAU**-1.5 / 2)
    loss = getattr(bw.losses, kind)(TARGET, TAU)
    rows = bw.gradient_descent(
        loss,
        gaussian_factors(1, widths, 0.3),
        optax.sgd(0.05),
        num_steps=4000,
        save_every=20,
        probe=kept,
    ).probes
    layers = tuple(rows[str(i)] for i in range(len(widths) - 1))
    dual, other = certified(loss, layers, trace, L, Deep())
    assert np.all(np.asarray(rows["loss"], np.float64) - minimum <= dual + SLACK)
    assert np.all(dual <= other + SLACK)
    rank = int(np.sum(np.asarray(TARGET.eigenvalues) > TAU))
    assert rank == 2  # three of the five are below the smoothing
    if min(widths) >= rank:
        assert dual[-1] < by_precision(1e-8, 1e-3)
    else:
        assert dual[-1] > 1e-3


def textbook(kind, W, Sigma, tau):
    S = W @ W.T + tau * np.eye(len(W))
    if kind == "Frobenius":
        return 2 * (S - Sigma)
    root = power(Sigma, 0.5)
    w, Q = np.linalg.eigh(root @ S @ root)
    kept = w > 1e-10 * w[-1]
    return np.eye(len(W)) - root @ (Q[:, kept] / np.sqrt(w[kept])) @ Q[:, kept].T @ root


@pytest.mark.parametrize("kind", ["Frobenius", "BuresWasserstein"])
@pytest.mark.parametrize(("rank", "tau"), [(5, 0.0), (3, 0.1)])
def test_gradients_in_the_covariance_are_those_of_the_textbook(kind, rank, tau):
    target = bw.Target.from_factor(gaussian_factors(3, (rank, 5))[0])
    loss, W = getattr(bw.losses, kind)(target, tau), gaussian_factors(4, (5, 5))[0]
    G = loss.covariance_gradient(W)
    expected = textbook(kind, np.asarray(W, float), np.asarray(target.covariance, float), tau)
    assert_close(G.as_matrix(), expected, by_precision(1e-11, 2e-3))
    assert_close(jax.vmap(G.mv, 1, 1)(W), jax.grad(loss)(W) / 2, by_precision(1e-11, 2e-3))


@pytest.mark.float64
def test_gradients_keep_their_digits_at_an_ill_conditioned_target():
    """Of commuting matrices `G` is `1 - sqrt(lambda / (w^2 + tau))`; squares would lose half."""
    lam, w = np.array([1.0, 1e-8, 1e-14]), np.array([0.7, 0.3, 1e-6])
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    loss = bw.losses.BuresWasserstein(bw.Target.from_factor(jnp.asarray(Q * np.sqrt(lam))), 0.0)
    found = Q.T @ np.asarray(loss.covariance_gradient(jnp.asarray(Q * w)).as_matrix()) @ Q
    assert_close(np.diag(found), 1 - np.sqrt(lam) / w, 1e-8)


def test_error_scale_of_the_frobenius_loss_is_the_distance():
    W = gaussian_factors(4, (2, 5))[0]
    loss = bw.losses.Frobenius(TARGET, 0.01)
    off = W @ W.T + 0.01 * jnp.eye(5) - TARGET.covariance
    assert_close(loss.error_scale(W), jnp.linalg.norm(off), by_precision(1e-14, 1e-6))
    assert not hasattr(bw.losses.BuresWasserstein(TARGET), "error_scale")


def test_where_the_gradient_does_not_exist_a_traced_certificate_is_infinite():
    W = gaussian_factors(1, (2, 5))[0]

    def bound(tau):
        loss = bw.losses.BuresWasserstein(TARGET, tau)
        return certificate.optimality_gap(loss, (W,), trace_bound=1.0).bound

    void, sound = jax.vmap(bound)(jnp.array([0.0, 0.1]))
    assert void == np.inf
    assert np.isfinite(sound)


# --- least eigenvalues ---------------------------------------------------------------------------

SIZE = 300
SPECTRA = {
    "isotropic": np.ones(SIZE),
    "one outlier": np.r_[-1.0, np.ones(SIZE - 1)],
    "clustered": np.r_[-1e-3 - 1e-6 * np.arange(5), np.linspace(0, 1, SIZE - 5)],
    "Chebyshev": np.cos(np.pi * np.arange(SIZE) / SIZE),
    "low rank": np.r_[np.zeros(SIZE - 3), 1.0, 2.0, 3.0],
    "two scales": np.r_[-1e-6, 1e-8 * np.ones(99), np.ones(SIZE - 100)],
}


@pytest.mark.parametrize(
    "steps",
    [pytest.param(4, marks=pytest.mark.slow), 40, pytest.param(SIZE, marks=pytest.mark.slow)],
)
def test_lanczos_bounds_are_below_the_spectrum_and_not_far_below(steps):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
    matrices = jnp.asarray(np.stack([(Q * lam) @ Q.T for lam in SPECTRA.values()]), FLOAT)
    failure = jnp.asarray(1e-6, FLOAT)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def bound(A, key):
        return _extremal.lanczos_floor(lambda v: A @ v, SIZE, steps, failure, key)

    found = bound(matrices, jax.random.split(jax.random.key(1), 1 if steps == SIZE else 6))
    s = 1e-6 / (2 * 0.824 * SIZE**0.5)
    e = np.tanh(np.arccosh(1 / s) / (2 * steps - 1)) ** 2
    for name, lower in zip(SPECTRA, np.asarray(found.lower, np.float64), strict=True):
        lam = SPECTRA[name]
        least, spread, rounding = lam.min(), np.ptp(lam), 4 * SIZE * EPS * np.max(np.abs(lam))
        assert np.all(lower <= least + rounding), name
        if steps == SIZE:
            assert np.all(lower >= least - rounding), name
        elif e < 0.5:  # what is known before a product is made
            assert np.all(lower >= least - e / (1 - 2 * e) * spread - rounding), name
        # Few distinct eigenvalues end the Krylov space; how well that is seen, rounding decides.
        if steps > 4 and name in ("isotropic", "one outlier", "low rank"):
            assert np.all(lower >= least - by_precision(1e-6, 10.0)), name
    assert np.all(found.failure == (0.0 if steps == SIZE else failure))


def test_a_random_start_misses_a_direction_as_rarely_as_the_bound_says():
    """The square of a coordinate of a uniform unit vector has a beta distribution."""
    s = np.geomspace(1e-12, 1.0, 60)
    for n in [*range(2, 40), 100, 1000, 10**6]:
        assert np.all(betainc(0.5, (n - 1) / 2, s**2) <= 0.824 * np.sqrt(n) * s)


def test_the_bound_holds_down_to_the_very_share_of_the_start_that_it_assumes():
    """A diagonal matrix and the start's own coordinate for `s`: nothing is left to chance."""
    n, steps = 40, 6
    rng = np.random.default_rng(0)

    @jax.jit
    @jax.vmap
    def bound(lam, failure, key):
        return _extremal.lanczos_floor(lambda v: lam * v, n, steps, failure, key).lower

    keys = jax.random.split(jax.random.key(3), 200)
    starts = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (n,), FLOAT))(keys)
    starts = np.asarray(starts) / np.linalg.norm(starts, axis=1, keepdims=True)
    lam = np.concatenate([np.full((200, 1), -1.0), rng.uniform(-0.9, 1.0, (200, n - 1))], axis=1)
    s = np.minimum(np.abs(starts[:, 0]), np.abs(starts[np.arange(200), np.argmax(lam, axis=1)]))
    failure = 2 * 0.824 * n**0.5 * s
    lower = bound(jnp.asarray(lam, FLOAT), jnp.asarray(failure, FLOAT), keys)
    assert np.all(lower <= -1 + 100 * EPS)
    careless = bound(jnp.asarray(lam, FLOAT), jnp.asarray(50 * failure, FLOAT), keys)
    assert np.any(careless > -1 + 1e-3)  # so the share is what the bound rests on


@pytest.mark.slow
def test_certificates_by_lanczos_are_a_little_above_the_dense_ones():
    loss = bw.losses.BuresWasserstein(random_target(1, 40), 0.3)
    W = gaussian_factors(0, (6, 40))[0]
    rule = partial(certificate.optimality_gap, loss, (W,), trace_bound=3.0, steps=30)
    dense, lanczos = rule(), rule(method="lanczos", key=jax.random.key(1))
    assert_close(lanczos.stationarity, dense.stationarity, SLACK)
    assert dense.bound <= lanczos.bound + SLACK
    assert lanczos.bound <= dense.bound + by_precision(0.05, 0.5)
    assert (dense.probability, lanczos.probability) == (0.0, np.asarray(1e-6, FLOAT))
    assert_close(dense.bound, dense.stationarity + dense.curvature + dense.rounding, SLACK)


# --- stopping, and leaving saddles ---------------------------------------------------------------

FROBENIUS = bw.losses.Frobenius(TARGET)
TRACE = float(np.sum(TARGET.eigenvalues))
# Everything but the leading eigenvector, for which there is a column of zeros.
SADDLE = (
    (TARGET.eigenvectors * jnp.sqrt(TARGET.eigenvalues)[None, :]).at[:, 0].set(0.0) @ jnp.eye(5),
)
STOP = until.certified_gap(1e-5, trace_bound=TRACE)
NOISE_STEP = perturbation.perturbed(1e-3, gradient_norm=1e-4, every=300, key=jax.random.key(0))


def test_a_descent_stops_at_the_first_certificate_below_the_tolerance():
    start, sgd = gaussian_factors(1, (5, 5), 0.3), optax.sgd(0.05)
    rows = bw.gradient_descent(
        FROBENIUS, start, sgd, num_steps=400, probe=certificate.probe("loss", trace_bound=TRACE)
    ).probes
    rows = {name: np.asarray(row) for name, row in rows.items()}
    stop = until.certified_gap(0.05, trace_bound=TRACE)
    run = bw.gradient_descent(FROBENIUS, start, sgd, num_steps=400, save_every=400, until=stop)
    expected = int(np.argmax(rows["certified_gap"] <= 0.05 * rows["loss"][0]))
    assert run.hit == expected > 0
    assert run.probes["loss"][-1] <= 0.05 * rows["loss"][0]  # the minimum is 0


@pytest.mark.slow
def test_a_flow_stops_where_the_certificate_is_the_tolerance():
    loss, trace = (
        bw.losses.BuresWasserstein(TARGET, TAU),
        convex_minimum("BuresWasserstein", TAU)[1],
    )
    stop = until.certified_gap(0.02, trace_bound=trace, absolute=True)
    start, times = gaussian_factors(1, (5, 5)), [0.0, 10.0]
    flow = bw.gradient_flow(loss, start, times=times, rtol=1e-4, atol=1e-5, until=stop)
    assert 0.1 < flow.hit < 10.0
    end = certificate.optimality_gap(loss, flow.factors, trace_bound=trace).bound
    assert_close(end, 0.02, by_precision(1e-6, 1e-2))


def test_a_saddle_is_not_certified_and_a_perturbed_descent_leaves_it_and_is():
    gap = float(FROBENIUS(SADDLE[0]))
    stuck = bw.gradient_descent(
        FROBENIUS, SADDLE, optax.sgd(0.05), num_steps=3, save_every=3, until=STOP
    )
    assert stuck.hit == np.inf
    assert_close(stuck.factors[0], SADDLE[0], 100 * EPS)
    found = certificate.optimality_gap(FROBENIUS, SADDLE, trace_bound=TRACE)
    assert found.bound >= gap > 0.9
    assert_close(found.stationarity, 0.0, 100 * EPS)
    assert_close(found.smallest_eigenvalue, -2 * TARGET.eigenvalues[0], by_precision(1e-12, 1e-5))
    run = bw.gradient_descent(
        FROBENIUS,
        SADDLE,
        optax.chain(optax.sgd(0.05), NOISE_STEP),
        num_steps=3000,
        save_every=3000,
        until=until.certified_gap(by_precision(1e-5, 1e-3), trace_bound=TRACE),
    )
    assert 10 < run.hit < 2500
    assert run.probes["loss"][-1] <= by_precision(1e-5, 1e-3) * gap


@pytest.mark.float64
def test_columns_that_a_spectral_start_leaves_at_zero_stay_there_and_the_certificate_says_so():
    """Two measurements of the identity; minus the gradient at zero is `diag(3.5, -1.5)`."""
    A = np.stack([np.diag([3.0, -2.0]), np.diag([0.5, 0.5])])
    loss = bw.losses.Sensing(bw.operators.Dense(jnp.asarray(A)), jnp.asarray([1.0, 1.0]))
    (X,) = bw.initializers.spectral(loss)(jax.random.key(0), (2, 2))
    assert np.all(np.isclose(np.linalg.norm(X, axis=0), 0.0) == [False, True])
    ends, bounds = [], []
    for start in (X, X + jnp.array([[0.0, 0.0], [0.0, 1e-3]])):
        run = bw.gradient_descent(loss, (start,), optax.sgd(0.03), num_steps=2000, save_every=2000)
        ends.append(float(run.probes["loss"][-1]))
        bounds.append(float(certificate.optimality_gap(loss, run.factors, trace_bound=2.0).bound))
    m = 3.5 / 9.25  # least squares over diag(m, 0)
    best = ((3 * m - 1) ** 2 + (m / 2 - 1) ** 2) / 2
    assert_close(ends, [best, 0.0], 1e-10)
    assert bounds[0] >= best > 0.3
    assert bounds[1] < 1e-5


def test_a_run_goes_on_where_there_is_no_certificate_and_stops_once_it_is_not_finite():
    """Smoothing zero that only the values show; and a step that blows up."""
    start = gaussian_factors(1, (2, 5))

    def steps(tau, rate):
        return bw.gradient_descent(
            bw.losses.BuresWasserstein(TARGET, tau),
            start,
            optax.scale(-rate),
            num_steps=60,
            save_every=60,
            until=until.certified_gap(1e-9, trace_bound=1.0),
            throw=False,
        )

    run = jax.vmap(steps)(jnp.zeros(2), jnp.array([0.1, 1e30]))
    assert run.num_steps[0] == 60
    assert run.num_steps[1] < 60
    assert np.all(run.hit == np.inf)


def test_perturbations_are_uniform_in_the_ball():
    tree = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(1)}
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = jax.vmap(lambda key: perturbation.in_ball(key, tree, 0.5))(keys)
    x = np.concatenate([np.asarray(v).reshape(2000, -1) for v in jax.tree.leaves(drawn)], axis=1)
    assert x.shape == (2000, 5)
    radii = np.linalg.norm(x, axis=1)
    assert radii.max() <= 0.5 * (1 + 10 * EPS)
    assert kstest((radii / 0.5) ** 5, "uniform").pvalue > 1e-3
    # A coordinate of a uniform direction in 5 dimensions has the distribution 3/4 (1 - t^2).
    t = x / radii[:, None]
    for k in range(5):
        assert kstest(t[:, k], lambda t: (2 + 3 * t - t**3) / 4).pvalue > 1e-4


def test_perturbations_wait_for_a_small_gradient_and_for_their_turn():
    transform = perturbation.perturbed(0.1, gradient_norm=1.0, every=3, key=jax.random.key(0))
    x = jnp.zeros((2,))
    state, update, moved = transform.init(x), jax.jit(transform.update), []
    for size in (2.0, 0.5, 0.5, 0.5, 0.5, 2.0, 2.0, 0.5):
        step, state = update(x, state, x, grad=jnp.array([size, 0.0]))
        moved.append(bool(jnp.any(step != 0)))
    assert moved == [False, True, False, False, True, False, False, True]
    assert state.perturbations == 3
    step, _ = update(jnp.array([2.0, 0.0]), transform.init(x), x)
    assert step.tolist() == [2.0, 0.0]  # without `grad` the updates themselves are measured


# --- refusals ------------------------------------------------------------------------------------


class Plain(eqx.Module):
    def __call__(self, W):
        return jnp.sum(W**2)


class Convex(Plain):
    convex = True


LOW = bw.losses.BuresWasserstein(TARGET, 0.0)
THIN, FULL = gaussian_factors(1, (2, 5)), gaussian_factors(1, (5, 5))
PAIR = gaussian_factors(1, (2, 5))[0], gaussian_factors(2, (2, 5))[0]


def gap(loss=FROBENIUS, params=FULL, trace_bound=1.0, **options):
    return certificate.optimality_gap(loss, params, trace_bound=trace_bound, **options)


def stopped(loss, params, dynamics="gradient_descent", **options):
    how = {"num_steps": 1} if dynamics == "gradient_descent" else {}
    how |= {} if how else {"times": [0.0, 1.0], "rtol": 1e-3, "atol": 1e-3}
    solver = (optax.sgd(0.1),) if dynamics == "gradient_descent" else ()
    stop = until.certified_gap(1e-3, trace_bound=1.0, **options)
    return getattr(bw, dynamics)(loss, params, *solver, until=stop, **how)


KEY = jax.random.key(0)


def noise(radius=1.0, gradient_norm=1.0, every=1, key=KEY):
    return perturbation.perturbed(radius, gradient_norm=gradient_norm, every=every, key=key)


MEASURED = bw.losses.Sensing(bw.operators.Dense(np.eye(25).reshape(25, 5, 5)), np.ones(25))
BAD = {
    "trace zero": (lambda: gap(trace_bound=0.0), "trace_bound must be positive; got 0.0"),
    "trace infinite": (lambda: gap(trace_bound=np.inf), "trace_bound must be a finite number"),
    "form": (lambda: gap(form="primal"), "form must be one of dual, rank_deficiency"),
    "method": (lambda: gap(method="power"), "method must be one of auto, dense, lanczos"),
    "steps": (lambda: gap(steps=0), "steps must be a positive integer; got 0"),
    "failure": (lambda: gap(failure=0.7), "failure must be at most 0.5"),
    "smoothness": (lambda: gap(smoothness=-1.0), "smoothness must be positive"),
    "key": (lambda: gap(key=3), "key must be one random key"),
    "params": (lambda: gap(params=3), "factors must be a non-empty tuple|params must"),
    "no convexity": (lambda: gap(Plain()), "loss must be convex in W W.T .* Plain does not"),
    "no gradient": (lambda: gap(Convex()), "loss must offer `covariance_gradient`.* Convex does"),
    "no smoothness": (
        lambda: gap(Convex(), form="rank_deficiency"),
        "smoothness, .*, must be given .*: Convex does not offer it",
    ),
    "a pair's rank": (
        lambda: gap(MEASURED, PAIR, factorization=Rectangular(), form="rank_deficiency"),
        "form must be 'dual' for a pair of factors",
    ),
    "too few columns": (
        lambda: gap(LOW, THIN),
        "tau must be positive, or W have at least 5 columns, .* got tau = 0 and 2 columns",
    ),
    "too low a rank": (
        lambda: gap(LOW, (FULL[0].at[:, 0].set(0.0),)),
        "params must be where the loss is finite and has a gradient in W W.T",
    ),
    "criterion's tolerance": (
        lambda: until.certified_gap(0.0, trace_bound=1.0),
        "tolerance must be positive",
    ),
    "criterion's trace": (
        lambda: until.certified_gap(1.0, trace_bound=-1.0),
        "trace_bound must be positive",
    ),
    "probe's quantity": (lambda: certificate.probe("lost", trace_bound=1.0), "unknown quantity"),
    "radius": (lambda: noise(radius=0.0), "radius must be positive"),
    "gradient_norm": (lambda: noise(gradient_norm=-1.0), "gradient_norm must be positive"),
    "every": (lambda: noise(every=0), "every must be a positive integer"),
    "noise's key": (lambda: noise(key=0), "key must be one random key"),
} | {
    f"{dynamics}: {name}": (partial(stopped, loss, params, dynamics), message)
    for dynamics in ("gradient_descent", "gradient_flow")
    for name, loss, params, message in (
        ("too few columns", LOW, THIN, "tau must be positive, or W have at least 5 columns"),
        ("no convexity", Plain(), FULL, "loss must be convex"),
    )
}


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("name", BAD)
def test_what_has_no_certificate_is_refused_with_the_reason(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_the_rank_form_needs_no_gradient_in_the_covariance():
    """`tr(M)` is smooth with any constant, and 0 is its minimum."""
    W = FULL[0]
    found = gap(Convex(), form="rank_deficiency", smoothness=1e-3)
    assert found.bound >= float(jnp.sum(W**2))
    assert_close(found.smallest_eigenvalue, 2.0, by_precision(1e-12, 1e-5))
    assert isinstance(Rectangular().assemble(PAIR), Product)
    same = gap(params=W, factorization=Symmetric())
    assert_close(same.bound, gap().bound, 100 * EPS)
