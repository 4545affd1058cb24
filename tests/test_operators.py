"""Measurement operators, held against sums over stored matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_precision

from bwflow import operators

KEY = jax.random.key(0)
M, N, P = 7, 4, 3  # measurements of n x p matrices
ROWS, COLUMNS = [0, 1, 2, 2, 0, 3, 1], [0, 2, 1, 1, 2, 0, 1]  # one entry twice


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


MADE = {
    "dense": lambda: operators.Dense(array(drawn(0, M, N, P))),
    "gaussian": lambda: operators.Gaussian(KEY, M, (N, P)),
    "rank one": lambda: operators.RankOne(array(drawn(1, M, N)), array(drawn(2, M, P))),
    "entries": lambda: operators.Entries(ROWS, COLUMNS, (N, P)),
    "cosine": lambda: operators.Cosine(KEY, M, (N, P)),
}


def formula(kind, operator):
    """The `A_i` written out, where they are not drawn inside."""
    if kind == "dense":
        return drawn(0, M, N, P)
    if kind == "rank one":
        return np.einsum("mi,mj->mij", drawn(1, M, N), drawn(2, M, P))
    if kind == "entries":
        A = np.zeros((M, N, P))
        A[np.arange(M), ROWS, COLUMNS] = 1.0
        return A
    if kind == "cosine":
        i = np.arange(1, 2 * N, 2)
        bases = [np.cos(np.outer(np.arange(n), i[:n]) * np.pi / (2 * n)) for n in (N, P)]
        C, D = (np.sqrt((2 - (np.arange(len(B)) == 0)) / len(B))[:, None] * B for B in bases)
        A = np.einsum("ki,lj->klij", C, D).reshape(N * P, N, P) * np.asarray(operator.signs)
        return np.sqrt(N * P / M) * A[np.asarray(operator.drawn)]
    return None


@pytest.fixture(scope="module", params=MADE)
def found(request):
    """All that an operator says, from one program, in blocks of two matrices or rows."""
    factors = array(drawn(3, N, 2)), array(drawn(4, P, 2))
    v, x, y = array(drawn(5, M)), array(drawn(6, P)), array(drawn(7, N))

    @jax.jit
    def everything(operator):
        def unit(i, j):
            return operator(jnp.eye(N)[i][:, None], jnp.eye(P)[j][:, None])

        A = jax.vmap(lambda i: jax.vmap(lambda j: unit(i, j))(jnp.arange(P)))(jnp.arange(N))
        adjoint = operator.adjoint(v)
        weighted = lambda left, right: operator(left, right) @ v
        return {
            "A": A.transpose(2, 0, 1),
            "value": operator(*factors),
            "adjoint": adjoint.as_matrix(),
            "products": (adjoint.mv(x), adjoint.transpose().mv(y)),
            "gradients": jax.grad(weighted, argnums=(0, 1))(*factors),
            "tangent": jax.jvp(operator, factors, factors)[1],
            "norms": operator.norms,
            "squared norm": getattr(operator, "squared_norm", None),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators._arguments, "CHUNK", 24 if request.param == "gaussian" else 4)
        operator = MADE[request.param]()
        return request.param, operator, everything(operator), (*factors, v, x, y)


TOLERANCE = by_precision(1e-13, 2e-5)


def test_operator_measures_products(found):
    kind, operator, said, (left, right, *_) = found
    A, written = np.asarray(said["A"], np.float64), formula(kind, operator)
    if written is not None:
        assert_close(A, written, by_precision(1e-14, 1e-6))
    assert (operator.shape, operator.num_measurements) == ((N, P), M)
    value = np.einsum("mij,ir,jr->m", A, left, right)
    assert_close(said["value"], value, TOLERANCE)
    assert_close(said["tangent"], 2 * value, 2 * TOLERANCE)  # along the factors themselves


def test_adjoint_sums_the_matrices_and_is_the_transpose(found):
    _, _, said, (left, right, v, x, y) = found
    Z = np.einsum("m,mij->ij", np.asarray(v), said["A"])
    assert_close(said["adjoint"], Z, TOLERANCE)
    assert_close(np.sum(Z * (left @ right.T)), np.asarray(said["value"]) @ v, 20 * TOLERANCE)
    for actual, expected in zip(said["products"], (Z @ x, Z.T @ y), strict=True):
        assert_close(actual, expected, TOLERANCE)
    # Derivatives of <A(L R^T), v> are products with it too.
    for actual, expected in zip(said["gradients"], (Z @ right, Z.T @ left), strict=True):
        assert_close(actual, expected, TOLERANCE)


def test_squared_norm_is_the_largest_eigenvalue_where_it_is_known(found):
    kind, _, said, _ = found
    if kind in ("gaussian", "rank one"):
        assert said["squared norm"] is None
    else:
        largest = np.linalg.norm(np.asarray(said["A"], np.float64).reshape(M, -1), 2) ** 2
        assert_close(said["squared norm"], largest, by_precision(1e-12, 1e-4))


def test_norms_are_those_of_the_matrices(found):
    kind, _, said, _ = found
    norms = np.sqrt(np.sum(np.asarray(said["A"], np.float64) ** 2, axis=(1, 2)))
    # Of 12 normal entries the norm deviates by 1/sqrt(24), relatively.
    assert_close(said["norms"] / norms, np.ones(M), 4 / 24**0.5 if kind == "gaussian" else 1e-6)


@pytest.mark.once
def test_squared_norm_of_more_matrices_than_entries():
    A = drawn(8, 11, 2, 3)
    expected = np.linalg.norm(A.reshape(11, 6), 2) ** 2
    assert_close(operators.Dense(array(A)).squared_norm, expected, by_precision(1e-12, 1e-4))


@pytest.mark.once
def test_cosine_transform_keeps_the_norm_on_average():
    X = array(drawn(0, N, 2))

    @jax.jit
    @jax.vmap
    def energy(key):
        return jnp.sum(operators.Cosine(key, 5, (N, N))(X, X) ** 2)

    energies = np.asarray(energy(jax.random.split(KEY, 2000)))
    expected = np.sum(np.asarray(X @ X.T) ** 2)
    error = np.std(energies) / np.sqrt(energies.size)
    assert abs(np.mean(energies) - expected) < 4 * error < 0.1 * expected


@pytest.mark.once
def test_gaussian_entries_are_standard_normal_over_the_root_of_their_number():
    operator = operators.Gaussian(KEY, 20_000, (2, 1))
    x = np.asarray(operator(jnp.eye(2)[:, :1], jnp.eye(1))) * np.sqrt(20_000)
    y = np.asarray(operator(jnp.eye(2)[:, 1:], jnp.eye(1))) * np.sqrt(20_000)
    error = 1 / np.sqrt(20_000)
    moments = np.mean(x), np.mean(x**2) - 1, np.mean(x**3), np.mean(x**4) - 3, np.mean(x * y)
    for moment, deviation in zip(moments, (1, 2**0.5, 15**0.5, 96**0.5, 1), strict=True):
        assert abs(moment) < 4 * deviation * error


def temporary(operator, *factors):
    """Bytes that value and gradient take beside arguments and results."""

    def energy(factors, operator):
        return jnp.sum(operator(*factors) ** 2)

    program = jax.jit(jax.value_and_grad(energy)).lower(factors, operator).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.once
def test_observed_entries_are_gathered_block_by_block(monkeypatch):
    n, r, m = 3000, 16, 400_000
    monkeypatch.setattr(operators._arguments, "CHUNK", 2**17)
    indices = jax.ShapeDtypeStruct((m,), jnp.int32)
    operator = jax.eval_shape(lambda i, j: operators.Entries(i, j, (n, n)), indices, indices)
    factor = jax.ShapeDtypeStruct((n, r), float)
    # Vectors of the observed, copies of the factors and blocks; of n^2 or m r there is none.
    size = 8 * (4 * m + 8 * n * r + 8 * 2**17)
    assert temporary(operator, factor, factor) < size < 8 * min(m * r, n * n)


@pytest.mark.once
def test_many_products_with_observed_entries_are_made_block_by_block(monkeypatch):
    n, k, m = 3000, 100, 400_000
    monkeypatch.setattr(operators._arguments, "CHUNK", 2**17)

    def products(rows, columns, v, X):
        G = operators.Entries(rows, columns, (n, n)).adjoint(v)
        return [jax.vmap(Z.mv, in_axes=1, out_axes=1)(X) for Z in (G, G.transpose())]

    shapes = [jax.ShapeDtypeStruct((m,), dtype) for dtype in (jnp.int32, jnp.int32, float)]
    program = jax.jit(products).lower(*shapes, jax.ShapeDtypeStruct((n, k), float)).compile()
    size = 8 * (4 * m + 8 * n * k + 8 * 2**17)
    assert program.memory_analysis().temp_size_in_bytes < size < 8 * min(m * k, n * n)


@pytest.mark.once
def test_products_with_observed_entries_do_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    i, j, v, x = rng.integers(0, 5, 23), rng.integers(0, 4, 23), rng.normal(size=23), np.arange(4.0)
    A = np.zeros((5, 4))
    np.add.at(A, (i, j), v)
    for chunk in (1, 64 * 5, 64 * 23, 2**20):
        monkeypatch.setattr(operators._arguments, "CHUNK", chunk)
        G = operators.Entries(i, j, (5, 4)).adjoint(array(v))
        assert_close(G.mv(array(x)), A @ x, 1e-13)
        assert_close(G.transpose().mv(array(np.arange(5.0))), A.T @ np.arange(5.0), 1e-13)


@pytest.mark.parametrize("shape", [(600, 20, 16), (3000, 20, 3)])
def test_rank_one_matrices_measure_factors_that_are_constants_of_the_program(shape):
    # XLA's CPU backend was seen to sum `vectors @ constant` over memory that nobody had written.
    m, n, r = shape
    vectors = drawn(3, m, n)

    @jax.jit
    def measured(vectors):
        ones = jnp.ones((n, r))
        return operators.RankOne(vectors)(ones, ones)

    expected = r * vectors.sum(axis=1) ** 2
    most = expected.max()
    assert_close(measured(array(vectors)) / most, expected / most, by_precision(1e-14, 1e-5))


@pytest.mark.once
def test_redrawn_matrices_are_held_block_by_block(monkeypatch):
    n, m = 32, 10_000
    monkeypatch.setattr(operators._arguments, "CHUNK", 2**14)
    operator = jax.eval_shape(lambda key: operators.Gaussian(key, m, (n, n)), KEY)
    factor = jax.ShapeDtypeStruct((n, 2), float)
    size = 8 * (4 * m + 8 * n * n + 8 * 2**14)
    assert temporary(operator, factor, factor) < size < 8 * m * n * n / 50


@pytest.mark.once
def test_a_chunk_holds_a_row_however_many_columns_and_none(monkeypatch):
    monkeypatch.setattr(operators._arguments, "CHUNK", 1)
    operator = operators.Entries(ROWS, COLUMNS, (N, P))
    empty = operator(jnp.zeros((N, 0)), jnp.zeros((P, 0)))
    assert_close(empty, np.zeros(M), 0.0)
    assert_close(operator(jnp.ones((N, 2)), jnp.ones((P, 2))), np.full(M, 2.0), 0.0)


@functools.cache
def dense(*shape):
    return operators.Dense(np.ones(shape))


REFUSED = {
    "empty": (lambda: dense(0, 2, 2), r"matrices must not be empty; got shape \(0, 2, 2\)"),
    "two dimensions": (lambda: dense(2, 2), "matrices must have 3 dimensions"),
    "NaN": (lambda: operators.Dense(np.full((1, 2, 2), np.nan)), "matrices must be finite"),
    "no key": (lambda: operators.Gaussian(0, 2, (2, 2)), "key must be one random key"),
    "no shape": (lambda: operators.Gaussian(KEY, 2, 2), r"shape must be a pair \(n, p\).*got 2"),
    "no count": (lambda: operators.Gaussian(KEY, 0, (2, 2)), "num_measurements must be a pos"),
    "too many": (
        lambda: operators.Cosine(KEY, 5, (2, 2)),
        "num_measurements must be at most n p = 4; got 5",
    ),
    "rows differ": (
        lambda: operators.RankOne(np.ones((2, 2)), np.ones((3, 2))),
        "left and right must be non-empty matrices with as many rows",
    ),
    "index too large": (lambda: operators.Entries([2], [0], (2, 2)), "rows must be at least 0 and"),
    "index negative": (lambda: operators.Entries([0], [-1], (2, 2)), "columns must be at least 0"),
    "no integers": (lambda: operators.Entries([0.5], [0], (2, 2)), "rows must be a non-empty list"),
    "lengths": (lambda: operators.Entries([0, 1], [0], (2, 2)), "rows and columns must have as"),
    "factors": (
        lambda: dense(2, 2, 2)(np.ones((2, 1)), np.ones((2, 2))),
        r"left and right must have shapes \(2, r\) and \(2, r\)",
    ),
    "rows of a factor": (
        lambda: operators.Entries([0], [0], (2, 3))(np.ones((2, 1)), np.ones((2, 1))),
        r"left and right must have shapes \(2, r\) and \(3, r\)",
    ),
    "adjoint": (lambda: dense(2, 2, 2).adjoint(np.ones(3)), "v must have 2 entries"),
}


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()
