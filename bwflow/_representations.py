"""How alike two linear representations are: of the layers below, in two networks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.linalg import after, full_precision, polar


def representation_similarity(first: ArrayLike, second: ArrayLike) -> Scalar:
    """Linear centred kernel alignment of two representations `A x`, `C x` of white inputs `x`.

    `||A C^T||^2 / (||A A^T|| ||C C^T||)`, in Frobenius norms: 1 for representations that differ by
    a rotation and a factor, 0 for such as see orthogonal parts of the inputs.

    Parameters
    ----------
    first, second
        `A` and `C`, matrices with as many columns: first layers, or products of the lower ones. For
        inputs that are not white multiply by a root of their covariance.

    Raises
    ------
    ValueError
        If they are no such matrices.

    Notes
    -----
    NaN where one of them is zero. Cost: three products.

    References
    ----------
    Kornblith, Norouzi, Lee and Hinton (2019), arXiv 1905.00414.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import diagnostics
    >>> A = jnp.array([[1.0, 1.0, 0.0]])
    >>> print(diagnostics.representation_similarity(A, jnp.eye(1, 3)).round(4))
    0.5
    """
    A, C = _with_as_many_columns(first, second)
    return _similarity(A, C)


@jax.jit
@full_precision
def _similarity(A: Array, C: Array) -> Array:
    # Of unit norm, lest fourth powers overflow.
    A, C = A / jnp.linalg.norm(A), C / jnp.linalg.norm(C)
    return jnp.sum((A @ C.T) ** 2) / (jnp.linalg.norm(A @ A.T) * jnp.linalg.norm(C @ C.T))


def principal_angles(first: ArrayLike, second: ArrayLike) -> Float[Array, " k"]:
    """Angles between the spans of the rows of two matrices, in radians, in increasing order.

    Parameters
    ----------
    first, second
        Matrices with as many columns. There are as many angles as the smaller one has rows (at most
        as columns); directions that a lower rank lacks count as orthogonal to everything.

    Raises
    ------
    ValueError
        If they are no such matrices.

    Notes
    -----
    Cost: two polar factors and singular values. Cosines are accurate to a rounding, so that angles
    below its root are not; sines would be. Not to be differentiated.

    References
    ----------
    Bjorck and Golub (1973), Numerical methods for computing angles between linear subspaces.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import diagnostics
    >>> A = jnp.array([[1.0, 1.0, 0.0]])
    >>> print(diagnostics.principal_angles(A, jnp.eye(2, 3)[:1]).round(4))
    [0.7854]
    """
    A, C = _with_as_many_columns(first, second)
    return _angles(A, C)


@jax.jit
@full_precision
def _angles(A: Array, C: Array) -> Array:
    P = polar(A)
    Q = polar(after(C, P))
    cosines = jnp.linalg.svd(P @ Q.T, compute_uv=False)[: A.shape[1]]
    return jnp.arccos(jnp.clip(cosines, 0, 1))


def _with_as_many_columns(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    A = _checks.real_array("first", first, ndim=2)
    C = _checks.real_array("second", second, ndim=2)
    if A.shape[1] != C.shape[1] or A.dtype != C.dtype:
        raise ValueError(
            f"second must have {A.shape[1]} columns and dtype {A.dtype}, as first has; "
            f"got shape {C.shape} and dtype {C.dtype}."
        )
    return A, C
