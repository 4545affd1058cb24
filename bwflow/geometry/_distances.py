"""Distances of covariances, of Gaussians and of samples."""

from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._moments import Moments
from bwflow.covariances import covariance_matrices
from bwflow.geometry import _operands
from bwflow.geometry._deviation import between, deviation, procrustes
from bwflow.geometry._operands import Covariance, Factor, Kind, Operand, as_root
from bwflow.geometry._roots import root
from bwflow.linalg import positive_power

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
        `"trace"` computes the formula above from eigenvalues of `L^T B L` with `A = L L^T`, faster,
        with an absolute error of `eps (tr A + tr B)`, and of `eps^(1/2)` times that for singular
        matrices; also negative values.

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
    Relative error of some `eps` for factors. A matrix holds its small eigenvalues to `eps` times
    the largest, and distance and gradient can know them no better: `eps`

    Cost: two Cholesky decompositions and a polar factor; an eigendecomposition of each matrix that
    is singular or nearly coincides with the other. With factors of `k` and `l` columns products of
    size `n k l` and a polar factor of size `k x l`.

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
    return _operands.mapped(partial(_squared, form), given, [], "()")


def bures_wasserstein_distance(A: Covariance, B: Covariance) -> Float[Array, "*batch"]:
    """The Bures-Wasserstein distance, in units of standard deviations.

    As `bures_wasserstein`, of which it is the root. Where the two coincide its derivative is 0, one
    of its subgradients.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(f"{bw.geometry.bures_wasserstein_distance(4.0 * jnp.eye(4), jnp.eye(4)):.5f}")
    2.00000
    """
    return _root(bures_wasserstein(A, B))


@jax.jit
def _root(x: Array) -> Array:
    return positive_power(x, 0.5)


def _squared(form: Form, kinds: tuple[Kind, ...], A: Array, B: Array) -> Array:
    if form == "trace":
        return _by_traces(kinds, A, B)
    if kinds == ("matrix", "matrix"):
        return between(A, B)
    return procrustes(as_root(A, kinds[0]), as_root(B, kinds[1]))
