"""Losses of measurements, held against sums over stored matrices written in numpy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, by_precision
from scipy.special import expit

import bwflow as bw
from bwflow import losses, operators
from bwflow.factors import Product, Rectangular, Symmetric

M, N, P = 7, 4, 3  # measurements of n x n or n x p matrices
ROWS, COLUMNS = [0, 1, 2, 2, 0, 3, 1], [0, 2, 1, 1, 2, 0, 1]  # one entry twice
LOSSES = ["Sensing", "OneBit", "PhaseRetrieval", "Completion", "AbsoluteSensing"]
TOLERANCE = by_precision(1e-13, 1e-4)


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


Y = np.abs(drawn(8, M)) % 1


def matrices(kind, p):
    """The `A_i`, none of them symmetric but those of phase retrieval."""
    if kind == "PhaseRetrieval":
        return np.einsum("mi,mj->mij", drawn(1, M, N), drawn(1, M, N))
    if kind == "Completion":
        A = np.zeros((M, N, p))
        A[np.arange(M), ROWS, COLUMNS] = 1.0
        return A
    return drawn(0, M, N, p)


@functools.cache
def loss_of(kind, p=N):
    if kind == "PhaseRetrieval":
        return losses.PhaseRetrieval(array(drawn(1, M, N)), array(Y))
    if kind == "Completion":
        return losses.Completion(ROWS, COLUMNS, array(Y), (N, p))
    return getattr(losses, kind)(operators.Dense(array(matrices(kind, p))), array(Y))


def phi(kind, z, p=N, Y=Y):
    """The loss of measurements, its slope, and the largest curvature of a measurement."""
    if kind == "Sensing":
        return np.sum((z - Y) ** 2) / 2, z - Y, 1.0
    if kind == "OneBit":
        return np.mean(np.logaddexp(0, z) - Y * z), (expit(z) - Y) / M, 1 / (4 * M)
    if kind == "PhaseRetrieval":
        return np.mean((z - Y) ** 2) / 2, (z - Y) / M, None
    if kind == "Completion":
        share = M / (N * p)
        return np.sum((z - Y) ** 2) / (2 * share), (z - Y) / share, 1 / share
    return np.sum(np.abs(z - Y)), np.sign(z - Y), None


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_of_a_covariance_has_twice_the_symmetric_part_for_gradient(kind):
    loss, W, A = loss_of(kind), drawn(9, N, 2), matrices(kind, N)

    @jax.jit
    def everything(loss, W):
        gradient = loss.covariance_gradient(W)
        scale = loss.error_scale(W) if hasattr(loss, "error_scale") else None
        grad = jax.value_and_grad(lambda W: loss(W))(W)
        return grad, gradient.as_matrix(), gradient.mv(W[:, 0]), scale

    value, slope, curvature = phi(kind, np.einsum("mij,ir,jr->m", A, W, W))
    Z = np.einsum("m,mij->ij", slope, A)
    G = (Z + Z.T) / 2
    found, matrix, product, scale = everything(loss, array(W))
    assert_close(found[0], value, TOLERANCE)
    assert_close(found[1], 2 * G @ W, TOLERANCE)
    assert_close(matrix, G, TOLERANCE)
    assert_close(product, G @ W[:, 0], TOLERANCE)
    if kind in ("OneBit", "PhaseRetrieval"):
        assert_close(scale, np.linalg.norm(G), TOLERANCE)
    elif kind != "AbsoluteSensing":
        assert_close(scale, np.sqrt(value), TOLERANCE)
    assert loss.convex
    smoothness = getattr(loss, "smoothness", None)
    if curvature is None:
        assert smoothness is None
    else:
        norm = np.linalg.norm(A.reshape(M, -1), 2)
        assert_close(smoothness, curvature * norm**2, TOLERANCE)


@pytest.mark.parametrize("kind", ["Sensing", "Completion"])
def test_loss_of_a_product_has_its_gradient_times_the_other_factor(kind):
    loss, left, right, A = loss_of(kind, P), drawn(9, N, 2), drawn(10, P, 2), matrices(kind, P)

    @jax.jit
    def everything(loss, E):
        grad = jax.value_and_grad(lambda E: loss(E))(E)
        return grad, loss.covariance_gradient(E).as_matrix()

    (found, gradient), matrix = everything(loss, Product(array(left), array(right)))
    value, slope, _ = phi(kind, np.einsum("mij,ir,jr->m", A, left, right), P)
    Z = np.einsum("m,mij->ij", slope, A)
    assert_close(found, value, TOLERANCE)
    assert_close(gradient.left, Z @ right, TOLERANCE)
    assert_close(gradient.right, Z.T @ left, TOLERANCE)
    assert_close(matrix, Z, TOLERANCE)


@pytest.mark.float64
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_convex_in_the_covariance(kind):
    """`phi(M') >= phi(M) + <G(M), M' - M>`, by values and gradients of the library."""
    loss, rng = loss_of(kind), np.random.default_rng(3)
    pairs = jnp.asarray(rng.normal(size=(50, 2, N, 3)))

    @jax.jit
    @jax.vmap
    def excess(pair):
        W, V = pair
        G = loss.covariance_gradient(W).as_matrix()
        return loss(V) - loss(W) - jnp.vdot(G, V @ V.T - W @ W.T)

    found = np.asarray(excess(pairs))
    assert np.min(found) > -1e-11
    assert np.max(found) > 1e-3


@pytest.mark.once
def test_gradient_is_rounded_as_its_scale_says():
    """In single precision near a truth, where `A(M)` and `y` cancel to a hundredth."""
    single = lambda x: np.asarray(x, np.float32)
    W = single(drawn(9, N, 2))

    def near(kind):
        A = single(matrices(kind, N)).astype(float)
        z = np.einsum("mij,ir,jr->m", A, W, W, dtype=float)
        y = single((expit(z) if kind == "OneBit" else z) * 0.99)
        loss = eqx.tree_at(lambda loss: loss.y, loss_of(kind), y)
        loss = jax.tree.map(lambda x: x if jnp.result_type(x) == jnp.int32 else single(x), loss)
        Z = np.einsum("m,mij->ij", phi(kind, z, Y=y.astype(float))[1], A)
        return loss, (Z + Z.T) / 2

    many, exact = zip(*(near(kind) for kind in LOSSES), strict=True)
    found = jax.jit(
        lambda many, W: [(x.covariance_gradient(W).as_matrix(), x.gradient_scale(W)) for x in many]
    )(many, W)
    for (G, scale), expected in zip(found, exact, strict=True):
        assert G.dtype == np.float32
        error = np.linalg.norm(np.asarray(G, float) - expected) / np.finfo(np.float32).eps
        assert 0.01 < error / float(scale) < 1


@pytest.mark.once
def test_absolute_loss_has_slope_zero_where_a_residual_is_zero():
    units = np.zeros((2, 2, 2))
    units[0, 0, 0] = units[1, 1, 1] = 1.0
    loss = losses.AbsoluteSensing(operators.Dense(array(units)), array([1.0, 0.0]))
    slopes = jax.jit(lambda W: (jax.grad(loss)(W), loss.covariance_gradient(W).as_matrix()))
    gradient, G = slopes(array([[1.0], [2.0]]))  # residuals 0 and 4
    assert_close(gradient, [[0.0], [4.0]], 0.0)
    assert_close(G, np.diag([0.0, 1.0]), 0.0)


def test_error_scale_of_sensing_takes_the_noise_out_and_survives_a_loss_below_it():
    W, A = drawn(9, N, 2), matrices("Sensing", N)
    y = np.einsum("mij,ir,jr->m", A, W, W)

    @jax.jit
    def scale(y, noise_energy):
        loss = losses.Sensing(operators.Dense(array(A)), y, noise_energy)
        return jax.value_and_grad(loss.error_scale)(array(W))

    assert_close(scale(array(y + 1), array(M / 2))[0], 0.0, by_precision(1e-6, 5e-3))
    found, slope = scale(array(y), array(2.0))
    assert_close(found, np.sqrt(2.0), by_precision(1e-12, 1e-4))
    assert_close(slope, np.zeros((N, 2)), by_precision(1e-12, 1e-3))
    assert np.all(np.isfinite(scale(array(y), array(0.0))[1]))


@pytest.mark.once
def test_smoothness_is_unknown_where_the_operator_does_not_tell_its_norm():
    operator = operators.RankOne(array(drawn(1, M, N)))
    assert losses.Sensing(operator, array(Y)).smoothness is None
    assert losses.OneBit(operator, array(Y)).smoothness is None


@pytest.mark.once
@pytest.mark.parametrize("kind", ["Sensing", "Completion"])
def test_new_data_run_in_the_same_program(kind, compilations):
    optimizer = optax.sgd(0.01)
    start = array(drawn(9, N, 2)), array(drawn(10, P, 2))

    def run(seed):
        y = array(np.abs(drawn(seed, M)) % 1)
        if kind == "Completion":
            rows, columns = np.random.default_rng(seed).integers(0, 3, size=(2, M))
            loss = losses.Completion(rows, columns, y, (N, P))
            return bw.gradient_descent(
                loss, start, optimizer, num_steps=2, factorization=Rectangular()
            )
        loss = losses.Sensing(operators.Gaussian(jax.random.key(seed), M, (N, N)), y, 0.1 * seed)
        return bw.gradient_descent(
            loss, start[0], optimizer, num_steps=2, factorization=Symmetric()
        )

    first = run(1)
    run(2)
    compilations.clear()
    other = run(3)
    assert not compilations
    assert float(first.probes["loss"][-1]) != float(other.probes["loss"][-1])


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
    loss, many = loss_of("Sensing"), jnp.zeros((64, N, 2))
    gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    text = gradients.trace(many).lower(lowering_platforms=(platform,)).as_text()
    for absent in ("callback", "custom_call", "while", "scatter", "gather"):
        assert absent not in text
    # The array of matrices meets all starts at once, and once on the way back.
    flat = f"tensor<{M}x{N * N}x"
    products = [line for line in text.splitlines() if "dot_general" in line and flat in line]
    assert len(products) == 2
    assert all("64x" in line and "batching_dims" not in line for line in products)


@pytest.mark.once
def test_losses_of_entries_and_of_vectors_form_no_matrix_of_the_full_size():
    n, m = 97, 11
    rows = np.arange(m)
    W, v = jnp.ones((n, 2)), jnp.ones(n)

    @jax.jit
    def everything(losses):
        def products(loss):
            G = loss.covariance_gradient(W)
            return jax.value_and_grad(lambda W: loss(W))(W), G.mv(v), loss.error_scale(W)

        return [products(loss) for loss in losses]

    sparse = losses.Completion(rows, rows, jnp.ones(m), (n, n))
    text = everything.lower((sparse, losses.PhaseRetrieval(jnp.ones((m, n)), jnp.ones(m))))
    assert f"{n}x2x" in text.as_text()
    assert f"{n}x{n}x" not in text.as_text()


@pytest.mark.once
@pytest.mark.parametrize("rule", [bw.precondition.scaledgd(0.5), bw.precondition.precgd(0.5)])
def test_a_step_of_completion_holds_far_less_than_a_matrix_of_the_full_size(rule):
    n, r = 5_000, 3

    def step(loss, factors):
        run = bw.gradient_descent(
            loss, factors, rule, num_steps=1, factorization=Rectangular(), throw=False
        )
        return run.factors, run.probes

    def temporaries(loss):
        factors = (jnp.ones((n, r)), jnp.ones((n, r)))
        return jax.jit(step).lower(loss, factors).compile().memory_analysis().temp_size_in_bytes

    full = n**2 * jnp.zeros(()).itemsize
    entries = losses.Completion(np.arange(100), np.arange(100), np.ones(100), (n, n))
    assert temporaries(entries) < full / 50
    # What forms the matrix is seen by this measure.
    drawn = losses.Sensing(operators.Gaussian(jax.random.key(0), 1, (n, n)), jnp.ones(1))
    assert temporaries(drawn) > full


DENSE = operators.Dense(np.ones((2, 2, 2)))
TALL = operators.Dense(np.ones((2, 3, 2)))
REFUSED = {
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


HOLES = np.where(np.arange(12).reshape(3, 4) % 3 == 0, np.nan, np.arange(12.0).reshape(3, 4))


def test_a_matrix_with_holes_is_its_other_entries():
    loss = losses.Completion.from_matrix(array(HOLES))
    rows, columns = np.nonzero(~np.isnan(HOLES))
    same = losses.Completion(rows, columns, array(HOLES[rows, columns]), HOLES.shape)
    W = Product(array(np.ones((3, 1))), array(np.ones((4, 1))))
    assert loss(W) == same(W)
    told = losses.Completion.from_matrix(np.nan_to_num(HOLES), observed=~np.isnan(HOLES))
    assert told(W) == same(W)


@pytest.mark.parametrize(
    ("M", "observed", "message"),
    [
        (np.ones(3), None, r"M must be a real matrix"),
        (np.full((2, 2), np.nan), None, "M must have an observed entry; got none"),
        (np.ones((2, 2)), np.ones(2, bool), r"observed must have the shape of M; got \(2,\)"),
        (HOLES, np.ones(HOLES.shape, bool), "M must be finite where it is observed; it holds NaN"),
        (np.full((2, 2), np.inf), None, "M must be finite where it is observed"),
    ],
)
def test_matrices_without_entries_are_refused(M, observed, message, as_installed):
    with pytest.raises(ValueError, match=message):
        losses.Completion.from_matrix(M, observed)
