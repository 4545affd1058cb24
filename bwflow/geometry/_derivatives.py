"""Gradients and Hessians on the manifold, from those in the covariance."""

from jaxtyping import Array, ArrayLike, Float

from bwflow.geometry import _operands
from bwflow.geometry._operands import Covariance, Kind, Operand
from bwflow.geometry._tangents import project, shaped, space, vectors
from bwflow.linalg import symmetric_sylvester, symmetrize


def riemannian_gradient(A: Covariance, E: ArrayLike) -> Float[Array, "*batch n k"]:
    """The gradient on the manifold, from the Euclidean one in the covariance.

    `2 (E A + A E)`; at a factor the lift `2 E F`, which is also the derivative of `f(F F^T)` in
    `F`.

    Parameters
    ----------
    A
        Covariance.
    E
        Euclidean gradient of a function of covariances at `A`, symmetric `n x n`.

    Returns
    -------
    Array
        The tangent vector with `<gradient, V>_A = tr (E V)` for all `V`.

    Raises
    ------
    ValueError
        If `A` is no covariance, or if `E` is no real finite matrix of its size.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> A, B = jnp.eye(2), 4.0 * jnp.eye(2)
    >>> E = jax.grad(bw.bures_wasserstein)(A, B) / 2
    >>> bool(jnp.allclose(bw.geometry.riemannian_gradient(A, E), -bw.geometry.log(A, B)))
    True
    """
    given = [_operands.operand("A", A)]
    return _operands.mapped(_gradient, given, _symmetric(given[0], E=E), space(given[0]))


def _gradient(kinds: tuple[Kind, ...], A: Array, E: Array) -> Array:
    EA = 2 * symmetrize(E) @ A
    return EA if kinds[0] == "factor" else EA + EA.T


def riemannian_hessian(
    A: Covariance, E: ArrayLike, dE: ArrayLike, V: ArrayLike
) -> Float[Array, "*batch n k"]:
    """The Hessian on the manifold along `V`, from the Euclidean gradient and its derivative.

    `2 (dE A + A dE + E S A + A S E)` with `S A + A S = V`; at a factor the horizontal part of
    `2 (dE F + E Z)`.

    Parameters
    ----------
    A
        Covariance.
    E
        Euclidean gradient at `A`, symmetric `n x n`.
    dE
        Its derivative along `V`, the Euclidean Hessian applied to `V`; at a factor along
        `F Z^T + Z F^T`.
    V
        Tangent vector at `A`.

    Returns
    -------
    Array
        A tangent vector: the covariant derivative of the gradient along `V`.

    Raises
    ------
    ValueError
        As `exp` and `riemannian_gradient` do.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> A, V = 4.0 * jnp.eye(1), jnp.ones((1, 1))
    >>> E, dE = jax.jvp(jax.grad(lambda A: bw.bures_wasserstein(A, jnp.eye(1)) / 2), (A,), (V,))
    >>> print(bw.geometry.riemannian_hessian(A, E, dE, V))
    [[1.]]
    """
    given = [_operands.operand("A", A)]
    extra = [*_symmetric(given[0], E=E, dE=dE), *vectors(given, V=V)]
    return _operands.mapped(_hessian, given, extra, space(given[0]))


def _hessian(kinds: tuple[Kind, ...], A: Array, E: Array, dE: Array, V: Array) -> Array:
    E, dE = symmetrize(E), symmetrize(dE)
    if kinds[0] == "factor":
        return project(kinds, A, 2 * (dE @ A + E @ V))
    S = symmetric_sylvester(A, symmetrize(V))
    H = 2 * (dE @ A + E @ (S @ A))
    return H + H.T


def _symmetric(of: Operand, **matrices: ArrayLike) -> list[tuple[Array, str]]:
    return shaped([of], (of.dim, of.dim), "(n,n)", matrices)
