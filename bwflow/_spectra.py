"""Spectra: eigenvalues of covariances to study, largest first. `covariances` offers them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, Float, PRNGKeyArray

from bwflow import _checks


def power_law(n: int, exponent: ArrayLike = 1.0, *, dtype: DTypeLike = float) -> Float[Array, " n"]:
    """Eigenvalues `i^{-exponent}`, `i = 1..n` (Zipf's law).

    Raises
    ------
    ValueError
        If `n` is no positive integer, or `exponent` or `dtype` not of its kind.

    Examples
    --------
    >>> from bwflow import covariances
    >>> covariances.power_law(4, 2.0).tolist()
    [1.0, 0.25, 0.1111111111111111, 0.0625]
    """
    n, dtype = _checks.positive_int("n", n), _checks.floating_dtype("dtype", dtype)
    exponent = _checks.scalar("exponent", exponent, dtype)
    return jnp.arange(1, n + 1, dtype=dtype) ** -exponent


def geometric(n: int, condition: float, *, dtype: DTypeLike = float) -> Float[Array, " n"]:
    """Eigenvalues `condition^{-(i-1)/(n-1)}`, from 1 down to `1 / condition`.

    Raises
    ------
    ValueError
        If `n` is no positive integer, `condition` below 1, or `dtype` not of its kind.

    Examples
    --------
    >>> from bwflow import covariances
    >>> [round(x, 6) for x in covariances.geometric(3, 100.0).tolist()]
    [1.0, 0.1, 0.01]
    """
    n, dtype = _checks.positive_int("n", n), _checks.floating_dtype("dtype", dtype)
    _checks.scalar("condition", condition, dtype, minimum=1.0)
    return jnp.geomspace(1.0, 1.0 / condition, n, dtype=dtype)


def step(
    n: int, rank: int, low: ArrayLike = 0.0, *, dtype: DTypeLike = float
) -> Float[Array, " n"]:
    """Eigenvalues 1, `rank` times, then `low`.

    Raises
    ------
    ValueError
        If `n` or `rank` is no positive integer, `rank` above `n`, or `low` not in [0, 1].

    Examples
    --------
    >>> from bwflow import covariances
    >>> covariances.step(4, 2, 0.25).tolist()
    [1.0, 1.0, 0.25, 0.25]
    """
    n, dtype = _checks.positive_int("n", n), _checks.floating_dtype("dtype", dtype)
    if _checks.positive_int("rank", rank) > n:
        raise ValueError(f"rank must be at most n={n}; got {rank}.")
    low = _checks.scalar("low", low, dtype, minimum=0.0, maximum=1.0)
    return jnp.where(jnp.arange(n) < rank, jnp.ones((), dtype), low)


def random_spectrum(
    key: PRNGKeyArray,
    n: int,
    *,
    distribution: str = "zipf",
    sampled: str = "eigenvalues",
    minimum: ArrayLike = 0.0,
    rank: int | None = None,
    dtype: DTypeLike = float,
) -> Float[Array, " n"]:
    """Random eigenvalues by the recipe of Brechet et al. (2023), largest first.

    Of `n` values the `rank` largest are kept and the others set to zero. If the least one kept is
    below the minimum, all are moved up together until it is there: what is distinct stays so.

    Parameters
    ----------
    key
        Random key.
    n
        Number of eigenvalues.
    distribution
        One of `DISTRIBUTIONS`. `"zipf"`: `g / i + z_i` for `i = 1..n`, with `g` the largest
        singular value of an `n x n` standard Gaussian matrix and `z_i` standard normals, moved
        together so that the least is `1 / n`. `"ginibre"`: all singular values of such a matrix.
        `"uniform"` on `(0, 1)`. `"exponential"` with mean 1. `"normal"`: absolute values.
    sampled
        Whether the values are the `"eigenvalues"` of the covariance or the `"singular_values"` of
        its factor, which are squared, after any move.
    minimum
        Lower bound of the eigenvalues kept, whichever is sampled. May be traced.
    rank
        Number of values kept; `n` by default.
    dtype
        Floating-point type of the result.

    Raises
    ------
    ValueError
        If a name is not one of those listed, or a number is out of range.

    References
    ----------
    Brechet, Papagiannouli, An, Montufar (2023), arXiv 2303.03027: the targets of their training
    script, which calls `"ginibre"` "random" and moves by `1 / n` more than is needed.

    Examples
    --------
    >>> import jax
    >>> from bwflow import covariances
    >>> lam = covariances.random_spectrum(jax.random.key(0), 5, rank=3, minimum=0.5)
    >>> bool((lam[:3] >= 0.5).all()), lam[3:].tolist()
    (True, [0.0, 0.0])
    """
    _checks.random_key("key", key)
    n, dtype = _checks.positive_int("n", n), _checks.floating_dtype("dtype", dtype)
    rank = n if rank is None else _checks.positive_int("rank", rank)
    if rank > n:
        raise ValueError(f"rank must be at most n={n}; got {rank}.")
    _checks.choice("sampled", sampled, ("eigenvalues", "singular_values"))
    _checks.choice("distribution", distribution, DISTRIBUTIONS)
    minimum = _checks.scalar("minimum", minimum, dtype, minimum=0.0)
    values = jnp.sort(_SAMPLERS[distribution](key, n, dtype))[n - rank :][::-1]
    squared = sampled == "singular_values"
    least = jnp.sqrt(minimum) if squared else minimum
    values = jnp.where(values[-1] < least, values - values[-1] + least, values)
    # The square of a rounded root may fall below the minimum.
    values = jnp.maximum(values**2, minimum) if squared else values
    return jnp.pad(values, (0, n - rank))


def _ginibre(key: PRNGKeyArray, n: int, dtype: DTypeLike) -> Array:
    return jnp.linalg.svd(jax.random.normal(key, (n, n), dtype), compute_uv=False)


def _zipf(key: PRNGKeyArray, n: int, dtype: DTypeLike) -> Array:
    key_g, key_z = jax.random.split(key)
    law = _ginibre(key_g, n, dtype)[0] / jnp.arange(1, n + 1, dtype=dtype)
    values = law + jax.random.normal(key_z, (n,), dtype)
    return values - jnp.min(values) + 1 / n


_SAMPLERS = {
    "zipf": _zipf,
    "ginibre": _ginibre,
    "uniform": lambda key, n, dtype: jax.random.uniform(key, (n,), dtype),
    "exponential": lambda key, n, dtype: jax.random.exponential(key, (n,), dtype),
    "normal": lambda key, n, dtype: jnp.abs(jax.random.normal(key, (n,), dtype)),
}
DISTRIBUTIONS = tuple(_SAMPLERS)
