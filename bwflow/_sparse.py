"""Low rank plus sparse: `L R^T + S`."""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from bwflow import _checks
from bwflow._pairs import VIEWS, Product, Rectangular
from bwflow._types import Grams

# The pair, and the sparse matrix.
Parts = tuple[tuple[Array, Array], Array]


class ProductPlusSparse(eqx.Module):
    """The `n x p` matrix `L R^T + S`; what `LowRankPlusSparse` assembles.

    As a gradient it holds those in the three.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow.factors import Product, ProductPlusSparse
    >>> L = jnp.ones((2, 1))
    >>> ProductPlusSparse(Product(L, L), jnp.eye(2)).matrix().tolist()
    [[2.0, 1.0], [1.0, 2.0]]
    """

    product: Product
    sparse: Float[Array, "n p"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.product.shape

    @property
    def dtype(self):
        return self.sparse.dtype

    def matrix(self) -> Float[Array, "n p"]:
        """The matrix itself."""
        return self.product.matrix() + self.sparse


class LowRankPlusSparse(eqx.Module):
    """Factorisation `L R^T + S` with parameters `((L, R), S)`, of `n x r`, `p x r` and `n x p`.

    With the gradient `Z` of a loss of the sum, the gradients are `Z R`, `Z^T L` and `Z`. `S` is
    stored densely; what keeps it sparse is its optimiser, `bwflow.projections.thresholded`. Two
    blocks that move in turn, `S` first, converge where steps of both at once would not.

    Raises
    ------
    ValueError
        If the parameters are not of this form, or their shapes do not fit.

    Notes
    -----
    Cost: `n p r` a step, beside the thresholds' passes over `n x p`.

    Assumed, in the reference: incoherent factors, of coherence `mu`, and corruption of a share of
    the order `1 / (mu r)` in every row and column; then the convergence is linear near the truth,
    at a rate that for plain gradients goes with the condition of `L R^T` and for
    `precondition.scaledgd` does not. Bounds on `S` below the worst row or column make it stall far
    from the truth; bounds far above slow it down. Where the corruption is dense, low rank or as
    coherent as the rest, as a passer-by who stops, the split means nothing.

    References
    ----------
    Zhang, Wang and Gu (2018), arXiv 1702.06525.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> Y = jnp.ones((30, 20)).at[3, 7].set(9.0).at[8, 2].set(-5.0)
    >>> loss = bw.losses.Approximation(Y)
    >>> bounds = bw.projections.Sparsity(2, 0.05, 0.05)
    >>> start = bw.initializers.low_rank_plus_sparse(loss, bounds)(jax.random.key(0), (20, 1, 30))
    >>> run = bw.gradient_descent(
    ...     loss, start, (bw.precondition.scaledgd(0.5), bw.projections.thresholded(1.0, bounds)),
    ...     num_steps=50, order=(1, 0), factorization=bw.factors.LowRankPlusSparse())
    >>> _, S = run.factors
    >>> print(int((abs(S) > 1e-3).sum()), S[3, 7].round(4), S[8, 2].round(4))
    2 8.0 -6.0
    """

    views: ClassVar[tuple[str, ...]] = VIEWS[:1]

    def assemble(self, params: Parts) -> ProductPlusSparse:
        """The sum, not formed."""
        pair, S = _parts(params)
        return ProductPlusSparse(Rectangular().assemble(pair), S)

    def pullback(self, params: Parts, G: ProductPlusSparse) -> Parts:
        """Gradients in the three."""
        return (G.product.left, G.product.right), G.sparse

    def grams(self, params: Parts, view: str = "end_to_end") -> Grams:
        """`((None, R^T R), (None, L^T L), (None, None))`; there is no other view."""
        return (*Rectangular().grams(params[0], view), (None, None))

    def bottleneck(self, params: Parts) -> int:
        """Largest rank the sum can have."""
        return min(_parts(params)[1].shape)


def _parts(params: Any) -> Parts:
    if not isinstance(params, (tuple, list)) or len(params) != 2:
        raise ValueError(f"params must be ((L, R), S); got {_checks.shown(params)}.")
    product = Rectangular().assemble(params[0])
    S = _checks.real_array("params[1]", params[1], ndim=2, finite=False)
    if product.shape != S.shape:
        raise ValueError(f"S must have shape {product.shape}, as L R^T has; got {S.shape}.")
    return (product.left, product.right), S
