"""Targets: a covariance factorised once, and recipes for covariances to study.

`Target` is what every loss takes. Spectra (`power_law`, `geometric`, `step`, `random_spectrum`) are
plain arrays of eigenvalues, largest first; `from_spectrum` puts one into a basis.
"""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike, Float, PRNGKeyArray

from bwflow import _checks, _moments
from bwflow._factorize import eigenpairs as eigenpairs
from bwflow._factorize import factorize_covariance, factorize_factor
from bwflow._moments import Moments as Moments
from bwflow._spectra import DISTRIBUTIONS as DISTRIBUTIONS
from bwflow._spectra import geometric as geometric
from bwflow._spectra import power_law as power_law
from bwflow._spectra import random_spectrum as random_spectrum
from bwflow._spectra import step as step
from bwflow._types import Scalar
from bwflow.linalg import full_precision, symmetric_sylvester

__all__ = [
    "DISTRIBUTIONS",
    "Moments",
    "Spiked",
    "Target",
    "from_spectrum",
    "geometric",
    "haar",
    "power_law",
    "random_spectrum",
    "sampling_error",
    "step",
    "wishart",
]


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
        eigenvalue below `-10 n * eps * lambda_1`, or is zero; if `rank` is not an integer between 1
        and `n`. For the other constructors likewise.

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
                Sigma = _checks.covariance_matrix("Sigma", Sigma)
                parts = factorize_covariance(_checked("Sigma", Sigma, rank), rank)
            else:
                factor = _checks.real_array("factor", factor, ndim=2)
                parts = factorize_factor(_checked("factor", factor, rank), rank)
        self.factor, self.eigenvalues, self.eigenvectors = parts

    @classmethod
    def from_factor(cls, B: ArrayLike, *, rank: int | None = None) -> "Target":
        """Target `B B^T` from a factor `B` (`n x m`, any rank), at the cost of one thin SVD."""
        return cls(factor=B, rank=rank)

    @classmethod
    def from_samples(
        cls,
        X: ArrayLike | Iterable[ArrayLike] | Moments,
        *,
        ddof: int = 0,
        rank: int | None = None,
    ) -> "Target":
        """Target `(X - mean)^T (X - mean) / (num_samples - ddof)` from samples in rows.

        They may come in blocks of rows, from any iterable, of which one is held at a time, or as
        `Moments` that have been merged; these are eager. An array may be traced.

        Its distance to the covariance of the law that was sampled is about `sampling_error(X)`:
        where a network is much closer to the target than that, it learns the noise of the samples.
        """
        samples = _moments.gathered(X)
        if isinstance(samples, Moments):
            return cls(factor=samples.factor(ddof=ddof), rank=rank)
        X = _checked("X", _checks.real_array("X", samples, ndim=2), rank)
        return cls(factor=_samples_factor(X, ddof), rank=rank)

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


class Spiked(eqx.Module):
    """A covariance `Sigma0 = G G^T + delta I`: a few directions of signal in isotropic noise.

    The loss `bwflow.smoothed_bures` takes one in place of a `Target`, and so does
    `bwflow.losses.BuresWasserstein`, of which it allows value, derivatives and minimum; what asks
    for the eigenvectors of a target takes `Target` alone. Nothing is `n x n`.

    Parameters
    ----------
    G
        Factor of the spikes, `n x r`.
    delta
        Variance of the noise, in units of the covariance; positive.
    rank
        As for `Target.from_factor`.

    Attributes
    ----------
    spikes
        The target `G G^T`.
    delta
        As given.

    Raises
    ------
    ValueError
        As `Target.from_factor` does for `G` and `rank`; if `delta` is not a positive number.

    References
    ----------
    Johnstone (2001), On the distribution of the largest eigenvalue in principal components
    analysis.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.covariances.Spiked(jnp.ones((100_000, 1)), delta=0.25)
    >>> loss = bw.losses.BuresWasserstein(target, tau=0.25)
    >>> print(f"{loss(jnp.ones((100_000, 1))):.3f}, {loss.minimum(1):.3f}")
    0.000, 0.000
    """

    spikes: Target
    delta: Array

    def __init__(self, G: ArrayLike, delta: ArrayLike, *, rank: int | None = None):
        G = _checks.real_array("G", G, ndim=2)
        self.delta = jnp.asarray(_checks.scalar("delta", delta, G.dtype, positive=True), G.dtype)
        self.spikes = Target(factor=_checked("G", G, rank), rank=rank)

    @property
    def dim(self) -> int:
        """Size `n` of the covariance."""
        return self.spikes.dim


