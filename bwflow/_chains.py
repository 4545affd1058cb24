"""Chains of matrices `(W_1, ..., W_N)` and their products; `W_1` is applied first."""

from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float

from bwflow import _checks
from bwflow._types import Factors, Widths
from bwflow.linalg import full_precision


def widths(factors: Factors) -> Widths:
    """`(d_0, ..., d_N)` of the factors.

    Raises
    ------
    ValueError
        If `factors` is not a tuple or is empty, one of them is not a real floating matrix or is
        empty, dtypes differ, or neighbours do not fit. Every function of factors refuses these.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import factors
    >>> factors.widths((jnp.ones((4, 3)), jnp.ones((2, 4))))
    (3, 4, 2)
    """
    shapes = [W.shape for W in layers_of(factors)]
    return (shapes[0][1], *(shape[0] for shape in shapes))


def layers_of(factors: Factors) -> Factors:
    """The factors as arrays, refused if they are no chain of matrices."""
    if not isinstance(factors, (tuple, list)) or not factors:
        raise ValueError(
            f"factors must be a non-empty tuple of matrices; got {_checks.shown(factors)}."
        )
    # A run that failed may be looked at, so they need not be finite.
    layers = tuple(
        _checks.real_array(f"factors[{j}]", W, ndim=2, finite=False) for j, W in enumerate(factors)
    )
    shapes = [W.shape for W in layers]
    for j, shape in enumerate(shapes, start=1):
        if 0 in shape:
            raise ValueError(f"factors must be non-empty matrices; W_{j} has shape {shape}.")
    if len({W.dtype for W in layers}) > 1:
        found = ", ".join(str(W.dtype) for W in layers)
        raise ValueError(f"factors must have one dtype; got {found}.")
    for j, (inner, outer) in enumerate(pairwise(shapes), start=1):
        if outer[1] != inner[0]:
            raise ValueError(
                f"factors must chain: W_{j + 1} of shape {outer} cannot follow W_{j} of shape "
                f"{inner}; expected {inner[0]} columns."
            )
    return layers


@full_precision
def end_to_end(factors: Factors) -> Float[Array, "n p"]:
    """End-to-end matrix `W = W_N ... W_1`, multiplied from the right.

    Parameters
    ----------
    factors
        The layers `(W_1, ..., W_N)`; `W_j` is `d_j x d_{j-1}`.

    Raises
    ------
    ValueError
        If the factors are not a chain of matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> bw.end_to_end((2.0 * jnp.ones((3, 1)), jnp.ones((2, 3)))).tolist()
    [[6.0], [6.0]]
    """
    W, *rest = layers_of(factors)
    for layer in rest:
        W = layer @ W
    return W


@full_precision
def partial_products(factors: Factors) -> tuple[Factors, Factors]:
    """The products on both sides of every layer: all `W_{>j}`, and all `W_{<j}`.

    `W_{>j} = W_N ... W_{j+1}` and `W_{<j} = W_{j-1} ... W_1`, identities at the ends; `2 N`
    products in all.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import factors
    >>> above, below = factors.partial_products((2.0 * jnp.eye(1), 3.0 * jnp.eye(1)))
    >>> [float(A[0, 0]) for A in above], [float(B[0, 0]) for B in below]
    ([3.0, 1.0], [1.0, 2.0])
    """
    factors, d = layers_of(factors), widths(factors)
    dtype = factors[0].dtype
    above, below = [jnp.eye(d[-1], dtype=dtype)], [jnp.eye(d[0], dtype=dtype)]
    for layer in factors[:-1]:
        below.append(layer @ below[-1])
    for layer in factors[:0:-1]:
        above.append(above[-1] @ layer)
    return tuple(above[::-1]), tuple(below)
