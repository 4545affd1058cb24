"""Curvature of a loss at given layers: spectra, indices, ways out of saddles, and blow-up."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Int

from bwflow import _checks
from bwflow._types import Factors, Loss
from bwflow.factors import end_to_end, widths
from bwflow.linalg import full_precision, range_mask, symmetrize
from bwflow.losses import BuresWasserstein, Frobenius

Space: TypeAlias = Literal["factors", "covariance"]


def hessian_spectrum(
    loss: Loss, factors: Factors, *, count: int | None = None, space: Space = "factors"
) -> Float[Array, " e"]:
    """Eigenvalues of the Hessian of a loss, ascending.

    In the space of the factors it is the Hessian of `loss(W_N ... W_1)` in all entries of the
    layers. In the space of covariances it is that of `F(S) = loss` over symmetric matrices with
    the Frobenius inner product: `D^2 F[D, D]` is `2 ||D||^2` for the Frobenius loss and, with
    `M = B^T (W W^T + tau I) B = Q diag(r^2) Q^T`, for the Bures-Wasserstein loss

        sum_ij C_ij^2 / (r_i r_j (r_i + r_j)),   C = Q^T B^T D B Q.

    Parameters
    ----------
    loss
        Any loss of the end-to-end matrix that can be differentiated twice; over covariances one
        of `BuresWasserstein` and `Frobenius`.
    factors
        The layers `(W_1, ..., W_N)`.
    count
        If given, only the `count` smallest and the `count` largest, by a Lanczos method.
    space
        `"factors"` or `"covariance"`.

    Returns
    -------
    Array
        As many values as the layers have entries, or `n (n+1) / 2`; or `2 count` of them.

    Raises
    ------
    ValueError
        If the factors are no chain of matrices, the loss not one of these or no real scalar, or
        `count` not between 1 and half the number of values, or given where something is traced.

    Notes
    -----
    Cost: all eigenvalues of `P` entries take `P` products with the Hessian, each a few times that
    of a gradient, and `P^3` operations; with `count`, some ten products per value, from Python.
    That counts repeated eigenvalues as often as rounding lets it, which can be too few.

    Proved: in end-to-end matrices (one layer) no eigenvalue of the Bures-Wasserstein loss is above
    2, while the least is unbounded below where the rank of `W` drops; over covariances it is
    convex. Where `M` is singular it has no Hessian there: all values are NaN. At `tau = 0` and
    `rank(B^T W) < min(m, p)` the loss has a kink; what is returned in the space of the factors is
    the Hessian at constant rank.

    Errors are of the size of a rounding of the largest value, in absolute terms.

    References
    ----------
    Brechet et al. (2023), arXiv 2303.03027, on the blow-up; formulas derived here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> saddle = jnp.array([[0.0], [1.0]])
    >>> bw.landscape.hessian_spectrum(loss, (saddle,)).round(3).tolist()
    [-6.0, 2.0]
    """
    loss, factors = _checked(loss, factors, space)
    if count is None:
        return spectrum(loss, factors, space)
    count, size = _checks.positive_int("count", count), _size(factors, space)
    if 2 * count > size:
        raise ValueError(
            f"count must be at most half of the {size} eigenvalues; got {count}. "
            "Leave it out to compute all."
        )
    leaves = [x for x in jax.tree.leaves((loss, factors)) if eqx.is_array(x)]
    if not all(_checks.is_concrete(x) for x in [*leaves, jnp.zeros(())]):
        raise ValueError(
            "count must be left out where the loss or the factors are traced: the Lanczos "
            "iteration is not a program of jax."
        )
    return _lanczos(loss, factors, count, space)


def morse_index(
    loss: Loss, factors: Factors, *, tolerance: ArrayLike | None = None
) -> Int[Array, ""]:
    """Number of negative eigenvalues of the Hessian in the layers.

    Parameters
    ----------
    loss, factors
        As `hessian_spectrum` takes them.
    tolerance
        Eigenvalues count if they are below minus the tolerance times the largest magnitude among
        them; by default the square root of the machine epsilon.

    Raises
    ------
    ValueError
        As `hessian_spectrum` does, or if the tolerance is not a finite number of at least 0.

    Notes
    -----
    Cost: all eigenvalues. Rotations between the layers make many of them zero to rounding, hence
    the tolerance; `CriticalPoint.morse_index` counts without one.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> int(bw.landscape.morse_index(loss, (jnp.array([[0.0], [1.0]]),)))
    1
    """
    loss, factors = _checked(loss, factors, "factors")
    dtype = factors[0].dtype
    relative = float(jnp.finfo(dtype).eps) ** 0.5 if tolerance is None else tolerance
    tolerance = _checks.scalar("tolerance", relative, dtype, minimum=0.0)
    values = spectrum(loss, factors, "factors")
    cut = -jnp.asarray(tolerance, dtype) * jnp.max(jnp.abs(values))
    return jnp.sum(values < cut).astype(jnp.int32)


class Escape(NamedTuple):
    """Steepest directions: curvatures, ascending, and layer-shaped unit vectors, stacked."""

    curvatures: Float[Array, " c"]
    directions: Factors


def escape_directions(loss: Loss, factors: Factors, *, count: int = 1) -> Escape:
    """The directions in the layers along which the loss bends down most.

    A flow that starts a small distance from a saddle along a direction of curvature `-c` leaves
    as `e^{c t}`, and the loss falls by an amount that grows as `e^{2 c t}`.

    Parameters
    ----------
    loss, factors
        As `hessian_spectrum` takes them.
    count
        How many: the eigenvectors of the `count` least eigenvalues of the Hessian.

    Returns
    -------
    Escape
        `curvatures`, negative where there is a way down, and `directions`, each leaf with the
        `count` directions along a new leading axis, of norm 1 over all layers. Signs are arbitrary.

    Raises
    ------
    ValueError
        As `hessian_spectrum` does.

    Notes
    -----
    Cost: an eigendecomposition of the whole Hessian. Where curvatures repeat, any basis of their
    directions may be returned. It has no derivative.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> curvatures, (D,) = bw.landscape.escape_directions(loss, (jnp.array([[0.0], [1.0]]),))
    >>> float(curvatures[0].round(3)), abs(D[0]).round(3).tolist()
    (-6.0, [[1.0], [0.0]])
    """
    loss, factors = _checked(loss, factors, "factors")
    count, size = _checks.positive_int("count", count), _size(factors, "factors")
    if count > size:
        raise ValueError(f"count must be at most {size}, the number of entries; got {count}.")
    return _escape(loss, factors, count)


def _checked(loss: Any, factors: Any, space: str) -> tuple[Any, Factors]:
    """The loss with arrays for numbers, and the layers as arrays; refused if they do not fit."""
    _checks.function("loss", loss, "the end-to-end matrix")
    _checks.choice("space", space, get_args(Space))
    if space == "covariance":
        _checks.instance(
            "loss", loss, (BuresWasserstein, Frobenius), "of bwflow.losses for this space"
        )
    widths(factors)
    layers = tuple(_checks.real_array(f"factors[{j}]", W) for j, W in enumerate(factors))
    loss = _checks.traced_numbers(loss, layers[0].dtype)
    value = jax.eval_shape(lambda layers: loss(end_to_end(layers)), layers)
    if not (isinstance(value, jax.ShapeDtypeStruct) and value.shape == ()) or (
        value.dtype.kind != "f"
    ):
        raise ValueError(f"loss must return a real scalar; got {_checks.shown(value)}.")
    return loss, layers


def _size(factors: Factors, space: Space) -> int:
    n = factors[-1].shape[0]
    return n * (n + 1) // 2 if space == "covariance" else sum(W.size for W in factors)


def _product(loss: Any, factors: Factors, space: Space) -> Callable[[Array], Array]:
    """The Hessian as a function of a vector."""
    if space == "factors":
        entries, unravel = ravel_pytree(factors)
        gradient = jax.grad(lambda x: loss(end_to_end(unravel(x))))
        return lambda v: jax.jvp(gradient, (entries,), (v,))[1]
    W = end_to_end(factors)
    if isinstance(loss, Frobenius):
        return lambda v: 2 * v
    root = loss.target.factor.T
    smoothing = jnp.sqrt(jnp.asarray(loss.tau, W.dtype))
    # Singular values of a factor of M, lest its small eigenvalues be lost to rounding.
    Q, r, _ = jnp.linalg.svd(
        jnp.concatenate([root @ W, smoothing * root], axis=1), full_matrices=False
    )
    r = jnp.where(jnp.all(range_mask(r, max(W.shape))), r, jnp.nan)
    weights = 1 / (r[:, None] * r[None, :] * (r[:, None] + r[None, :]))
    into = Q.T @ root

    def product(v: Array) -> Array:
        return _packed(into.T @ (weights * (into @ _unpacked(v, W.shape[0]) @ into.T)) @ into)

    return product


def _packed(D: Array) -> Array:
    """Coordinates of a symmetric matrix in an orthonormal basis."""
    a, b = np.triu_indices(D.shape[0])
    return D[a, b] * jnp.asarray(np.where(a == b, 1, 2**0.5), D.dtype)


def _unpacked(v: Array, n: int) -> Array:
    a, b = np.triu_indices(n)
    half = v * jnp.asarray(np.where(a == b, 0.5, 0.5**0.5), v.dtype)
    upper = jnp.zeros((n, n), v.dtype).at[a, b].set(half)
    return upper + upper.T


def dense_hessian(loss: Any, factors: Factors, space: Space = "factors") -> Float[Array, "e e"]:
    """The Hessian as a symmetric matrix."""
    basis = jnp.eye(_size(factors, space), dtype=factors[0].dtype)
    return symmetrize(jax.vmap(_product(loss, factors, space))(basis))


@eqx.filter_jit
@full_precision
def spectrum(loss: Any, factors: Factors, space: Space) -> Array:
    return jnp.linalg.eigvalsh(dense_hessian(loss, factors, space))


@eqx.filter_jit
@full_precision
def _escape(loss: Any, factors: Factors, count: int) -> Escape:
    values, vectors = jnp.linalg.eigh(dense_hessian(loss, factors))
    unravel = ravel_pytree(factors)[1]
    return Escape(values[:count], jax.vmap(unravel)(vectors[:, :count].T))


@eqx.filter_jit
@full_precision
def _applied(loss: Any, factors: Factors, space: Space, v: Array) -> Array:
    return _product(loss, factors, space)(v)


class _Hessian(scipy.sparse.linalg.LinearOperator):
    """The Hessian as scipy takes it."""

    def __init__(self, loss: Any, factors: Factors, space: Space):
        size = _size(factors, space)
        super().__init__(np.dtype(factors[0].dtype), (size, size))
        self.arguments = (loss, factors, space)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(_applied(*self.arguments, jnp.asarray(x.reshape(-1), self.dtype)))


def _lanczos(loss: Any, factors: Factors, count: int, space: Space) -> Array:
    operator = _Hessian(loss, factors, space)
    # The same start each time, so that the same call gives the same values.
    start = np.random.default_rng(0).normal(size=operator.shape[0]).astype(operator.dtype)
    ends = [
        scipy.sparse.linalg.eigsh(operator, count, which=which, v0=start, return_eigenvectors=False)
        for which in ("SA", "LA")
    ]
    return jnp.asarray(np.sort(np.concatenate(ends)), operator.dtype)
