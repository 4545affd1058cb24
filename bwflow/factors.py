"""The network as a tuple `(W_1, ..., W_N)` with end-to-end matrix `W = W_N ... W_1`.

`W_1` is applied first: it is the rightmost factor and takes the latent dimension.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from bwflow import _checks
from bwflow._balanced import Covariance as Covariance
from bwflow._balanced import EndToEnd as EndToEnd
from bwflow._chains import end_to_end as end_to_end
from bwflow._chains import layers_of
from bwflow._chains import partial_products as partial_products
from bwflow._chains import widths as widths
from bwflow._feedback import FeedbackAlignment as FeedbackAlignment
from bwflow._feedback import FeedbackAlignmentStar as FeedbackAlignmentStar
from bwflow._feedback import feedback_imbalance as feedback_imbalance
from bwflow._pairs import VIEWS
from bwflow._pairs import Product as Product
from bwflow._pairs import Rectangular as Rectangular
from bwflow._pairs import Symmetric as Symmetric
from bwflow._sparse import LowRankPlusSparse as LowRankPlusSparse
from bwflow._sparse import ProductPlusSparse as ProductPlusSparse
from bwflow._types import Factors, Grams, Widths
from bwflow.linalg import full_precision

__all__ = [
    "Covariance",
    "Deep",
    "EndToEnd",
    "FeedbackAlignment",
    "FeedbackAlignmentStar",
    "LowRankPlusSparse",
    "Product",
    "ProductPlusSparse",
    "Rectangular",
    "Symmetric",
    "constant_widths",
    "end_to_end",
    "feedback_imbalance",
    "imbalance",
    "linear_widths",
    "partial_products",
    "sample",
    "widths",
    "zero_pad",
]


class Deep(eqx.Module):
    """Factorization of a deep linear network: the parameters are its layers.

    The default of both dynamics. A factorization says how parameters become the end-to-end matrix
    and how a gradient comes back to them.
    """

    views: ClassVar[tuple[str, ...]] = VIEWS

    def assemble(self, params: Factors) -> Float[Array, "n p"]:
        """End-to-end matrix of the parameters."""
        return end_to_end(params)

    def pullback(self, params: Factors, G: Float[Array, "n p"]) -> Factors:
        """Layer gradients `W_{>j}^T G W_{<j}^T` of a gradient `G` in the end-to-end matrix."""
        return jax.vjp(end_to_end, params)[1](G)[0]

    def grams(self, params: Factors, view: str = "end_to_end") -> Grams:
        """Per layer, what a preconditioner divides its gradient by from the left and the right.

        They are `(W_{>j}^T W_{>j}, W_{<j} W_{<j}^T)` where the loss is seen as one of `W`, and
        `(W_{>j}^T W_{>j}, W_{<j} W^T W W_{<j}^T)` in the view `"covariance"`, as one of `W W^T`;
        there the left one of the last layer is `None`, for an identity that is not damped.
        """
        _checks.choice("view", view, self.views)
        above, below = partial_products(params)
        with full_precision:
            if view == "end_to_end":
                return tuple((A.T @ A, B @ B.T) for A, B in zip(above, below, strict=True))
            # W W_{<j}^T, for the end-to-end matrix is the last layer times what is below it.
            W = params[-1] @ below[-1]
            left = [*(A.T @ A for A in above[:-1]), None]
            right = [(C := W @ B.T).T @ C for B in below]
            return tuple(zip(left, right, strict=True))

    def bottleneck(self, params: Factors) -> int:
        """Largest rank the end-to-end matrix can have."""
        return min(widths(params))


def sample(
    factors: Factors, key: PRNGKeyArray, n: int, *, tau: ArrayLike = 0.0
) -> Float[Array, "n d"]:
    """Samples `x = W_N ... W_1 z + sqrt(tau) e` of the network, `z` and `e` standard normal.

    They are draws from the Gaussian with mean zero and covariance `W W^T + tau I`.

    Parameters
    ----------
    factors
        The layers `(W_1, ..., W_N)`; `W_j` is `d_j x d_{j-1}`.
    key
        Random key. The same key gives the same `z` to networks of one latent dimension, whatever
        their smoothing: what a sample of an untrained network becomes can be followed.
    n
        Number of samples.
    tau
        Smoothing, in units of the covariance; not negative.

    Returns
    -------
    Array
        `n x d_N`, samples in rows, in the dtype of the factors.

    Raises
    ------
    ValueError
        If the factors are not a chain of real floating matrices of one dtype, `key` is not a random
        key, `n` is not a positive integer, or `tau` is negative or not finite.

    Notes
    -----
    Cost: a product of `n` columns with every layer; the end-to-end matrix is not formed. Samples
    are differentiable in the factors, and in `tau > 0`: at `tau = 0` the slope of the root is
    infinite.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> x = bw.sample((jnp.ones((1, 2)), jnp.ones((3, 1))), jax.random.key(0), 4)
    >>> x.shape, bool((x == x[:, :1]).all())
    ((4, 3), True)
    """
    factors = layers_of(factors)
    _checks.random_key("key", key)
    tau = _checks.scalar("tau", tau, factors[0].dtype, minimum=0.0)
    return _sample(factors, key, _checks.positive_int("n", n), tau)


@partial(jax.jit, static_argnums=2)
@full_precision
def _sample(factors: Factors, key: PRNGKeyArray, n: int, tau: Array) -> Array:
    latent, noise = jax.random.split(key)
    x = jax.random.normal(latent, (n, factors[0].shape[1]), tau.dtype)
    for layer in factors:
        x = x @ layer.T
    return x + jnp.sqrt(tau) * jax.random.normal(noise, x.shape, tau.dtype)


@full_precision
def imbalance(factors: Factors) -> Factors:
    """Imbalances `D_j = W_{j+1}^T W_{j+1} - W_j W_j^T`, `j = 1..N-1`, conserved by gradient flows.

    Returns
    -------
    tuple of Array
        `N - 1` symmetric matrices; empty for one layer.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> bw.imbalance((2.0 * jnp.eye(1), 3.0 * jnp.eye(1)))[0].tolist()
    [[5.0]]
    """
    factors = layers_of(factors)
    return tuple(outer.T @ outer - inner @ inner.T for inner, outer in pairwise(factors))


def zero_pad(factors: Factors, new_widths: Sequence[int]) -> Factors:
    """The same network in larger layers, new rows and columns zero.

    The padded entries have zero gradient wherever the first and last widths are kept or padded
    against a padded target, so the network moves as before: this lets runs of several widths
    share one compiled program.

    Raises
    ------
    ValueError
        If `new_widths` are not positive integers, as many as the widths and none below them.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import factors
    >>> factors.widths(factors.zero_pad((jnp.ones((2, 2)), jnp.ones((2, 2))), (2, 5, 2)))
    (2, 5, 2)
    """
    factors, old = layers_of(factors), widths(factors)
    new_widths = _checks.widths("new_widths", new_widths)
    if len(new_widths) != len(old) or any(a < b for a, b in zip(new_widths, old, strict=True)):
        raise ValueError(
            f"new_widths must be {len(old)} numbers, none below {old}; got {new_widths}."
        )
    extra = [a - b for a, b in zip(new_widths, old, strict=True)]
    return tuple(
        jnp.pad(W, ((0, rows), (0, columns)))
        for W, rows, columns in zip(factors, extra[1:], extra, strict=False)
    )


def constant_widths(n: int, depth: int, *, inner: int | None = None) -> Widths:
    """Widths `(k, ..., k, n)` of `depth` layers: every inner and the latent one `k = inner`.

    Examples
    --------
    >>> from bwflow import factors
    >>> factors.constant_widths(16, 3, inner=4)
    (4, 4, 4, 16)
    """
    n, depth = _checks.positive_int("n", n), _checks.positive_int("depth", depth)
    k = n if inner is None else _checks.positive_int("inner", inner)
    return (k,) * depth + (n,)


def linear_widths(n: int, depth: int, *, bottleneck: int, latent: int | None = None) -> Widths:
    """Widths that fall linearly from the latent dimension to `bottleneck` and rise again to `n`.

    One layer has no inner width, so there `bottleneck` is the latent dimension.

    Raises
    ------
    ValueError
        If a number is not a positive integer or `bottleneck` exceeds `n` or `latent`.

    Examples
    --------
    >>> from bwflow import factors
    >>> factors.linear_widths(16, 4, bottleneck=4)
    (16, 10, 4, 10, 16)
    """
    n, depth = _checks.positive_int("n", n), _checks.positive_int("depth", depth)
    latent = n if latent is None else _checks.positive_int("latent", latent)
    bottleneck = _checks.positive_int("bottleneck", bottleneck)
    if bottleneck > min(n, latent):
        raise ValueError(f"bottleneck must be at most {min(n, latent)}; got {bottleneck}.")
    falling = depth // 2
    rising = depth - falling
    down = [round(latent + (bottleneck - latent) * j / falling) for j in range(falling)]
    up = [round(bottleneck + (n - bottleneck) * j / rising) for j in range(rising + 1)]
    return (*down, *up)
