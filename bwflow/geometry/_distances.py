"""Distances of covariances, of Gaussians and of samples."""

from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._moments import Moments, divisor
from bwflow._types import Scalar
from bwflow.geometry import _operands
from bwflow.geometry._deviation import between, by_traces, procrustes
from bwflow.geometry._operands import Covariance, Factor, Kind, as_roots, cached, in_pieces
from bwflow.linalg import full_precision, positive_power, settled

# Of a list of pairs, about as many numbers as accelerators hold of either side at once.
_SOME_NUMBERS = 2**22

Form: TypeAlias = Literal["residual", "trace"]
Statistics: TypeAlias = tuple[ArrayLike, Covariance]


def bures_wasserstein(
    A: Covariance, B: Covariance, *, form: Form = "residual"
) -> Float[Array, "*batch"]:
    """Squared Bures-Wasserstein distance `tr A + tr B - 2 tr (A^{1/2} B A^{1/2})^{1/2}`.

    It is computed as `||F - G P||^2 + ||G - G P P^T||^2` for `A = F F^T` and `B = G G^T`, with the
    polar factor `P` of `G^T F`; of matrices that nearly coincide as `tr (X A X)` with the solution
    `X` of `A X + X A + X A X = B - A`.

    Parameters
    ----------
    A, B
        Covariances of one size and any rank: symmetric positive semi-definite matrices, or
        `Factor`s or `Target`s. Batches (`... x n x n`) are broadcast.
    form
        `"trace"` computes the formula above with the singular values of `G^T F` for the root: half
        the time at many sizes, with an absolute error of some `eps (tr A + tr B)`, and so of
        either sign where the two nearly coincide.

    Returns
    -------
    Array
        The squared distances, in the units of `A` and `B`; never negative.

    Raises
    ------
    ValueError
        If a matrix is not square, real floating point, finite, symmetric and positive
        semi-definite, or if sizes differ or batches do not broadcast.

    Notes
    -----
    Of matrices the relative error is some `eps`, however close they are, and whatever their
    conditions while these are alike. A matrix has no better meaning than its rounding: an error of
    `eps` in its entries moves the distance by up to `eps (||T|| ||A|| + ||T'|| ||B||)`, with the
    maps `T`, `T'` both ways, and that is reached: 1e-12 for a condition of 1e12 beside one of 10.
    The gradient is refined with a residual in twice the precision: of matrices as they stand it is
    right to some `eps` at conditions of 1e8, and to 1e-10 at 1e12.
    Eigenvalues below `n eps` times the largest count as 0.

    Of factors that nearly coincide, at a distance `d`, it is `eps ||F|| / d`: the difference of two
    factors is rounded as they are. Their gradients have no loss at any condition.

    Cost: two Cholesky decompositions and a polar factor; an eigendecomposition of each matrix that
    is singular or nearly coincides with the other. With factors of `k` and `l` columns products of
    size `n k l` and a polar factor of size `k x l`. On a CPU a batch is cut into pieces that fit
    the cores' caches, which `vmap` over single pairs cannot do: a thousand at n = 20 take half the
    time.

    Derivatives of every order: the gradient in `A` is `I - T` with `T = transport_map(A, B)`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(f"{bw.bures_wasserstein(4.0 * jnp.eye(3), jnp.eye(3)):.5f}")
    3.00000
    """
    _checks.choice("form", form, get_args(Form))
    given = _operands.operands(A=A, B=B)
    return _operands.mapped(_squared, given, [], "()", form=form)


def bures_wasserstein_distance(A: Covariance, B: Covariance) -> Float[Array, "*batch"]:
    """The Bures-Wasserstein distance, in units of standard deviations.

    The root of `bures_wasserstein`. Where the two coincide its derivative is 0, one of its
    subgradients; for factors to rounding, below which the distance is 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(f"{bw.geometry.bures_wasserstein_distance(4.0 * jnp.eye(4), jnp.eye(4)):.5f}")
    2.00000
    """
    return _operands.mapped(_distance, _operands.operands(A=A, B=B), [], "()")


