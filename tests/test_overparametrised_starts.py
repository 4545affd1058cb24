"""Spectral starts, sketches and adapters: against numpy, and by what descents make of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, by_precision
from jax.tree_util import Partial

import bwflow as bw
from bwflow import initializers

KEY = jax.random.key(0)
DTYPE = np.dtype(jnp.result_type(float))
EXACT = by_precision(1e-12, 2e-5)


def orthonormal(seed, n, k):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, k)))[0]


def in_float64(*arrays):
    return tuple(np.asarray(x, np.float64) for x in arrays)


class Quadratic(eqx.Module):
    """`weight/2 ||(E - left diag(core) right^T) * mask||^2` of `E = W W^T` or `E = L R^T`."""

    left: jax.Array
    core: jax.Array
    right: jax.Array
    weight: jax.Array
    mask: jax.Array | None = None
    dense: bool = eqx.field(static=True, default=True)

    def residual(self, E):
        L, R = (E.left, E.right) if isinstance(E, bw.factors.Product) else (E, E)
        D = L @ R.T - self.left * self.core[None, :] @ self.right.T
        return D if self.mask is None else D * self.mask

    def __call__(self, E):
        return self.weight / 2 * jnp.sum(self.residual(E) ** 2)

    def covariance_gradient(self, E):
        pair = isinstance(E, bw.factors.Product)
        tags = () if pair else lx.symmetric_tag
        if self.dense:
            return lx.MatrixLinearOperator(self.weight * self.residual(E), tags)
        # Only at zero, where nothing but the target is left.
        p = E.right.shape[0] if pair else E.shape[0]
        return lx.FunctionLinearOperator(
            lambda v: -self.weight * (self.left @ (self.core * (self.right.T @ v))),
            jax.ShapeDtypeStruct((p,), E.dtype),
            tags,
        )


def quadratic(U, s, V, weight=1.0, **options):
    return Quadratic(*(jnp.asarray(x, float) for x in (U, s, V, weight)), **options)


S = np.array([3.0, 2.0, 0.5, -1.0, -4.0])
U, V = orthonormal(0, 9, 5), orthonormal(1, 8, 5)
SYMMETRIC, GENERAL = quadratic(U, S, U, 0.3), quadratic(U, S, V, 0.3)


@pytest.mark.parametrize("rank", [1, 2, 4, 9, 11])
def test_spectral_start_is_the_positive_part_of_that_rank(rank):
    """The fourth and later eigenvalues are negative: their columns are zero."""
    (W,) = in_float64(*initializers.spectral(SYMMETRIC)(KEY, (rank, 9)))
    k = min(rank, 3)
    assert W.shape == (9, rank)
    assert_close(W @ W.T, (U[:, :k] * S[:k]) @ U[:, :k].T, 4 * EXACT)


def test_spectral_pair_is_the_best_approximation_and_balanced():
    L, R = in_float64(*initializers.spectral(GENERAL, rectangular=True)(KEY, (8, 2, 9)))
    assert_close(L @ R.T, (U[:, [4, 0]] * S[[4, 0]]) @ V[:, [4, 0]].T, 4 * EXACT)
    assert_close(L.T @ L, R.T @ R, 4 * EXACT)
    wide = initializers.spectral(GENERAL, rectangular=True)(KEY, (8, 10, 9))
    assert [F.shape for F in wide] == [(9, 10), (8, 10)]
    L, R = in_float64(*wide)
    assert_close(L @ R.T, (U * S) @ V.T, 4 * EXACT)


def test_spectral_start_of_given_scale_is_the_back_projection():
    (W,) = in_float64(*initializers.spectral(SYMMETRIC, scale=1.0)(KEY, (1, 9)))
    assert_close(W @ W.T, 0.3 * 3.0 * U[:, :1] @ U[:, :1].T, EXACT)


def test_spectral_start_of_a_deep_network_is_split_evenly():
    layers = initializers.spectral(SYMMETRIC)(KEY, (6, 2, 5, 9))
    (W,) = in_float64(bw.end_to_end(layers))
    assert bw.factors.widths(layers) == (6, 2, 5, 9)
    assert_close(W @ W.T, (U[:, :2] * S[:2]) @ U[:, :2].T, by_precision(1e-11, 1e-4))
    assert max(float(jnp.max(jnp.abs(D))) for D in bw.imbalance(layers)) < by_precision(1e-12, 1e-5)


@pytest.mark.parametrize("rectangular", [False, True])
def test_the_default_scale_is_least_on_its_ray(rectangular):
    """Of a masked target it is about the inverse of the observed fraction, and optimal."""
    mask = np.random.default_rng(2).random((60, 60)) < 0.5
    Q = orthonormal(3, 60, 2)
    mask = mask | mask.T
    loss = quadratic(Q, [2.0, 1.0], Q, 1.0, mask=jnp.asarray(mask, float))
    widths = (60, 2, 60) if rectangular else (2, 60)
    start = in_float64(*initializers.spectral(loss, rectangular=rectangular)(KEY, widths))
    M0 = start[0] @ start[-1].T
    Y = mask * ((Q * [2.0, 1.0]) @ Q.T)
    s, B = np.linalg.eigh(Y)
    top = np.argsort(-np.abs(s) if rectangular else -s)[:2]
    P = (B[:, top] * s[top]) @ B[:, top].T
    c = np.vdot(P, Y) / np.sum((mask * P) ** 2)
    assert_close(M0, c * P, 20 * EXACT)
    # The fit bends towards what was observed, by a fraction of some (1 - q) 2 r / (q n) = 0.02
    # times 3, the kurtosis of the entries.
    assert abs(c * mask.mean() - 1) < 0.1


def test_large_operators_are_never_formed_and_agree_with_a_dense_decomposition():
    """Rank 5 with both signs, 700 x 600, by products with vectors alone."""
    U, V = orthonormal(4, 700, 5), orthonormal(5, 600, 5)
    for given, rectangular, widths, k in (
        ((U, S, U), False, (3, 700), [0, 1, 2]),
        ((U, S, V), True, (600, 2, 700), [4, 0]),
    ):
        loss = quadratic(*given, dense=False)
        init = initializers.spectral(loss, rectangular=rectangular, scale=1.0)
        start = in_float64(*init(KEY, widths))
        expected = (given[0][:, k] * S[k]) @ given[2][:, k].T
        assert_close(start[0] @ start[-1].T, expected, by_precision(1e-12, 1e-5))


@pytest.mark.float64
def test_large_operators_with_a_tail_are_decomposed_to_the_digits_of_chebyshev():
    """Eigenvalues 1, 1/2, 1/4 beyond a tail within 1/8: angles of about `1 / T_8(2) = 5e-5`."""
    n = 520
    s = np.concatenate([[1.0, 0.5, 0.25], np.linspace(-0.125, 0.125, n - 3)])
    Q = orthonormal(6, n, n)
    (W,) = in_float64(*initializers.spectral(quadratic(Q, s, Q), scale=1.0)(KEY, (3, n)))
    assert_close(W @ W.T, (Q[:, :3] * s[:3]) @ Q[:, :3].T, 1e-5)


def covariance(n, rank, condition, seed=0):
    """Target of geometric eigenvalues from 1 to `1 / condition`, and a square root of it."""
    Q, lam = orthonormal(seed, n, rank), np.geomspace(1.0, 1 / condition, rank)
    return bw.Target.from_factor(jnp.asarray(Q * np.sqrt(lam), float), rank=rank), Q, lam


def sketched_descent(target, widths, rate, steps, std=1.0):
    """The end-to-end matrices of ScaledGD with `mu = rate` from a sketch, by pseudo-inverses."""
    start = initializers.nystrom(target, std)(KEY, widths)
    probe = Partial(lambda loss, params: {"W": params[0]})
    run = bw.gradient_descent(
        bw.losses.Frobenius(target),
        start,
        bw.precondition.agn(rate / 4),  # the gradient is 4 (X X^T - A) X
        num_steps=steps,
        probe=probe,
    )
    return np.asarray(run.probes["W"], np.float64)


@pytest.mark.float64
@pytest.mark.parametrize(("r", "rate"), [(4, 0.5), (4, 0.3), (9, 0.5)])
def test_scaled_descent_from_a_sketch_is_newtons_iteration_for_a_root(r, rate):
    """`S <- (1 - eta)^2 S + 2 eta (1 - eta) I + eta^2 S^{-1}` for `S = A^{-1/2} X X^T A^{-1/2}`."""
    target, Q, lam = covariance(12, 4, 10.0)
    X = sketched_descent(target, (r, 12), rate, 8)
    root = Q / np.sqrt(lam)
    expected = root.T @ X[0] @ X[0].T @ root
    for W in X[1:]:
        expected = (
            (1 - rate) ** 2 * expected
            + 2 * rate * (1 - rate) * np.eye(4)
            + rate**2 * np.linalg.inv(expected)
        )
        assert_close(root.T @ W @ W.T @ root, expected, 1e-9 * np.abs(expected).max())
        assert np.abs(W - Q @ (Q.T @ W)).max() < 1e-11 * np.abs(W).max()


@pytest.mark.float64
@pytest.mark.parametrize(("condition", "std"), [(10.0, 1.0), (1e3, 1.0), (10.0, 1e-3)])
def test_digits_double_and_their_number_is_foretold(condition, std):
    """`max log_4 max(s, 1/s)` steps to the basin, then `log_2 log(1/eps)`: errors are squared."""
    target, Q, lam = covariance(20, 4, condition)
    X = sketched_descent(target, (4, 20), 0.5, 25, std)
    A = (Q * lam) @ Q.T
    errors = np.array([np.linalg.norm(W @ W.T - A) / np.linalg.norm(A) for W in X])
    s = np.linalg.eigvalsh((Q / np.sqrt(lam)).T @ X[0] @ X[0].T @ (Q / np.sqrt(lam)))
    arrival = int(np.argmax(errors <= 1e-8))
    foretold = np.max(np.log(np.maximum(s, 1 / s))) / np.log(4) + np.log2(np.log(1e8))
    assert 0 < arrival <= foretold + 1
    # Below a tenth each error is at most the square of the last, relative to the eigenvalues.
    late = np.flatnonzero((errors < 0.1) & (errors > 1e-6))
    assert late.size >= 2
    assert np.all(errors[late + 1] <= condition * errors[late] ** 2)


@pytest.mark.float64
def test_other_starts_have_the_linear_rate():
    """Outside the range of the target columns shrink by `1 - eta` a step, no faster."""
    target, Q, _ = covariance(12, 4, 10.0)
    (X0,) = initializers.gaussian(1.0)(KEY, (4, 12))
    optimizer = bw.precondition.scaledgd(1 / 8)
    probe = lambda loss, params: {"W": params[0]}
    run = bw.gradient_descent(
        bw.losses.Frobenius(target), (X0,), optimizer, num_steps=20, probe=probe
    )
    outside = np.asarray(
        [np.linalg.norm(W - Q @ (Q.T @ W)) for W in in_float64(run.probes["W"])[0]]
    )
    assert np.all(np.abs(outside[1:] / outside[:-1] - 0.5) < 1e-9)


def test_sketches_are_the_product_with_one_gaussian_whatever_holds_the_target():
    target, Q, lam = covariance(6, 3, 4.0)
    A = target.covariance
    starts = [
        initializers.nystrom(given, 0.5)(KEY, (2, 6))[0]
        for given in (target, A, lx.MatrixLinearOperator(A))
    ]
    Omega = np.asarray(jax.random.normal(KEY, (6, 2), DTYPE), np.float64)
    for W in starts:
        assert_close(W, 0.5 * (Q * lam) @ Q.T @ Omega, EXACT)
    deep = initializers.nystrom(target, 0.5)(KEY, (2, 3, 6))
    assert_close(bw.end_to_end(deep), starts[0], 10 * EXACT)
    B = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)), float)
    L, R = initializers.nystrom(B, rectangular=True)(KEY, (5, 3, 6))
    drawn = np.asarray(jax.random.normal(KEY, (5, 3), DTYPE), np.float64)
    assert_close(L, in_float64(B)[0] @ drawn, 10 * EXACT)
    assert_close(R, np.zeros((5, 3)), 0.0)


class Adapted(eqx.Module):
    """Mean squared error of the layer `W0 + scaling L R^T`."""

    W0: jax.Array
    inputs: jax.Array
    outputs: jax.Array
    scaling: jax.Array

    def __call__(self, E):
        x = self.inputs
        predicted = x @ self.W0.T + self.scaling * (x @ E.right) @ E.left.T
        return jnp.sum((predicted - self.outputs) ** 2) / (2 * x.shape[0])


def test_an_adapter_tunes_a_real_layer_to_other_labels():
    """Ridge weights of even against odd digits, adapted at rank 4 to read all ten digits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images[:600] - images.mean(0)) / 16
    odd = (labels[:600] % 2)[:, None] - 0.5
    ridge = lambda y: np.linalg.solve(x.T @ x + 6 * np.eye(64), x.T @ y).T
    even_weights, targets = ridge(odd * np.ones((1, 10))), np.eye(10)[labels[:600]] - 0.1
    r, alpha = 4, 8.0
    W0 = jnp.asarray(even_weights, float)
    L, R = initializers.nora(W0, 0.5, alpha=alpha)(KEY, (64, r, 10))
    Omega = np.asarray(jax.random.normal(KEY, (10, r), DTYPE), np.float64)
    assert_close(R, 0.5 * even_weights.T @ Omega / (alpha / r), 1e-6)
    assert not np.any(np.asarray(L))

    loss = Adapted(W0, jnp.asarray(x, float), jnp.asarray(targets, float), jnp.asarray(alpha / r))
    loss = jax.tree.map(lambda leaf: leaf.astype(DTYPE), loss)
    losses = {
        name: np.asarray(
            bw.gradient_descent(
                loss,
                (L, R),
                optimizer,
                num_steps=200,
                save_every=200,
                factorization=bw.factors.Rectangular(),
            ).probes["loss"],
            np.float64,
        )
        for name, optimizer in (
            ("plain", optax.sgd(0.02)),
            ("adapted", bw.precondition.noraplus(0.01)),
        )
    }
    # No rank-4 change of the layer does better than this, by the closed form of reduced rank
    # regression: the projection of the fit's fourth singular subspace.
    best = np.linalg.lstsq(x, targets - x @ even_weights.T, rcond=None)[0]
    left, s, right = np.linalg.svd(x @ best, full_matrices=False)
    fit = (left[:, :r] * s[:r]) @ right[:r]
    least = np.sum((x @ even_weights.T + fit - targets) ** 2) / 1200
    gaps = {name: (found - least) / (found[0] - least) for name, found in losses.items()}
    assert np.all(losses["adapted"] >= least * (1 - 1e-5))
    assert gaps["adapted"][-1] < 0.1
    assert gaps["adapted"][-1] < gaps["plain"][-1] / 2


