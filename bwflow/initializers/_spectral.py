"""Starts that look at the problem: from the gradient at zero, a sketch of the target, weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike, PRNGKeyArray

from bwflow import _checks
from bwflow._types import Factors, Initializer, Loss, Widths
from bwflow.covariances import Target
from bwflow.factors import Product
from bwflow.initializers._random import layout, magnitude
from bwflow.initializers._split import split_evenly
from bwflow.linalg import full_precision, positive_power, symmetrize

_DENSE = 512  # rows up to which a decomposition of the whole matrix is made
_OVERSAMPLING, _POWERS = 10, 8


def spectral(
    loss: Loss, rectangular: bool = False, *, scale: ArrayLike | None = None
) -> Initializer:
    """Factor of the positive part of rank `r` of minus the loss's gradient at zero.

    With `G = grad phi(0)` for a loss `phi(W W^T)`, `M_0 = c sum_k (mu_k)_+ q_k q_k^T` over the `r`
    leading eigenpairs of `-G`, and `W = M_0^{1/2}`; with `rectangular`, the `r` leading singular
    triples of `-Z` and `(L, R) = sqrt(c) (U S^{1/2}, V S^{1/2})`. For sensing `-G` is the
    back-projection `sym A*(y)` of the measurements, for completion the observed entries.

    Parameters
    ----------
    loss
        A loss that offers `covariance_gradient`.
    rectangular
        Whether the widths are `(p, r, n)` and the start is the pair `(L, R)`.
    scale
        `c`. By default that of a secant step along the ray `c M_0`: the minimiser on it for every
        loss that is quadratic in `M`, such as sensing (about 1, and exactly 1 is what papers take),
        completion (about the inverse of the observed fraction) and phase retrieval; a first step in
        the right direction for others, such as one-bit sensing, where slopes do not tell lengths.

    Returns
    -------
    Initializer
        For widths `(r, n)` it gives `(W,)`, for deeper ones an even split of `W`. The key counts
        only above 512 rows, where the decomposition is randomised.

    Raises
    ------
    ValueError
        If the loss does not offer `covariance_gradient` or the scale is negative; by the start, if
        the gradient at zero is not finite, as that of an unsmoothed Bures-Wasserstein loss is.

    Notes
    -----
    Columns beyond the positive eigenvalues of `-G` are zero, and a descent leaves them so: where
    the minimiser may have more ranks, as of noisy measurements, add a small random matrix.

    Cost: one eigendecomposition of `n x n` up to `n = 512`; above, 9 products of the operator with
    `r + 10` vectors, fewer where these are more than `n`, and a decomposition of their span (block
    Krylov).

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2005.08898; Musco and Musco (2015), arXiv 1504.05477.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([9.0, 4.0, 1.0]))))
    >>> (W,) = bw.initializers.spectral(loss)(jax.random.key(0), (2, 3))
    >>> print((W @ W.T).round(4) + 0.0)
    [[9. 0. 0.]
     [0. 4. 0.]
     [0. 0. 0.]]
    """
    check_offers_gradient(loss)
    scale = None if scale is None else magnitude("scale", scale)

    def initialize(
        key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float
    ) -> Factors:
        widths, dtype = layout(key, widths, dtype)
        p, r, n = of_a_pair(widths) if rectangular else (widths[-1], min(widths), widths[-1])
        c = None if scale is None else jnp.asarray(scale, dtype)
        kernel = _spectral_pair if rectangular else _spectral
        start = kernel(_checks.traced_numbers(loss, dtype), key, c, min(n, p, r), n, p, dtype)
        if _checks.is_concrete(start[0]) and not np.all(np.isfinite(start[0])):
            raise ValueError(
                "loss must have a finite gradient at zero for a spectral start; it has none."
            )
        # Columns beyond the rows stay zero.
        start = tuple(jnp.pad(X, ((0, 0), (0, max(r - X.shape[1], 0)))) for X in start)
        if rectangular:
            return start
        (W,) = start
        return split_evenly(jnp.pad(W, ((0, 0), (0, widths[0] - r))), widths)

    return initialize


def nystrom(target: Any, std: ArrayLike = 1.0, rectangular: bool = False) -> Initializer:
    """Sketch `A Omega` of the target `A`, with `Omega` of independent entries `N(0, std^2)`.

    Its columns are in the range of `A`, where ScaledGD has a quadratic rate: with the learning rate
    that halves the distance (`mu = 1/2` along `G W`) each eigenvalue follows Newton's iteration for
    a square root. With `rectangular` the start is `(A Omega, 0)`, from which one step of
    `precondition.agn(1.0)` in the order `(1, 0)` reaches a best fit.

    Parameters
    ----------
    target
        A `bwflow.Target`, a matrix or a lineax operator: positive semi-definite (`n x n`) or, with
        `rectangular`, any (`n x p`).
    std
        Standard deviation of `Omega`.
    rectangular
        Whether the widths are `(p, r, n)` and the start is the pair `(L, R)`.

    Returns
    -------
    Initializer
        For widths `(r, n)` it gives `(A Omega,)`, for deeper ones an even split of it.

    Raises
    ------
    ValueError
        If the target is none of these or the standard deviation is negative; by the start, if the
        widths do not fit the target.

    Notes
    -----
    Cost: one product of `A` with `r` vectors.

    References
    ----------
    Li, Zhang, Mokhtari and He (2025), arXiv 2410.18965.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> A = jnp.array([[1.0, 2.0], [2.0, 4.0], [0.0, 0.0]])
    >>> L, R = bw.initializers.nystrom(A, rectangular=True)(jax.random.key(0), (2, 1, 3))
    >>> (L / L[0])[:2].T.tolist(), float(R.sum())
    ([[1.0, 2.0]], 0.0)
    """
    shape, product = _as_operator(target)
    if not rectangular and shape[0] != shape[1]:
        raise ValueError(f"target must be square, or rectangular=True be given; got shape {shape}.")
    std = magnitude("std", std)

    def initialize(
        key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float
    ) -> Factors:
        widths, dtype = layout(key, widths, dtype)
        p, r, n = of_a_pair(widths) if rectangular else (shape[1], widths[0], widths[-1])
        if (n, p) != shape:
            expected = f"be ({shape[1]}, r, {shape[0]})" if rectangular else f"end with {shape[0]}"
            raise ValueError(f"widths must {expected} for this target; got {widths}.")
        Omega = jnp.asarray(std, dtype) * jax.random.normal(key, (p, r), dtype)
        sketch = product(Omega).astype(dtype)
        if rectangular:
            return sketch, jnp.zeros((p, r), dtype)
        return split_evenly(sketch, widths)

    return initialize


def nora(W0: ArrayLike, sigma: ArrayLike = 0.02, *, alpha: ArrayLike | None = None) -> Initializer:
    """Adapter `(L, R) = (0, sigma (r / alpha) W0^T Omega)` of a weight `W0`, `Omega` Gaussian.

    For the layer `W0 + (alpha / r) B A` with `B = L` and `A = R^T`: `B` is zero and the rows of `A`
    are a sketch of those of `W0`, which itself stays as it is.

    Parameters
    ----------
    W0
        The weight, `n x p` (outputs by inputs).
    sigma
        Standard deviation of `Omega`, `n x r`.
    alpha
        Numerator of LoRA's scaling `alpha / r`; by default `r`.

    Returns
    -------
    Initializer
        For widths `(p, r, n)` it gives the pair of `bwflow.factors.Rectangular`.

    Raises
    ------
    ValueError
        If `W0` is not a finite matrix, `sigma` is negative or `alpha` not positive; by the start,
        if the widths do not fit.

    References
    ----------
    Li, Zhang, Mokhtari and He (2025), arXiv 2410.18965.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> L, R = bw.initializers.nora(jnp.eye(4, 3))(jax.random.key(0), (3, 2, 4))
    >>> L.shape, R.shape, float(abs(L).max())
    ((4, 2), (3, 2), 0.0)
    """
    W0 = _checks.real_array("W0", W0, ndim=2)
    sigma = magnitude("sigma", sigma)
    if alpha is not None:
        _checks.scalar("alpha", alpha, float, positive=True)

    def initialize(
        key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float
    ) -> Factors:
        widths, dtype = layout(key, widths, dtype)
        p, r, n = of_a_pair(widths)
        if (n, p) != W0.shape:
            raise ValueError(
                f"widths must be ({W0.shape[1]}, r, {W0.shape[0]}) for this W0; got {widths}."
            )
        scaling = 1 if alpha is None else jnp.asarray(alpha, dtype) / r
        Omega = jnp.asarray(sigma, dtype) * jax.random.normal(key, (n, r), dtype)
        with full_precision:
            return jnp.zeros((n, r), dtype), W0.astype(dtype).T @ Omega / scaling

    return initialize


def check_offers_gradient(loss: Any) -> None:
    """Refuse a loss that does not tell its gradient in the matrix."""
    if not callable(getattr(loss, "covariance_gradient", None)):
        raise ValueError(
            "loss must offer `covariance_gradient`, as those of bwflow.losses do; "
            f"{type(loss).__name__} does not."
        )


def of_a_pair(widths: Widths) -> Widths:
    if len(widths) != 3:
        raise ValueError(f"widths must be (p, r, n) for a pair; got {widths}.")
    return widths


def _as_operator(target: Any) -> tuple[tuple[int, ...], Callable[[Array], Array]]:
    """Shape of the target and its product with the columns of a matrix."""
    if isinstance(target, lx.AbstractLinearOperator):
        return (target.out_size(), target.in_size()), partial(_columns, target)
    if isinstance(target, Target):
        B = target.factor
        return (target.dim, target.dim), full_precision(lambda X: B @ (B.T @ X.astype(B.dtype)))
    A = _checks.real_array("target", target, ndim=2)
    return A.shape, full_precision(lambda X: A @ X.astype(A.dtype))


@full_precision
def _columns(operator: lx.AbstractLinearOperator, X: Array) -> Array:
    X = X.astype(operator.in_structure().dtype)
    return jax.vmap(operator.mv, in_axes=1, out_axes=1)(X)


@eqx.filter_jit
@full_precision
def _spectral(loss, key, scale, r: int, n: int, p: int, dtype) -> tuple[Array]:
    G = loss.covariance_gradient(jnp.zeros((n, r), dtype))
    basis = _krylov_basis(partial(_columns, G), lambda X: X, key, r, n, n, dtype)
    if basis is None:
        mu, Q = jnp.linalg.eigh(-symmetrize(G.as_matrix()))
    else:
        mu, Q = jnp.linalg.eigh(-symmetrize(basis.T @ _columns(G, basis)))
        Q = basis @ Q
    mu, Q = jnp.maximum(mu[::-1][:r], 0), Q[:, ::-1][:, :r]
    W = Q * positive_power(mu, 0.5)[None, :]
    if scale is None:
        # The gradient in W is 2 G W, so half its product with W is the slope along W W^T.
        scale = _secant(mu, jnp.vdot(jax.grad(loss)(W), W) / 2)
    return (positive_power(scale, 0.5) * W,)


@eqx.filter_jit
@full_precision
def _spectral_pair(loss, key, scale, r: int, n: int, p: int, dtype) -> tuple[Array, Array]:
    zero = Product(jnp.zeros((n, r), dtype), jnp.zeros((p, r), dtype))
    Z = loss.covariance_gradient(zero)
    forth, back = partial(_columns, Z), partial(_columns, Z.transpose())
    basis = _krylov_basis(forth, back, key, r, n, p, dtype)
    if basis is None:
        U, s, Vt = jnp.linalg.svd(-Z.as_matrix(), full_matrices=False)
    else:
        U, s, Vt = jnp.linalg.svd(-back(basis).T, full_matrices=False)
        U = basis @ U
    root = positive_power(s[:r], 0.5)[None, :]
    L, R = U[:, :r] * root, Vt[:r].T * root
    if scale is None:
        scale = _secant(s[:r], jnp.vdot(jax.grad(loss)(Product(L, R)).left, L))
    factor = positive_power(scale, 0.5)
    return factor * L, factor * R


def _secant(spectrum: Array, slope: Array) -> Array:
    """Where the slope along a ray is zero if it is linear: `-||spectrum||^2` at 0, `slope` at 1."""
    first = jnp.sum(spectrum**2)
    rise = first + slope
    return jnp.where(rise > 0, first / jnp.where(rise > 0, rise, 1), 1)


def _krylov_basis(
    forth: Callable[[Array], Array],
    back: Callable[[Array], Array],
    key: PRNGKeyArray,
    rank: int,
    n: int,
    p: int,
    dtype: DTypeLike,
) -> Array | None:
    """Orthonormal basis close to the leading left singular vectors; `None` where all are cheap.

    It spans `A Omega, (A B) A Omega, (A B)^2 A Omega, ...` for `forth` by `A` and `back` by `B`.
    """
    block = rank + _OVERSAMPLING
    powers = min(_POWERS, min(n, p) // block - 1)
    if max(n, p) <= _DENSE or powers < 1:
        return None
    blocks = [jnp.linalg.qr(forth(jax.random.normal(key, (p, block), dtype)))[0]]
    for _ in range(powers):
        blocks.append(jnp.linalg.qr(forth(back(blocks[-1])))[0])
    return jnp.linalg.qr(jnp.concatenate(blocks, axis=1))[0]