def pairwise_distances(
    A: Covariance,
    B: Covariance | None = None,
    *,
    squared: bool = False,
    batch_size: int | None = None,
) -> Float[Array, "N M"]:
    """Distances of every covariance of one list to every one of another, or of its own.

    Parameters
    ----------
    A, B
        Lists of covariances, `N x n x n` and `M x n x n`, or `Factor`s of such lists. Without `B`
        those within `A`, each pair computed once.
    squared
        Squared distances instead.
    batch_size
        How many pairs are computed at once; by default what fits 32 MB, and on a CPU its caches.

    Returns
    -------
    Array
        `N x M`; symmetric with zeros on the diagonal if there is no `B`.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does; if `A` or `B` is no list, or `batch_size` no positive integer.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> covariances = jnp.array([1.0, 4.0, 9.0])[:, None, None] * jnp.eye(1)
    >>> print(bw.geometry.pairwise_distances(covariances).round(4))
    [[0. 1. 2.]
     [1. 0. 1.]
     [2. 1. 0.]]
    """
    given = _operands.operands(A=A) if B is None else _operands.operands(A=A, B=B, together=False)
    for x in given:
        if x.array.ndim != 3:
            raise ValueError(
                f"{x.name} must be a list of covariances, of 3 dimensions; got {x.array.shape}."
            )
    if batch_size is None:
        size = max(x.array[0].size for x in given) if all(x.array.size for x in given) else 1
        numbers = cached() if jax.default_backend() == "cpu" else _SOME_NUMBERS
        batch_size = max(1, numbers // size)
    batch_size = _checks.positive_int("batch_size", batch_size)
    kinds = tuple(x.kind for x in given)
    return settled(_pairs(kinds, squared, batch_size, *(x.array for x in given)))


@partial(jax.jit, static_argnums=(0, 1, 2))
@full_precision
def _pairs(
    kinds: tuple[Kind, ...], squared: bool, batch_size: int, A: Array, B: Array | None = None
) -> Array:
    N, M = len(A), len(A if B is None else B)
    if B is None:
        rows, columns = np.triu_indices(N, 1)
        B, kinds = A, (*kinds, *kinds)
        full = jnp.zeros((N, N), A.dtype)
    else:
        rows, columns = (x.ravel() for x in np.indices((N, M)))
        full = None

    def one(i: Array, j: Array) -> Array:
        return (_squared if squared else _distance)(kinds, A[i], B[j])

    if not rows.size:
        return jnp.zeros((N, M), A.dtype)
    values = in_pieces(jax.vmap(one), batch_size, jnp.asarray(rows), jnp.asarray(columns))
    if full is None:
        return values.reshape(N, M)
    half = full.at[rows, columns].set(values)
    return half + half.T


def gaussian_wasserstein(
    mean_a: ArrayLike, A: Covariance, mean_b: ArrayLike, B: Covariance
) -> Float[Array, "*batch"]:
    """Squared 2-Wasserstein distance of Gaussians, `|a - b|^2 + BW^2(A, B)`.

    Parameters
    ----------
    mean_a, mean_b
        Means, vectors of size `n` or batches of them.
    A, B
        Covariances, as for `bures_wasserstein`.

    Returns
    -------
    Array
        The squared distances, batches broadcast.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does; if a mean is no real finite vector of size `n`.

    References
    ----------
    Dowson, Landau (1982), The Frechet distance between multivariate normal distributions.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.gaussian_wasserstein(jnp.ones(2), jnp.eye(2), jnp.zeros(2), jnp.eye(2)))
    2.0
    """
    given = _operands.operands(A=A, B=B)
    means = [
        _operands.vector(name, x, given[0]) for name, x in (("mean_a", mean_a), ("mean_b", mean_b))
    ]
    _operands.broadcast(
        {x.name: x.array.shape[:-2] for x in given}
        | {name: x.shape[:-1] for name, x in zip(("mean_a", "mean_b"), means, strict=True)}
    )
    return _operands.mapped(_gaussians, given, [(x, "(n)") for x in means], "()")


def _gaussians(kinds: tuple[Kind, ...], A: Array, B: Array, a: Array, b: Array) -> Array:
    return jnp.sum((a - b) ** 2) + _squared(kinds, A, B)


def frechet_distance(
    X: ArrayLike | Moments | Statistics, Y: ArrayLike | Moments | Statistics, *, ddof: int = 0
) -> Scalar:
    """Squared Frechet distance of the Gaussians fitted to two samples, as in FID.

    `|mean X - mean Y|^2 + BW^2(cov X, cov Y)`, from factors of the covariances: it needs no more
    than the smaller of the numbers of samples and of features, and no root of a matrix.

    Parameters
    ----------
    X, Y
        Samples in rows, `num_samples x n`; `Moments` of samples that came in blocks; or a pair
        `(mean, covariance)`.
    ddof
        Covariances are divided by `num_samples - ddof`: 1 for unbiased ones, which `numpy.cov` and
        most implementations of FID take.

    Returns
    -------
    Array
        The squared distance; its derivatives in samples and statistics are of any order.

    Raises
    ------
    ValueError
        If samples are no real finite matrix of more than `ddof` rows, if widths differ, or if
        statistics are not a mean and a covariance.

    Notes
    -----
    With `k` and `l` samples of `n` features it costs `2 n k l` operations and a polar factor of
    `k x l`; more samples than features are first reduced to `n`, by a QR decomposition.

    References
    ----------
    Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017), arXiv 1706.08500.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> X = jax.random.normal(jax.random.key(0), (100, 3))
    >>> print(f"{bw.geometry.frechet_distance(X, 2 * X):.3f}")
    3.249
    """
    given = {name: _given(name, x, ddof) for name, x in (("X", X), ("Y", Y))}
    widths = [mean.shape[-1] for mean, _ in given.values()]
    if widths[0] != widths[1]:
        raise ValueError(f"X and Y must have as many features; got {widths[0]} and {widths[1]}.")
    if all(isinstance(count, int) and len(x) <= x.shape[1] for x, count in given.values()):
        return settled(_few_samples(*given["X"], *given["Y"]))
    (a, A), (b, B) = (_statistics(*x) for x in given.values())
    return gaussian_wasserstein(a, A, b, B)


def _given(
    name: str, x: ArrayLike | Moments | Statistics, ddof: int
) -> tuple[Array, Covariance | int]:
    """Mean and covariance; or samples, and what the sums of their squares are divided by."""
    if isinstance(x, Moments):
        return jnp.asarray(x.mean, x.dtype), Factor(x.factor(ddof=ddof))
    if isinstance(x, tuple):
        if len(x) != 2:
            raise ValueError(f"{name} must be samples or a pair (mean, covariance); got {len(x)}.")
        covariance = _operands.operand(f"{name}[1]", x[1])
        return _operands.vector(f"{name}[0]", x[0], covariance), x[1]
    X = _checks.real_array(name, x, ndim=2)
    return X, divisor(name, X.shape[0], ddof)


def _statistics(X: Array, covariance: Covariance | int) -> tuple[Array, Covariance]:
    """Mean and covariance, the latter as a factor if it comes from samples."""
    return settled(_fitted(X, covariance)) if isinstance(covariance, int) else (X, covariance)


@jax.jit
@full_precision
def _few_samples(X: Array, count_x: ArrayLike, Y: Array, count_y: ArrayLike) -> Array:
    (a, F), (b, G) = _rows(X, count_x), _rows(Y, count_y)
    return jnp.sum((a - b) ** 2) + procrustes(F, G, True)


@jax.jit
@full_precision
def _fitted(X: Array, count: ArrayLike) -> tuple[Array, Factor]:
    mean, rows = _rows(X, count)
    return mean, Factor(rows.T)


def _rows(X: Array, count: ArrayLike) -> tuple[Array, Array]:
    """Mean of samples, and the `(N - 1) x n` transpose of a factor of their covariance."""
    mean = jnp.mean(X, axis=0)
    rows = X - mean[None, :]
    N = len(X)
    # A reflection that takes the vector of ones to the first unit vector; then that row is zero.
    v = jnp.full((N,), N**-0.5, X.dtype).at[0].add(1)
    rows = rows - v[:, None] * (v @ rows)[None, :] * (2 / jnp.sum(v**2))
    return mean, rows[1:] / jnp.sqrt(jnp.asarray(count, X.dtype))


def _distance(kinds: tuple[Kind, ...], A: Array, B: Array) -> Array:
    value = _squared(kinds, A, B)
    if kinds == ("matrix", "matrix"):
        return positive_power(value, 0.5)
    # What coincides is apart by rounding, of which there is no direction.
    sizes = (
        jnp.trace(x) if kind == "matrix" else jnp.sum(x**2)
        for x, kind in zip((A, B), kinds, strict=True)
    )
    floor = 16 * len(A) * jnp.finfo(A.dtype).eps ** 2 * sum(sizes)
    return positive_power(jnp.where(value > floor, value, 0.0), 0.5)


def _squared(kinds: tuple[Kind, ...], A: Array, B: Array, *, form: Form = "residual") -> Array:
    if form == "residual" and kinds == ("matrix", "matrix"):
        return between(A, B)
    F, G = as_roots(kinds, A, B)
    return procrustes(F, G) if form == "residual" else by_traces(F, G)