FACTORIES = {
    "spectral": lambda: initializers.spectral(SYMMETRIC),
    "a spectral pair": lambda: initializers.spectral(GENERAL, rectangular=True),
    "nystrom": lambda: initializers.nystrom(GENERAL.left @ GENERAL.left.T),
    "a sketched pair": lambda: initializers.nystrom(GENERAL.left @ GENERAL.right.T, 1.0, True),
    "nora": lambda: initializers.nora(GENERAL.left @ GENERAL.right.T),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_starts_are_drawn_in_a_batch_and_in_the_dtype_asked_for(name):
    init = FACTORIES[name]()
    widths = (2, 9) if name in ("spectral", "nystrom") else (8, 2, 9)
    keys = jax.random.split(KEY, 2)
    batch = jax.jit(jax.vmap(lambda key: init(key, widths)))(keys)
    for i in range(2):
        for drawn, one in zip(batch, init(keys[i], widths), strict=True):
            P, Q = in_float64(drawn[i], one)
            assert_close(P @ P.T, Q @ Q.T, by_precision(1e-11, 1e-3))
    if EXACT > 1e-6 or name in ("nystrom", "a sketched pair", "nora"):
        assert all(F.dtype == np.float32 for F in init(KEY, widths, np.float32))


class Bare(eqx.Module):
    def __call__(self, W):
        return jnp.sum(W**2)


class Infinite(Bare):
    def covariance_gradient(self, W):
        n = W.shape[0]
        return lx.MatrixLinearOperator(jnp.full((n, n), jnp.inf, W.dtype), lx.symmetric_tag)


EYE = np.eye(3, 2, dtype=DTYPE)
REFUSED = {
    "loss": (lambda: initializers.spectral(Bare()), "loss must offer `covariance_gradient`.*Bare"),
    "scale": (lambda: initializers.spectral(SYMMETRIC, scale=-1.0), "scale must be at least 0"),
    "gradient": (
        lambda: initializers.spectral(Infinite(), scale=1.0)(KEY, (2, 3)),
        "loss must have a finite gradient at zero",
    ),
    "widths of a pair": (
        lambda: initializers.spectral(GENERAL, rectangular=True)(KEY, (2, 9)),
        r"widths must be \(p, r, n\) for a pair; got \(2, 9\)",
    ),
    "square": (lambda: initializers.nystrom(EYE), "target must be square"),
    "matrix": (lambda: initializers.nystrom([1, 2]), "target must have 2 dimensions"),
    "std": (lambda: initializers.nystrom(EYE, -1.0, True), "std must be at least 0"),
    "widths of a sketch": (
        lambda: initializers.nystrom(EYE @ EYE.T)(KEY, (2, 4)),
        "widths must end with 3 for this target",
    ),
    "widths of a sketched pair": (
        lambda: initializers.nystrom(EYE, 1.0, True)(KEY, (3, 1, 2)),
        r"widths must be \(2, r, 3\) for this target",
    ),
    "weight": (lambda: initializers.nora(EYE[0]), "W0 must have 2 dimensions"),
    "sigma": (lambda: initializers.nora(EYE, -0.1), "sigma must be at least 0"),
    "alpha": (lambda: initializers.nora(EYE, alpha=0.0), "alpha must be positive"),
    "widths of an adapter": (
        lambda: initializers.nora(EYE)(KEY, (3, 1, 2)),
        r"widths must be \(2, r, 3\) for this W0",
    ),
    "key": (lambda: initializers.nora(EYE)(0, (2, 1, 3)), "key must be one random key"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("as_installed")
def test_bad_input_is_refused_by_name(name):
    call, refusal = REFUSED[name]
    with pytest.raises(ValueError, match=refusal):
        call()