def sampling_error(X: ArrayLike, *, ddof: int = 0) -> Scalar:
    """Root-mean-square BW distance of a sample covariance to the true one, from the samples.

    To leading order `E BW^2(S, Sigma) = sum_ij Var(y_i y_j) / (lambda_i + lambda_j) / (2 N)` with
    `N` the number of samples, `y` their principal components and `lambda` the variances of these,
    whatever the law. For a Gaussian one that is
    `(sum_ij lambda_i lambda_j / (lambda_i + lambda_j) + tr(Sigma) / 2) / (2 N)`.

    Parameters
    ----------
    X
        Samples in rows: independent draws of one law with fourth moments.
    ddof
        As in `Target.from_samples`, to the target of which the error belongs.

    Returns
    -------
    Array
        The distance (not squared), in units of the square root of the covariance.

    Raises
    ------
    ValueError
        As `Target.from_samples` does.

    Notes
    -----
    This wants many more samples than the rank `m`: with 100 Gaussian samples of rank 8 it is 4%
    too small, with 30 of them 14%, and more where tails are heavy; of two it says nothing. Cost:
    one thin SVD and a product of size `N m^2`. Derivatives cost `N n^3`; they are finite at
    repeated eigenvalues.

    Examples
    --------
    >>> import jax
    >>> from bwflow import covariances
    >>> X = jax.random.normal(jax.random.key(0), (1000, 3))
    >>> print(f"{covariances.sampling_error(X):.3f}, for a Gaussian {(3 / 1000) ** 0.5:.3f}")
    0.053, for a Gaussian 0.055
    """
    return jnp.sqrt(_mean_square_error(_samples_factor(X, ddof)))


def _samples_factor(X: ArrayLike, ddof: int) -> Float[Array, "n N"]:
    """The samples as columns, centred and scaled to be a factor of their covariance."""
    X = _checks.real_array("X", X, ndim=2)
    count = _moments.divisor("X", X.shape[0], ddof)
    if _checks.is_concrete(X) and not np.any(np.ptp(np.asarray(X), axis=0)):
        raise ValueError("X must hold samples that differ; all its rows are equal.")
    return _centred(X, count)


@jax.jit
def _centred(X: Float[Array, "N n"], count: ArrayLike) -> Float[Array, "n N"]:
    return (X - jnp.mean(X, axis=0, keepdims=True)).T / jnp.sqrt(jnp.asarray(count, X.dtype))


@jax.custom_jvp
@jax.jit
@full_precision
def _mean_square_error(B: Float[Array, "n N"]) -> Scalar:
    """`sum_k tr(E_k X_k) / 2`, where `S X_k + X_k S = E_k = b_k b_k^T - S / N` and `S = B B^T`."""
    target = Target.from_factor(B)
    squares = (target.eigenvectors.T @ B) ** 2
    # Sums of squares on the diagonal, lest rounding makes a small error negative.
    spread = jnp.sum((squares - jnp.mean(squares, axis=1, keepdims=True)) ** 2, axis=1)
    sums = target.eigenvalues[:, None] + target.eigenvalues[None, :]
    moments = jnp.where(jnp.eye(target.rank, dtype=bool), spread[:, None], squares @ squares.T)
    return jnp.sum(jnp.where(sums > 0, moments / jnp.where(sums > 0, sums, 1.0), 0.0)) / 2


