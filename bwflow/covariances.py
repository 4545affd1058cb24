"""Targets: a covariance factorised once, and recipes for covariances to study.

`Target` is what every loss takes. The spectra below it are plain arrays of eigenvalues, largest
first; `from_spectrum` puts one into a basis.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike, Float, PRNGKeyArray

from bwflow import _checks
from bwflow.linalg import full_precision, range_mask, symmetric_sylvester, symmetrize


class Target(eqx.Module):
    """A covariance `Sigma0 = B B^T` with its factor and eigenpairs, computed once.

    Parameters
    ----------
    Sigma
        Symmetric positive semi-definite `n x n` matrix.
    rank
        Number of columns to keep. By default it is counted on the values, with the tolerance
        `n * eps * lambda_1`; where these are traced it is `n`.

    Attributes
    ----------
    factor
        `B`, `n x m`, of full column rank `m`. Gradients with respect to a target arrive here.
    eigenvalues
        The `m` positive eigenvalues of `Sigma0`, largest first; differentiable once, where simple.
    eigenvectors
        Their orthonormal eigenvectors, `n x m`. They carry no derivative: at repeated
        eigenvalues there is none.

    Raises
    ------
    ValueError
        If `Sigma` is not square, not real floating point, not finite, not symmetric, has an
        eigenvalue below `-10 n * eps * lambda_1`, or is zero.

    Notes
    -----
    Cost: an eigendecomposition of size `n` (and one to check concrete values), or one thin SVD for
    the factor constructors, which form nothing of size `n x n`. The constructors look at values, so
    they are eager; under `jax.jit` only shapes are checked.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([1.0, 4.0, 0.0])))
    >>> target.rank, target.eigenvalues.round(5).tolist()
    (2, [4.0, 1.0])
    """

    factor: Float[Array, "n m"]
    eigenvalues: Float[Array, " m"]
    eigenvectors: Float[Array, "n m"]

    def __init__(
        self,
        Sigma: ArrayLike | None = None,
        *,
        rank: int | None = None,
        factor: ArrayLike | None = None,
    ):
        if (Sigma is None) == (factor is None):
            raise ValueError("Target takes either a covariance Sigma or factor=; got both or none.")
        # Concrete values are factorised now even inside `jax.jit`, so that their rank can be seen.
        with jax.ensure_compile_time_eval():
            if factor is None:
                parts = _factorize_covariance(covariance_matrix("Sigma", Sigma), rank)
            else:
                parts = _factorize_factor(_checks.real_array("factor", factor, ndim=2), rank)
        self.factor, self.eigenvalues, self.eigenvectors = parts

    @classmethod
    def from_factor(cls, B: ArrayLike, *, rank: int | None = None) -> "Target":
        """Target `B B^T` from a factor `B` (`n x m`, any rank), at the cost of one thin SVD."""
        return cls(factor=B, rank=rank)

    @classmethod
    def from_samples(cls, X: ArrayLike, *, ddof: int = 0, rank: int | None = None) -> "Target":
        """Target `(X - mean)^T (X - mean) / (num_samples - ddof)` from samples in rows."""
        X = _checks.real_array("X", X, ndim=2)
        count = X.shape[0] - ddof
        if count < 1 or ddof < 0:
            raise ValueError(
                f"X must hold more than ddof={ddof} samples in its rows, and ddof must not be "
                f"negative; got {X.shape[0]} samples."
            )
        if _checks.is_concrete(X) and not np.any(np.ptp(np.asarray(X), axis=0)):
            raise ValueError("X must hold samples that differ; all its rows are equal.")
        centred = X - jnp.mean(X, axis=0, keepdims=True)
        return cls(factor=centred.T / jnp.sqrt(jnp.asarray(count, X.dtype)), rank=rank)

    @property
    def covariance(self) -> Float[Array, "n n"]:
        """`Sigma0 = B B^T`, formed when asked for."""
        with full_precision:
            return self.factor @ self.factor.T

    @property
    def rank(self) -> int:
        """Number `m` of columns of the factor."""
        return self.factor.shape[1]

    @property
    def dim(self) -> int:
        """Size `n` of the covariance."""
        return self.factor.shape[0]


def covariance_matrix(name: str, Sigma: ArrayLike | None) -> Float[Array, "n n"]:
    """`Sigma`, symmetric to the bit; refused where it is seen not to be a covariance."""
    Sigma = _checks.real_array(name, Sigma, ndim=2)
    if Sigma.shape[0] != Sigma.shape[1] or Sigma.size == 0:
        raise ValueError(f"{name} must be square and not empty; got shape {Sigma.shape}.")
    if _checks.is_concrete(Sigma):
        seen = np.asarray(Sigma)
        rounding = 10 * len(seen) * float(jnp.finfo(Sigma.dtype).eps)
        asymmetry = float(np.max(np.abs(seen - seen.T)))
        if asymmetry > rounding * float(np.max(np.abs(seen))):
            raise ValueError(
                f"{name} must be symmetric; its entries differ from those of its transpose "
                f"by up to {asymmetry:.3g}. Use ({name} + {name}.T) / 2 if that is rounding."
            )
        values = np.linalg.eigvalsh(seen)
        if values[0] < -rounding * abs(values[-1]):
            raise ValueError(
                f"{name} must be positive semi-definite; its smallest eigenvalue is "
                f"{values[0]:.6g} (largest {values[-1]:.6g})."
            )
    return symmetrize(Sigma)


def _kept(name: str, magnitudes: Array, size: int, rank: int | None) -> int:
    """How many of the magnitudes (largest first) to keep."""
    if rank is not None:
        rank = _checks.positive_int("rank", rank)
        if rank > magnitudes.size:
            raise ValueError(f"rank must be at most {magnitudes.size}; got {rank}.")
        return rank
    if not _checks.is_concrete(magnitudes):
        return magnitudes.size
    rank = int(jnp.sum(range_mask(magnitudes, size)))
    if rank == 0:
        raise ValueError(f"{name} must not be zero: a target needs a positive eigenvalue.")
    return rank


def _factorize_covariance(Sigma: Array, rank: int | None) -> tuple[Array, Array, Array]:
    factor, values, vectors = eigenpairs(Sigma)
    m = _kept("Sigma", values, Sigma.shape[0], rank)
    return factor[:, :m], values[:m], vectors[:, :m]


@jax.custom_jvp
@jax.jit
def eigenpairs(Sigma: Float[Array, "n n"]) -> tuple[Array, Array, Array]:
    """`(B, lambda, Omega)` with `Sigma = B B^T`, `B = Omega diag(sqrt(lambda))`, largest first.

    The derivative of `B` is `L B` with `L Sigma + Sigma L = dSigma`: of all the factors that move
    with `Sigma` the one without rotation, so that every quantity of `B B^T` has its derivative
    although eigenvectors need not have one. `Omega` is given none.
    """
    values, vectors = jnp.linalg.eigh(Sigma)
    values, vectors = values[::-1], vectors[:, ::-1]
    # Rounding-size eigenvalues, some of them negative, stand for zeros.
    values = jnp.where(range_mask(values, values.size), values, 0.0)
    return vectors * jnp.sqrt(values)[None, :], values, vectors


@eigenpairs.defjvp
@full_precision
def _(primals, tangents):
    (Sigma,), (dSigma,) = primals, tangents
    factor, values, vectors = eigenpairs(Sigma)
    dfactor = symmetric_sylvester(Sigma, symmetrize(dSigma)) @ factor
    dvalues = jnp.sum(vectors * (dSigma @ vectors), axis=0)
    return (factor, values, vectors), (dfactor, dvalues, jnp.zeros_like(vectors))


@full_precision
def _factorize_factor(B: Array, rank: int | None) -> tuple[Array, Array, Array]:
    U, s, Vt = jnp.linalg.svd(lax.stop_gradient(B), full_matrices=False)
    m = _kept("factor", s, max(B.shape), rank)
    # B V = U diag(s), written so that derivatives pass through B alone.
    factor = B @ Vt[:m].T
    return factor, jnp.sum(factor**2, axis=0), U[:, :m]


def from_spectrum(
    eigenvalues: ArrayLike | Sequence[float], *, key: PRNGKeyArray | None = None
) -> Target:
    """Target with given eigenvalues, in the standard basis or in a random (Haar) one.

    Parameters
    ----------
    eigenvalues
        Non-negative, in any order; zeros lower the rank.
    key
        If given, the eigenvectors are drawn uniformly from the orthogonal group.

    Returns
    -------
    Target
        `Q diag(eigenvalues) Q^T` with `Q` the identity or Haar-distributed.

    Raises
    ------
    ValueError
        If there is no eigenvalue, one is negative, or all are zero. Values are needed: this is not
        for use under `jax.jit`.

    Examples
    --------
    >>> import jax
    >>> from bwflow import covariances
    >>> target = covariances.from_spectrum([0.0, 2.0, 3.0], key=jax.random.key(0))
    >>> target.rank, target.eigenvalues.round(4).tolist()
    (2, [3.0, 2.0])
    """
    if isinstance(eigenvalues, Sequence):
        eigenvalues = np.asarray(eigenvalues, dtype=float)
    values = _checks.real_array("eigenvalues", eigenvalues, ndim=1)
    if values.size == 0 or np.min(np.asarray(values)) < 0:
        raise ValueError(f"eigenvalues must be one or more numbers, none negative; got {values}.")
    n = values.size
    Q = jnp.eye(n, dtype=values.dtype) if key is None else haar(key, n, dtype=values.dtype)
    kept = values > 0
    return Target.from_factor(Q[:, kept] * jnp.sqrt(values[kept])[None, :])


def haar(key: PRNGKeyArray, n: int, *, dtype: DTypeLike = float) -> Float[Array, "n n"]:
    """Uniformly distributed orthogonal matrix: QR of a Gaussian one, signs of R divided out."""
    return jax.random.orthogonal(key, n, dtype=dtype)


def power_law(n: int, exponent: float = 1.0, *, dtype: DTypeLike = float) -> Float[Array, " n"]:
    """Eigenvalues `i^{-exponent}`, `i = 1..n` (Zipf's law)."""
    index = jnp.arange(1, _checks.positive_int("n", n) + 1, dtype=dtype)
    return index ** -jnp.asarray(exponent, index.dtype)


def geometric(n: int, condition: float, *, dtype: DTypeLike = float) -> Float[Array, " n"]:
    """Eigenvalues `condition^{-(i-1)/(n-1)}`, from 1 down to `1 / condition`."""
    if not 1 <= condition < np.inf:
        raise ValueError(f"condition must be a finite number of at least 1; got {condition}.")
    return jnp.geomspace(1.0, 1.0 / condition, _checks.positive_int("n", n), dtype=dtype)


def step(n: int, rank: int, low: float = 0.0, *, dtype: DTypeLike = float) -> Float[Array, " n"]:
    """Eigenvalues 1, `rank` times, then `low`."""
    if _checks.positive_int("rank", rank) > n:
        raise ValueError(f"rank must be at most n={n}; got {rank}.")
    if not 0 <= low <= 1:
        raise ValueError(f"low must lie between 0 and 1; got {low}.")
    return jnp.where(jnp.arange(n) < rank, jnp.ones((), dtype), jnp.asarray(low, dtype))


def random_spectrum(
    key: PRNGKeyArray,
    n: int,
    *,
    distribution: str = "zipf",
    sampled: str = "eigenvalues",
    exponent: float = 2.0,
    minimum: float = 0.0,
    rank: int | None = None,
    dtype: DTypeLike = float,
) -> Float[Array, " n"]:
    """Random eigenvalues in the manner of Brechet et al. (2023), largest first.

    `rank` values are drawn, raised to at least `minimum`, and padded with zeros to length `n`.

    Parameters
    ----------
    key
        Random key.
    n
        Number of eigenvalues.
    distribution
        `"zipf"`: integers `k` with probability proportional to `k^{-exponent}`; `"uniform"` on
        `(0, 1)`; `"exponential"` with mean 1; `"normal"`: absolute values of standard normals.
    sampled
        Whether the draws are the `"eigenvalues"` of the covariance or the `"singular_values"` of
        its factor, which are squared.
    exponent
        Of the Zipf law; above 1.
    minimum
        Lower bound of the eigenvalues that are not zero.
    rank
        Number of positive eigenvalues; `n` by default.
    dtype
        Floating-point type of the result.

    Raises
    ------
    ValueError
        If a name is not one of those listed, or a number is out of range.

    References
    ----------
    Brechet, Papagiannouli, An, Montufar (2023), arXiv 2303.03027: the experiments' targets.

    Examples
    --------
    >>> import jax
    >>> from bwflow import covariances
    >>> lam = covariances.random_spectrum(jax.random.key(0), 5, rank=3, minimum=0.5)
    >>> bool((lam[:3] >= 0.5).all()), lam[3:].tolist()
    (True, [0.0, 0.0])
    """
    rank = _checks.positive_int("rank", _checks.positive_int("n", n) if rank is None else rank)
    if rank > n:
        raise ValueError(f"rank must be at most n={n}; got {rank}.")
    if not 0 <= minimum < np.inf:
        raise ValueError(f"minimum must be finite and not negative; got {minimum}.")
    if sampled not in ("eigenvalues", "singular_values"):
        raise ValueError(f"sampled must be 'eigenvalues' or 'singular_values'; got {sampled!r}.")
    draws = _draw(key, rank, distribution, exponent, dtype)
    values = draws**2 if sampled == "singular_values" else draws
    values = jnp.sort(jnp.maximum(values, jnp.asarray(minimum, values.dtype)))[::-1]
    return jnp.pad(values, (0, n - rank))


def _draw(
    key: PRNGKeyArray, count: int, distribution: str, exponent: float, dtype: DTypeLike
) -> Array:
    if distribution == "zipf":
        if not exponent > 1:
            raise ValueError(f"exponent must be above 1 for a Zipf law; got {exponent}.")
        # numpy has a sampler of the Zipf law, jax has none; RandomState's stream is frozen.
        seed = np.asarray(jax.random.key_data(key)).ravel()
        draws = np.random.RandomState(seed).zipf(exponent, count)
        return jnp.asarray(draws.astype(float), dtype)
    samplers = {
        "uniform": jax.random.uniform,
        "exponential": jax.random.exponential,
        "normal": lambda *a, **k: jnp.abs(jax.random.normal(*a, **k)),
    }
    if distribution not in samplers:
        choices = ", ".join(["zipf", *samplers])
        raise ValueError(f"distribution must be one of {choices}; got {distribution!r}.")
    return samplers[distribution](key, (count,), dtype=jax.dtypes.canonicalize_dtype(dtype))


def wishart(key: PRNGKeyArray, n: int, *, dof: int, dtype: DTypeLike = float) -> Target:
    """Target `G G^T / dof` with `G` an `n x dof` standard Gaussian; of rank `min(n, dof)`."""
    shape = (_checks.positive_int("n", n), _checks.positive_int("dof", dof))
    G = jax.random.normal(key, shape, dtype=jax.dtypes.canonicalize_dtype(dtype))
    return Target.from_factor(G / jnp.sqrt(jnp.asarray(dof, G.dtype)))
