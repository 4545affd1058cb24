"""Balanced networks in other coordinates: their end-to-end matrix, or its covariance.

The layers of a balanced network are fixed, up to rotations that no loss sees, by their product, and
so is their gradient flow. Written on the product, the depth is a number in a formula.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.linalg import full_precision, positive_power, symmetrize


class _Balanced(eqx.Module):
    """What both have in common: a depth, which is a number, and a rank, which is not."""

    depth: ArrayLike
    rank: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        _checks.scalar("depth", self.depth, float, minimum=1.0)
        if self.rank is not None:
            _checks.positive_int("rank", self.rank)

    def bottleneck(self, params: Float[Array, "n p"]) -> int:
        """Largest rank the end-to-end matrix can have: that of its start."""
        least = min(_checks.real_array("params", params, ndim=2, finite=False).shape)
        if self.rank is not None and self.rank > least:
            raise ValueError(f"rank must be at most {least} for this start; got {self.rank}.")
        return least if self.rank is None else self.rank


class EndToEnd(_Balanced):
    """Balanced network of real depth `N` with its end-to-end matrix `W` for parameter.

    The gradient flow of balanced layers moves `W` by
    `dW/dt = -sum_{j=1}^N (W W^T)^{(N-j)/N} G (W^T W)^{(j-1)/N}`, zeroth powers being identities.
    For `W = U diag(s) V^T` that multiplies entry `(a, b)` of `U^T G V` by
    `(s_a^2 - s_b^2) / (s_a^{2/N} - s_b^{2/N})`, which makes sense for any real `N >= 1`.

    Parameters
    ----------
    depth
        Number of layers `N`, a real number of at least 1; it may be traced.
    rank
        Rank of `W`, which the flow keeps; by default the smaller of its sides. It has to be given
        where it is less, for fractional powers of rounding errors are not small.

    Raises
    ------
    ValueError
        If `depth` is not a finite number of at least 1, or `rank` not a positive integer.

    Notes
    -----
    Proved for balanced layers, `W_{j+1}^T W_{j+1} = W_j W_j^T`; others move otherwise. As `N`
    grows, the multipliers divided by `N` tend to the logarithmic means of `s_a^2` and `s_b^2`, and
    between range and null space to 0: deep networks move in the time `N t`, and in the limit within
    the row and column spaces of the start. Between the null spaces the multiplier is 1 at `N = 1`
    and 0 above, so there only the flow is not continuous in `N`.

    Cost: one SVD of `W` beside the gradient, whatever the depth. Norms of the gradient are those
    of the velocity of `W`. Derivatives pass through the SVD: they are finite where the non-zero
    singular values are simple. As parameters of a descent, `W` takes steps of its own flow, not
    those of its layers.

    References
    ----------
    Arora, Cohen, Hazan (2018), arXiv 1802.06509, Theorem 1, for the flow of the product.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(4.0 * jnp.eye(2)), tau=0.0)
    >>> run = bw.gradient_flow(
    ...     loss, jnp.eye(2), times=[0.0, 9.0], rtol=1e-5, atol=1e-6,
    ...     factorization=bw.factors.EndToEnd(depth=2.5))
    >>> bool(jnp.allclose(run.factors, 2.0 * jnp.eye(2), atol=1e-3))
    True
    """

    def assemble(self, params: Float[Array, "n p"]) -> Float[Array, "n p"]:
        """The parameters themselves."""
        return params

    @full_precision
    def pullback(self, params: Float[Array, "n p"], G: Float[Array, "n p"]) -> Float[Array, "n p"]:
        """Minus the velocity of `W` where the gradient of the loss is `G`."""
        r, N = self.bottleneck(params), jnp.asarray(self.depth, params.dtype)
        U, s, Vt = jnp.linalg.svd(params, full_matrices=False)
        U, s, Vt = U[:, :r], s[:r], Vt[:r]
        left, right = U.T @ G, G @ Vt.T
        core = left @ Vt.T
        lone = positive_power(s, 2 - 2 / N)
        moved = U @ ((_multiplier(s**2, N) * core) @ Vt + lone[:, None] * (left - core @ Vt))
        moved += ((right - U @ core) * lone[None, :]) @ Vt
        outside = G - U @ left - (right - U @ core) @ Vt
        return moved + jnp.where(N == 1, outside, 0)


class Covariance(_Balanced):
    """Balanced network of real depth `N` with its covariance `S = W W^T` for parameter.

    The gradient flow of balanced layers moves `S` by
    `dS/dt = -2 sum_{i=0}^{2N-1} S^{i/N} E S^{(2N-1-i)/N}`, where `E` is the gradient of the loss in
    `S`. In the eigenbasis of `S`, with eigenvalues `w`, entry `(a, b)` of `E` is multiplied by
    `(w_a^2 - w_b^2) / (w_a^{1/N} - w_b^{1/N})`. For `N = 1` this is `-2 (E S + S E)`, the gradient
    flow of the Bures-Wasserstein geometry.

    Parameters
    ----------
    depth
        Number of layers `N`, a real number of at least 1; it may be traced.
    rank
        Rank of `S`, which the flow keeps; by default its size. It has to be given where it is less.

    Raises
    ------
    ValueError
        If `depth` is not a finite number of at least 1, or `rank` not a positive integer.

    Notes
    -----
    For losses that depend on `W W^T` alone. `E` is not formed: `G = 2 E W` at a factor `W` of `S`
    is enough, also where `E` does not exist. What is said at `EndToEnd` of balanced layers, deep
    limits, derivatives and norms holds here too. Small eigenvalues are lost at `eps w_1`, the
    singular values of `W` only at `eps s_1`: prefer `EndToEnd` for small starts.

    Cost: one eigendecomposition of `S` beside the gradient.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(4.0 * jnp.eye(2)), tau=0.0)
    >>> run = bw.gradient_flow(
    ...     loss, jnp.eye(2), times=[0.0, 9.0], rtol=1e-5, atol=1e-6,
    ...     factorization=bw.factors.Covariance(depth=1))
    >>> bool(jnp.allclose(run.factors, 4.0 * jnp.eye(2), atol=1e-3))
    True
    """

    def assemble(self, params: Float[Array, "n n"]) -> Float[Array, "n r"]:
        """A factor of the covariance with as many columns as its rank."""
        w, Q = self._eigenpairs(params)
        return Q * positive_power(w, 0.5)[None, :]

    @full_precision
    def pullback(self, params: Float[Array, "n n"], G: Float[Array, "n r"]) -> Float[Array, "n n"]:
        """Minus the velocity of `S` where the gradient of the loss in its factor is `G`."""
        N = jnp.asarray(self.depth, params.dtype)
        w, Q = self._eigenpairs(params)
        core = Q.T @ G
        # Entry (a, b) of 2 E, from the column of the larger eigenvalue: its root divides.
        root = positive_power(w, 0.5)
        E = jnp.triu(core.T / jnp.where(root > 0, root, 1)[:, None])
        E = E + jnp.triu(E, 1).T
        inside = Q @ (_multiplier(w, N, 2) * E) @ Q.T
        across = ((G - Q @ core) * positive_power(w, 1.5 - 1 / N)[None, :]) @ Q.T
        return inside + across + across.T

    def _eigenpairs(self, S: Array) -> tuple[Array, Array]:
        """The positive eigenvalues, largest first, and their eigenvectors."""
        r = self.bottleneck(S)
        w, Q = jnp.linalg.eigh(symmetrize(S))
        return jnp.maximum(w[::-1][:r], 0), Q[:, ::-1][:, :r]


def _multiplier(w: Array, N: Array, power: int = 1) -> Array:
    """`(w_a^q - w_b^q) / (w_a^{1/N} - w_b^{1/N})` for all pairs, `q` the power.

    With `d = log(w_a / w_b) >= 0` it is `w_a^{q - 1/N} expm1(-q d) / expm1(-d / N)`, which keeps
    its digits where the two meet and does not overflow where they are far apart.
    """
    high, low = jnp.maximum(w[:, None], w[None, :]), jnp.minimum(w[:, None], w[None, :])
    apart = (high > low) & (low > 0)
    d = jnp.where(apart, jnp.log(jnp.where(apart, high, 2) / jnp.where(apart, low, 1)), 1)
    ratio = jnp.expm1(-power * d) / jnp.expm1(-d / N)
    ratio = jnp.where(apart, ratio, jnp.where(low > 0, power * N, 1))
    return positive_power(high, power - 1 / N) * ratio
