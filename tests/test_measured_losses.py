"""Measurement operators and the losses on them, held against sums over stored matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_precision
from scipy.special import expit

import bwflow as bw
from bwflow import losses, operators
from bwflow.factors import Product

KEY = jax.random.key(0)
M, N, P = 7, 4, 3  # measurements of n x p matrices; square where p = n


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def every_operator(n, p):
    rows, columns = [0, 1, 2, 2, 0, 3, 1], [0, 2, 1, 1, 2, 0, 1]  # one entry twice
    return {
        "dense": operators.Dense(array(drawn(0, M, n, p))),
        "gaussian": operators.Gaussian(KEY, M, (n, p)),
        "rank one": operators.RankOne(array(drawn(1, M, n)), array(drawn(2, M, p))),
        "entries": operators.Entries(rows, columns, (n, p)),
        "cosine": operators.Cosine(KEY, M, (n, p)),
    }


KINDS = list(every_operator(N, P))


def stored(operator):
    """The `A_i`, column by column: what the operator says of unit matrices."""
    n, p = operator.shape
    unit = lambda i, j: operator(jnp.eye(n)[:, [i]], jnp.eye(p)[:, [j]])
    return np.array([[unit(i, j) for j in range(p)] for i in range(n)]).transpose(2, 0, 1)


def formula(kind, operator):
    """The `A_i` written out, where they are not drawn inside."""
    A = np.zeros((M, *operator.shape))
    if kind == "dense":
        return np.asarray(operator.matrices)
    if kind == "rank one":
        return np.einsum("mi,mj->mij", operator.left, operator.right)
    for k, (i, j) in enumerate(zip(operator.rows, operator.columns, strict=True)):
        A[k, i, j] = 1.0
    return A


@pytest.mark.parametrize("kind", KINDS)
def test_operator_measures_products_and_its_adjoint_sums_matrices(kind, monkeypatch):
    monkeypatch.setattr(operators, "_CHUNK", 24)  # blocks of two matrices, the last one padded
    operator = every_operator(N, P)[kind]
    A = stored(operator)
    if kind in ("dense", "rank one", "entries"):
        assert_close(A, formula(kind, operator), by_precision(1e-14, 1e-6))
    assert operator.shape == (N, P)
    assert operator.num_measurements == M
    left, right, v = array(drawn(3, N, 2)), array(drawn(4, P, 2)), array(drawn(5, M))
    expected = np.einsum("mij,ir,jr->m", A, left, right)
    assert_close(operator(left, right), expected, by_precision(1e-13, 2e-5))
    adjoint = operator.adjoint(v)
    Z = np.einsum("m,mij->ij", np.asarray(v), A)
    assert_close(adjoint.as_matrix(), Z, by_precision(1e-13, 2e-5))
    x, y = array(drawn(6, P)), array(drawn(7, N))
    assert_close(adjoint.mv(x), Z @ x, by_precision(1e-13, 2e-5))
    assert_close(adjoint.transpose().mv(y), Z.T @ y, by_precision(1e-13, 2e-5))
    # Derivatives of <A(L R^T), v> are those two products.
    found = jax.grad(lambda left, right: operator(left, right) @ v, argnums=(0, 1))(left, right)
    for g, expected in zip(found, (Z @ right, Z.T @ left), strict=True):
        assert_close(g, expected, by_precision(1e-13, 2e-5))


@pytest.mark.once
@pytest.mark.parametrize("kind", ["Gaussian", "Cosine"])
def test_drawn_operators_keep_the_norm_on_average(kind):
    X = array(drawn(0, N, 2))

    def energy(key):
        return jnp.sum(getattr(operators, kind)(key, 5, (N, N))(X, X) ** 2)

    energies = np.asarray(jax.vmap(energy)(jax.random.split(KEY, 4000)))
    expected = np.sum((X @ X.T) ** 2)
    error = np.std(energies) / np.sqrt(energies.size)
    assert abs(np.mean(energies) - expected) < 4 * error < 0.1 * expected


@pytest.mark.once
def test_a_fully_sampled_cosine_transform_keeps_every_norm():
    operator = operators.Cosine(KEY, N * P, (N, P))
    A = stored(operator).reshape(N * P, -1)
    assert_close(A.T @ A, np.eye(N * P), by_precision(1e-13, 1e-5))


def phi(kind, z, y):
    """The loss of measurements and its slope."""
    m = z.size
    if kind == "Sensing":
        return np.sum((z - y) ** 2) / 2, z - y
    if kind == "OneBit":
        return np.mean(np.logaddexp(0, z) - y * z), (expit(z) - y) / m
    if kind == "PhaseRetrieval":
        return np.mean((z - y) ** 2) / 2, (z - y) / m
    if kind == "Completion":
        share = m / N**2
        return np.sum((z - y) ** 2) / (2 * share), (z - y) / share
    return np.sum(np.abs(z - y)), np.sign(z - y)


def loss_of(kind, square=True):
    p = N if square else P
    y = array(np.abs(drawn(8, M)) % 1)
    every = every_operator(N, p)
    if kind == "PhaseRetrieval":
        return losses.PhaseRetrieval(every["rank one"].left, y)
    if kind == "Completion":
        entries = every["entries"]
        return losses.Completion(entries.rows, entries.columns, y, (N, p))
    return getattr(losses, kind)(every["dense"], y)


LOSSES = ["Sensing", "OneBit", "PhaseRetrieval", "Completion", "AbsoluteSensing"]


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_and_gradient_of_a_covariance(kind):
    loss, W = loss_of(kind), array(drawn(9, N, 2))
    A = stored(loss.operator)
    value, slope = phi(kind, np.einsum("mij,ir,jr->m", A, W, W), np.asarray(loss.y))
    Z = np.einsum("m,mij->ij", slope, A)
    G = (Z + Z.T) / 2
    assert_close(loss(W), value, by_precision(1e-13, 2e-5))
    # Twice the symmetric part times W, whether or not the A_i are symmetric.
    assert_close(jax.grad(loss)(W), 2 * G @ W, by_precision(1e-13, 1e-4))
    operator = loss.covariance_gradient(W)
    assert_close(operator.as_matrix(), G, by_precision(1e-13, 1e-4))
    assert_close(operator.mv(W[:, 0]), G @ W[:, 0], by_precision(1e-13, 1e-4))
    assert loss.convex
    if kind in ("OneBit", "PhaseRetrieval"):
        assert_close(loss.error_scale(W), np.linalg.norm(G), by_precision(1e-13, 1e-4))
    elif kind != "AbsoluteSensing":
        assert_close(loss.error_scale(W), np.sqrt(value), by_precision(1e-13, 1e-4))


@pytest.mark.parametrize("kind", ["Sensing", "Completion"])
def test_loss_and_gradient_of_a_product(kind):
    loss = loss_of(kind, square=False)
    E = Product(array(drawn(9, N, 2)), array(drawn(10, P, 2)))
    A, share = stored(loss.operator), 1.0 if kind == "Sensing" else M / (N * P)
    residual = np.einsum("mij,ij->m", A, E.matrix()) - np.asarray(loss.y)
    Z = np.einsum("m,mij->ij", residual / share, A)
    assert_close(loss(E), np.sum(residual**2) / (2 * share), by_precision(1e-13, 1e-4))
    found = jax.grad(loss)(E)
    assert_close(found.left, Z @ E.right, by_precision(1e-13, 1e-4))
    assert_close(found.right, Z.T @ E.left, by_precision(1e-13, 1e-4))
    assert_close(loss.covariance_gradient(E).as_matrix(), Z, by_precision(1e-13, 1e-4))


def test_error_scale_of_sensing_takes_the_noise_out_and_survives_a_loss_below_it():
    operator, W = every_operator(N, N)["dense"], array(drawn(9, N, 2))
    y = operator(W, W) + 1.0
    assert_close(losses.Sensing(operator, y, noise_energy=M / 2).error_scale(W), 0.0, 1e-3)
    loss = losses.Sensing(operator, y - 1.0, noise_energy=2.0)
    assert_close(loss.error_scale(W), np.sqrt(2.0), by_precision(1e-12, 1e-4))
    slope = jax.grad(losses.Sensing(operator, y - 1.0).error_scale)(W)
    assert np.all(np.isfinite(slope))


@pytest.mark.float64
def test_gradients_of_the_target_losses_in_the_covariance():
    Sigma, W, tau = np.diag([3.0, 2.0, 1.0, 0.5]), drawn(9, N, N), 0.3
    S = W @ W.T + tau * np.eye(N)
    target = bw.Target(array(Sigma))
    frobenius = losses.Frobenius(target, tau)
    assert_close(frobenius.covariance_gradient(array(W)).as_matrix(), 2 * (S - Sigma), 1e-12)
    assert_close(frobenius.error_scale(array(W)), np.linalg.norm(S - Sigma), 1e-12)
    # The transport map T carries S to Sigma: T S T = Sigma, and G = I - T.
    G = losses.BuresWasserstein(target, tau).covariance_gradient(array(W)).as_matrix()
    T = np.eye(N) - np.asarray(G)
    assert np.linalg.eigvalsh(T)[0] > 0
    assert_close(T @ S @ T, Sigma, 1e-11)


@pytest.mark.float64
def test_gradient_in_the_covariance_for_targets_of_low_rank_and_where_there_is_none():
    B, W = array(drawn(0, N, 2)), array(drawn(1, N, 2))
    loss = losses.BuresWasserstein(bw.Target.from_factor(B))
    operator = loss.covariance_gradient(W)
    gradient = jax.grad(loss)(W)
    assert_close(2 * jax.vmap(operator.mv, 1, 1)(W), gradient, 1e-11)
    # One direction of W lacks: the values alone say that there is no gradient.
    assert np.all(np.isnan(loss.covariance_gradient(W.at[:, 1].set(0.0)).mv(W[:, 0])))


@pytest.mark.once
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_many_starts_share_one_product_with_the_measurement_matrices(platform):
    loss, many = loss_of("Sensing"), jnp.zeros((5, N, 2))
    gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    text = gradients.trace(many).lower(lowering_platforms=(platform,)).as_text()
    assert "callback" not in text
    assert "while" not in text
    # The array of matrices meets all five starts at once, and once on the way back.
    flat = f"tensor<{M}x{N * N}x"
    products = [line for line in text.splitlines() if "dot_general" in line and flat in line]
    assert len(products) == 2
    assert all("5x" in line for line in products)


@pytest.mark.once
def test_completion_holds_no_matrix_of_the_full_size():
    n, r, m = 3000, 4, 20_000
    rows, columns = np.random.default_rng(0).integers(0, n, size=(2, m))
    loss = losses.Completion(rows, columns, jnp.zeros(m), (n, n))
    gradient = jax.jit(jax.value_and_grad(loss)).lower(jnp.zeros((n, r))).compile()
    memory = gradient.memory_analysis()
    # Some eight vectors of measurements gathered row by row, and copies of the factor.
    assert memory.temp_size_in_bytes < 8 * (10 * m * r + 10 * n * r) < 8 * n * n / 5


DENSE = operators.Dense(np.ones((2, 2, 2)))
TALL = operators.Dense(np.ones((2, 3, 2)))
REFUSED = {
    "empty": (lambda: operators.Dense(np.ones((0, 2, 2))), "matrices must not be empty; got"),
    "two dimensions": (lambda: operators.Dense(np.eye(2)), "matrices must have 3 dimensions"),
    "NaN": (lambda: operators.Dense(np.full((1, 2, 2), np.nan)), "matrices must be finite"),
    "no key": (lambda: operators.Gaussian(0, 2, (2, 2)), "key must be one random key"),
    "no shape": (lambda: operators.Gaussian(KEY, 2, 2), r"shape must be a pair \(n, p\); got 2"),
    "no count": (lambda: operators.Gaussian(KEY, 0, (2, 2)), "num_measurements must be a pos"),
    "too many": (lambda: operators.Cosine(KEY, 5, (2, 2)), "num_measurements must be at most n p"),
    "rows differ": (
        lambda: operators.RankOne(np.ones((2, 2)), np.ones((3, 2))),
        "left and right must be non-empty matrices with as many rows",
    ),
    "index too large": (lambda: operators.Entries([2], [0], (2, 2)), "rows must be at least 0 and"),
    "index negative": (lambda: operators.Entries([0], [-1], (2, 2)), "columns must be at least 0"),
    "no integers": (lambda: operators.Entries([0.5], [0], (2, 2)), "rows must be a non-empty list"),
    "lengths": (lambda: operators.Entries([0, 1], [0], (2, 2)), "rows and columns must have as"),
    "factors": (lambda: DENSE(np.ones((2, 1)), np.ones((2, 2))), "left and right must have shapes"),
    "adjoint": (lambda: DENSE.adjoint(np.ones(3)), "v must have 2 entries"),
    "no operator": (lambda: losses.Sensing(np.eye(2), np.ones(2)), "operator must be an operator"),
    "length of y": (lambda: losses.Sensing(DENSE, np.ones(3)), "y must have 2 entries"),
    "infinite y": (lambda: losses.Sensing(DENSE, np.array([1.0, np.inf])), "y must be finite"),
    "energy": (lambda: losses.Sensing(DENSE, np.ones(2), -1.0), "noise_energy must be at least 0"),
    "labels": (lambda: losses.OneBit(DENSE, np.array([0.0, 2.0])), "y must be at most 1.0"),
    "not square": (
        lambda: losses.Sensing(TALL, np.ones(2))(np.ones((3, 1))),
        "W must be a bwflow.factors.Product, as the operator has shape",
    ),
    "rank": (lambda: losses.Sensing(DENSE, np.ones(2)).statistical_floor(3), "rank must be at mos"),
    "no gradient": (
        lambda: losses.BuresWasserstein(bw.Target(np.eye(2))).covariance_gradient(np.ones((2, 1))),
        "tau must be positive, or W have at least 2 columns",
    ),
}


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