@_mean_square_error.defjvp
@full_precision
def _(primals, tangents):
    def without_components(B):
        S = B @ B.T

        def term(b):
            E = b[:, None] * b[None, :] - S / B.shape[1]
            return jnp.vdot(E, symmetric_sylvester(S, E)) / 2

        return jnp.sum(lax.map(term, B.T, batch_size=256))

    return _mean_square_error(*primals), jax.jvp(without_components, primals, tangents)[1]


def _checked(name: str, x: Array, rank: int | None) -> Array:
    """The matrix, refused if it is empty or zero or has not such a rank."""
    if x.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {x.shape}.")
    # What is below the smallest normal number may be flushed to zero.
    tiny = jnp.finfo(x.dtype).tiny
    if _checks.is_concrete(x) and np.max(np.asarray(x)) < tiny and np.min(np.asarray(x)) > -tiny:
        raise ValueError(f"{name} must not be zero: a target needs a positive eigenvalue.")
    if rank is not None and _checks.positive_int("rank", rank) > min(x.shape):
        raise ValueError(f"rank must be at most {min(x.shape)}; got {rank}.")
    return x


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
        If there is no eigenvalue, one is negative or not finite, or all are zero. Values are
        needed: this is not for use under `jax.jit`.

    Examples
    --------
    >>> import jax
    >>> from bwflow import covariances
    >>> target = covariances.from_spectrum([0.0, 2.0, 3.0], key=jax.random.key(0))
    >>> target.rank, target.eigenvalues.round(4).tolist()
    (2, [3.0, 2.0])
    """
    if isinstance(eigenvalues, Sequence):
        eigenvalues = _checks.numbers("eigenvalues", eigenvalues, float, ndim=1)
    values = _checks.real_array("eigenvalues", eigenvalues, ndim=1)
    if not _checks.is_concrete(values):
        raise ValueError("eigenvalues must not be traced: those that are zero have to be counted.")
    if not np.max(np.asarray(values), initial=0) > 0 or np.min(np.asarray(values)) < 0:
        raise ValueError(
            f"eigenvalues must be one or more numbers, none negative and not all zero; "
            f"got {values}."
        )
    n = values.size
    Q = jnp.eye(n, dtype=values.dtype) if key is None else haar(key, n, dtype=values.dtype)
    kept = values > 0
    return Target.from_factor(Q[:, kept] * jnp.sqrt(values[kept])[None, :])


def haar(key: PRNGKeyArray, n: int, *, dtype: DTypeLike = float) -> Float[Array, "n n"]:
    """Uniformly distributed orthogonal matrix: QR of a Gaussian one, signs of R divided out.

    Raises
    ------
    ValueError
        If `key` is no key of `jax.random`, `n` no positive integer, or `dtype` not of its kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from bwflow import covariances
    >>> Q = covariances.haar(jax.random.key(0), 3)
    >>> bool(jnp.allclose(Q @ Q.T, jnp.eye(3), atol=1e-6))
    True
    """
    _checks.random_key("key", key)
    n, dtype = _checks.positive_int("n", n), _checks.floating_dtype("dtype", dtype)
    return jax.random.orthogonal(key, n, dtype=dtype)


def wishart(key: PRNGKeyArray, n: int, *, dof: int, dtype: DTypeLike = float) -> Target:
    """Target `G G^T / dof` with `G` an `n x dof` standard Gaussian; of rank `min(n, dof)`.

    Raises
    ------
    ValueError
        If `key` is no key of `jax.random`, `n` or `dof` no positive integer, or `dtype` not of its
        kind.

    Examples
    --------
    >>> import jax
    >>> from bwflow import covariances
    >>> target = covariances.wishart(jax.random.key(0), 4, dof=2)
    >>> target.dim, target.rank
    (4, 2)
    """
    _checks.random_key("key", key)
    shape = (_checks.positive_int("n", n), _checks.positive_int("dof", dof))
    G = jax.random.normal(key, shape, dtype=_checks.floating_dtype("dtype", dtype))
    return Target.from_factor(G / jnp.sqrt(jnp.asarray(dof, G.dtype)))
