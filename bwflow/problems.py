"""Problems with a known truth: losses of drawn measurements, from a key.

The truth of a symmetric problem (`shape` a number `n`) is a factor `W*` with `M* = W* W*^T`; that
of a rectangular one (`shape = (n, p)`) is the `Product` of two factors. Its singular values go
evenly from 1 down to `1 / condition`, its singular vectors are uniform. The same key and precision
give the same problem.

Raises
------
ValueError
    By every function, if `key` is no random key, `shape` or a count no positive integer, `rank`
    above the sizes, `condition` below 1, or a noise negative.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from bwflow import _checks, losses, operators
from bwflow.factors import Product, ProductPlusSparse
from bwflow.linalg import full_precision
from bwflow.losses._measured import measured

__all__ = [
    "Problem",
    "absolute_sensing",
    "completion",
    "low_rank_plus_sparse",
    "one_bit",
    "phase_retrieval",
    "sensing",
]

KINDS = ("gaussian", "dense", "rank_one", "cosine")


class Problem(NamedTuple):
    """A loss and the truth that it measures."""

    loss: Any
    truth: Array | Product | ProductPlusSparse


def sensing(
    key: PRNGKeyArray,
    shape: int | tuple[int, int],
    *,
    rank: int,
    num_measurements: int,
    condition: ArrayLike = 1.0,
    noise: ArrayLike = 0.0,
    operator: str = "dense",
) -> Problem:
    """`Sensing` of measurements `y = A(M*) + noise e`, `e` standard normal.

    Operators: `"dense"`, entries `N(0, 1/m)`, stored; `"gaussian"`, the same law, drawn again at
    every use; `"cosine"`; `"rank_one"`, `u_i v_i^T / sqrt(m)` of standard normal vectors, `v_i =
    u_i` in symmetric problems. The loss knows the energy `m noise^2 / 2` of its noise.

    References
    ----------
    Zhang, Fattahi and Zhang (2021), arXiv 2504.09708; Tong, Ma and Chi (2021), arXiv 2005.08898.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, truth = bw.problems.sensing(jax.random.key(0), 5, rank=2, num_measurements=30)
    >>> truth.shape, float(loss(truth))
    ((5, 2), 0.0)
    """
    keys, truth = drawn_truth(key, shape, rank, condition)
    m = _checks.positive_int("num_measurements", num_measurements)
    A = _operator(keys[0], operator, m, truth, symmetric=not isinstance(truth, Product))
    sigma = _checks.scalar("noise", noise, truth.dtype, minimum=0.0)
    y = _noisy(keys[1], A, truth, sigma)
    return Problem(losses.Sensing(A, y, noise_energy=m * sigma**2 / 2), truth)


def absolute_sensing(
    key: PRNGKeyArray,
    shape: int | tuple[int, int],
    *,
    rank: int,
    num_measurements: int,
    condition: ArrayLike = 1.0,
    outliers: ArrayLike = 0.1,
    size: ArrayLike = 1.0,
) -> Problem:
    """`AbsoluteSensing` with a share of the measurements replaced by others.

    Every measurement is moved with probability `outliers`, by a number uniform in `(-s, s)`, `s`
    being `size` times the largest measurement.

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2010.13364.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, truth = bw.problems.absolute_sensing(
    ...     jax.random.key(0), 5, rank=1, num_measurements=40, outliers=0.2)
    >>> bool(loss(truth) > 0)
    True
    """
    share = _checks.scalar("outliers", outliers, float, minimum=0.0, maximum=1.0)
    scale = _checks.scalar("size", size, float, minimum=0.0)
    loss, truth = sensing(
        key, shape, rank=rank, num_measurements=num_measurements, condition=condition
    )
    hit, far = jax.random.split(jax.random.fold_in(key, 1))
    y = loss.y
    moved = jax.random.uniform(far, y.shape, y.dtype, -1.0, 1.0) * jnp.max(jnp.abs(y))
    moved = jnp.asarray(scale, y.dtype) * moved
    struck = jax.random.bernoulli(hit, jnp.asarray(share, y.dtype), y.shape)
    return Problem(losses.AbsoluteSensing(loss.operator, jnp.where(struck, y + moved, y)), truth)


def one_bit(
    key: PRNGKeyArray,
    shape: int | tuple[int, int],
    *,
    rank: int,
    num_measurements: int,
    condition: ArrayLike = 1.0,
    sampled: bool = True,
) -> Problem:
    """`OneBit` of labels with probabilities `1 / (1 + e^{-z_i})`, `z_i = <A_i, M*>`.

    The entries of the `A_i` are standard normal. Unless `sampled`, the labels are the
    probabilities themselves, and the truth is the minimiser.

    References
    ----------
    Zhang, Fattahi and Zhang (2023), arXiv 2206.03345.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, truth = bw.problems.one_bit(
    ...     jax.random.key(0), 4, rank=1, num_measurements=30, sampled=False)
    >>> bool(abs(jax.grad(loss)(truth)).max() < 1e-6)
    True
    """
    keys, truth = drawn_truth(key, shape, rank, condition)
    m = _checks.positive_int("num_measurements", num_measurements)
    A = operators.Dense(jax.random.normal(keys[0], (m, *_sizes(truth)), truth.dtype))
    y = jax.nn.sigmoid(measured(A, truth))
    if sampled:
        y = jax.random.bernoulli(keys[1], y).astype(y.dtype)
    return Problem(losses.OneBit(A, y), truth)


def phase_retrieval(
    key: PRNGKeyArray,
    n: int,
    *,
    num_measurements: int,
    rank: int = 1,
    condition: ArrayLike = 1.0,
    noise: ArrayLike = 0.0,
) -> Problem:
    """`PhaseRetrieval` of `y_i = ||W*^T a_i||^2 + noise e_i`, all standard normal.

    References
    ----------
    Zhang, Fattahi and Zhang (2023), arXiv 2206.03345.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, truth = bw.problems.phase_retrieval(jax.random.key(0), 4, num_measurements=30)
    >>> float(loss(truth))
    0.0
    """
    keys, truth = drawn_truth(key, _checks.positive_int("n", n), rank, condition)
    m = _checks.positive_int("num_measurements", num_measurements)
    sigma = _checks.scalar("noise", noise, truth.dtype, minimum=0.0)
    vectors = jax.random.normal(keys[0], (m, n), truth.dtype)
    y = _noisy(keys[1], operators.RankOne(vectors), truth, sigma)
    return Problem(losses.PhaseRetrieval(vectors, y), truth)


def completion(
    key: PRNGKeyArray,
    shape: int | tuple[int, int],
    *,
    rank: int,
    num_observed: int,
    condition: ArrayLike = 1.0,
    noise: ArrayLike = 0.0,
) -> Problem:
    """`Completion` from entries drawn with repetition, so that none of `n p` size is made.

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2005.08898.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, truth = bw.problems.completion(
    ...     jax.random.key(0), (40, 30), rank=2, num_observed=500)
    >>> truth.shape, bool(loss(truth) < 1e-10)
    ((40, 30), True)
    """
    keys, truth = drawn_truth(key, shape, rank, condition)
    m = _checks.positive_int("num_observed", num_observed)
    sigma = _checks.scalar("noise", noise, truth.dtype, minimum=0.0)
    n, p = _sizes(truth)
    one, two = jax.random.split(keys[0])
    rows, columns = jax.random.randint(one, (m,), 0, n), jax.random.randint(two, (m,), 0, p)
    y = _noisy(keys[1], operators.Entries(rows, columns, (n, p)), truth, sigma)
    return Problem(losses.Completion(rows, columns, y, (n, p)), truth)


def low_rank_plus_sparse(
    key: PRNGKeyArray,
    shape: int | tuple[int, int],
    *,
    rank: int,
    rate: ArrayLike,
    num_measurements: int | None = None,
    condition: ArrayLike = 1.0,
    size: ArrayLike = 10.0,
    operator: str = "dense",
) -> Problem:
    """A matrix of low rank some of whose entries are struck, each with probability `rate`.

    What is added there is uniform in `(-s, s)`, `s` being `size` times the largest entry. The truth
    is a `bwflow.factors.ProductPlusSparse`. The loss is `Approximation` of the sum or, with a
    number of measurements, `Sensing` of it by an operator as in `sensing`. Of a symmetric problem
    (`shape` a number) the corruption is symmetric, and so is the sum: a covariance for
    `losses.TrimmedBuresWasserstein(loss.Y, bounds)`.

    References
    ----------
    Zhang, Wang and Gu (2018), arXiv 1702.06525.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, truth = bw.problems.low_rank_plus_sparse(jax.random.key(0), (9, 8), rank=2, rate=0.1)
    >>> float(loss(truth)), bw.projections.Sparsity.of(truth.sparse).count
    (0.0, 7)
    """
    share = _checks.scalar("rate", rate, float, minimum=0.0, maximum=1.0)
    scale = _checks.scalar("size", size, float, minimum=0.0)
    keys, W = drawn_truth(key, shape, rank, condition)
    symmetric = not isinstance(W, Product)
    product = Product(W, W) if symmetric else W
    M = product.matrix()
    hit, far = jax.random.split(keys[1])
    struck = jax.random.bernoulli(hit, jnp.asarray(share, M.dtype), M.shape)
    S = jax.random.uniform(far, M.shape, M.dtype, -1.0, 1.0) * jnp.max(jnp.abs(M))
    S = jnp.where(struck, jnp.asarray(scale, M.dtype) * S, 0)
    if symmetric:
        S = jnp.triu(S) + jnp.triu(S, 1).T
    truth = ProductPlusSparse(product, S)
    if num_measurements is None:
        return Problem(losses.Approximation(truth.matrix()), truth)
    m = _checks.positive_int("num_measurements", num_measurements)
    A = _operator(keys[0], operator, m, product, symmetric=symmetric)
    return Problem(losses.Sensing(A, measured(A, truth)), truth)


@full_precision
def drawn_truth(
    key: PRNGKeyArray, shape: Any, rank: int, condition: ArrayLike
) -> tuple[Array, Array | Product]:
    """Two keys for what is measured, and the truth."""
    _checks.random_key("key", key)
    r = _checks.positive_int("rank", rank)
    symmetric = not isinstance(shape, (tuple, list))
    if symmetric:
        n = _checks.positive_int("shape", shape)
        sizes = n, n
    else:
        sizes = _checks.pair("shape", shape)
    if r > min(sizes):
        raise ValueError(f"rank must be at most {min(sizes)}; got {r}.")
    dtype = jnp.result_type(float)
    worst = _checks.scalar("condition", condition, dtype, minimum=1.0)
    values = jnp.linspace(1.0, 1 / jnp.asarray(worst, dtype), r, dtype=dtype)
    left, right, *rest = jax.random.split(key, 4)
    W = jax.random.orthogonal(left, sizes[0], dtype=dtype, m=r) * jnp.sqrt(values)[None, :]
    if symmetric:
        return jnp.stack(rest), W
    V = jax.random.orthogonal(right, sizes[1], dtype=dtype, m=r) * jnp.sqrt(values)[None, :]
    return jnp.stack(rest), Product(W, V)


def _sizes(truth: Array | Product) -> tuple[int, int]:
    return truth.shape if isinstance(truth, Product) else (truth.shape[0], truth.shape[0])


def _noisy(key: PRNGKeyArray, operator: Any, truth: Array | Product, sigma: Any) -> Array:
    """Measurements of the truth and normal noise."""
    z = measured(operator, truth)
    return z + jnp.asarray(sigma, z.dtype) * jax.random.normal(key, z.shape, z.dtype)


def _operator(key: PRNGKeyArray, kind: str, m: int, truth: Any, *, symmetric: bool) -> Any:
    _checks.choice("operator", kind, KINDS)
    n, p = _sizes(truth)
    if kind == "gaussian":
        return operators.Gaussian(key, m, (n, p))
    if kind == "cosine":
        return operators.Cosine(key, m, (n, p))
    if kind == "dense":
        return operators.Dense(jax.random.normal(key, (m, n, p), truth.dtype) / m**0.5)
    one, two = jax.random.split(key)
    left = jax.random.normal(one, (m, n), truth.dtype) / m**0.25
    return operators.RankOne(
        left, None if symmetric else jax.random.normal(two, (m, p), truth.dtype) / m**0.25
    )
