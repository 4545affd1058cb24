"""Factorisations with one matrix or a pair for parameters: `W` itself, and `L R^T`."""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from bwflow import _checks
from bwflow._types import Grams
from bwflow.linalg import full_precision

VIEWS = ("end_to_end", "covariance")


class Product(eqx.Module):
    """The `n x p` matrix `left right^T`, not formed; what `Rectangular` assembles.

    A loss takes it where it means a function of `L R^T`; of a plain matrix `W` the same loss is a
    function of `W W^T`. As a gradient it holds those in the two factors.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> E = bw.factors.Product(jnp.ones((3, 1)), 2.0 * jnp.ones((2, 1)))
    >>> E.shape, float(E.matrix()[0, 0])
    ((3, 2), 2.0)
    """

    left: Float[Array, "n r"]
    right: Float[Array, "p r"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[0]

    @property
    def dtype(self):
        return self.left.dtype

    @full_precision
    def matrix(self) -> Float[Array, "n p"]:
        """The matrix itself."""
        return self.left @ self.right.T


class Symmetric(eqx.Module):
    """Factorisation of `X X^T`: the one parameter `X` (`n x r`) is the end-to-end matrix.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(4.0 * jnp.eye(2)), tau=0.0)
    >>> run = bw.gradient_descent(
    ...     loss, jnp.eye(2), optax.sgd(0.5), num_steps=1, factorization=bw.factors.Symmetric())
    >>> print(run.factors.round(4))
    [[2. 0.]
     [0. 2.]]
    """

    views: ClassVar[tuple[str, ...]] = VIEWS

    def assemble(self, params: Float[Array, "n r"]) -> Float[Array, "n r"]:
        """The parameter."""
        return params

    def pullback(self, params: Float[Array, "n r"], G: Float[Array, "n r"]) -> Float[Array, "n r"]:
        """The gradient."""
        return G

    @full_precision
    def grams(self, params: Float[Array, "n r"], view: str = "covariance") -> Grams:
        """`(None, X^T X)` in the view of the covariance, two identities in that of `X`."""
        _checks.choice("view", view, self.views)
        return ((None, params.T @ params if view == "covariance" else None),)

    def bottleneck(self, params: Float[Array, "n r"]) -> int:
        """Largest rank the end-to-end matrix can have."""
        return min(_checks.real_array("params", params, ndim=2, finite=False).shape)


class Rectangular(eqx.Module):
    """Factorisation `L R^T` with parameters `(L, R)`, of shapes `n x r` and `p x r`.

    The loss is given a `Product`, and is one of `L R^T`. With its gradient `Z` there, the gradients
    are `Z R` and `Z^T L`.

    Raises
    ------
    ValueError
        If the parameters are not two matrices with as many columns.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> E = bw.factors.Rectangular().assemble((jnp.ones((3, 1)), jnp.ones((2, 1))))
    >>> E.shape
    (3, 2)
    """

    views: ClassVar[tuple[str, ...]] = VIEWS[:1]

    def assemble(self, params: tuple[Array, Array]) -> Product:
        """The product, not formed."""
        return Product(*_pair(params))

    def pullback(self, params: tuple[Array, Array], G: Product) -> tuple[Array, Array]:
        """Gradients in the two factors."""
        return G.left, G.right

    @full_precision
    def grams(self, params: tuple[Array, Array], view: str = "end_to_end") -> Grams:
        """`((None, R^T R), (None, L^T L))`; there is no other view."""
        _checks.choice("view", view, self.views)
        left, right = params
        return (None, right.T @ right), (None, left.T @ left)

    def bottleneck(self, params: tuple[Array, Array]) -> int:
        """Largest rank the product can have."""
        left, right = _pair(params)
        return min(*left.shape, *right.shape)


def _pair(params: Any) -> tuple[Array, Array]:
    if not isinstance(params, (tuple, list)) or len(params) != 2:
        raise ValueError(f"params must be a pair of matrices (L, R); got {_checks.shown(params)}.")
    left, right = (
        _checks.real_array(f"params[{i}]", x, ndim=2, finite=False) for i, x in enumerate(params)
    )
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            "params must be two matrices with as many columns; "
            f"got shapes {left.shape} and {right.shape}."
        )
    return left, right
