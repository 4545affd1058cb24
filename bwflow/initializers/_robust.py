"""A start of low rank and sparse parts."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, PRNGKeyArray

from bwflow import _checks
from bwflow._types import Loss
from bwflow.factors import Product, ProductPlusSparse
from bwflow.initializers._random import layout
from bwflow.initializers._spectral import check_offers_gradient, of_a_pair
from bwflow.linalg import full_precision, positive_power
from bwflow.projections import Sparsity


def low_rank_plus_sparse(
    loss: Loss,
    sparsity: Sparsity,
    *,
    step: ArrayLike = 1.0,
    excess: ArrayLike = 1.5,
    num_steps: int = 5,
) -> Any:
    """Low rank and sparse parts by projected gradient steps in the matrices themselves.

    From `X = 0`, `S = 0`, in turn: `S <- T(S - step Z)` and `X <- P_r(X - step Z)`, each with the
    gradient `Z` of the loss at the newest `X + S`; `T` is `projections.double_threshold` and `P_r`
    the truncated SVD. Then `(L, R) = (U s^{1/2}, V s^{1/2})`, which are balanced.

    Parameters
    ----------
    loss
        One that offers `covariance_gradient` and takes `bwflow.factors.ProductPlusSparse`, such as
        `losses.Approximation` (robust principal components) and `losses.Sensing`.
    sparsity, excess
        What `S` is cut to.
    step
        Step `tau`: 1 for `Approximation`, and for operators that keep norms.
    num_steps
        Rounds.

    Returns
    -------
    Initializer
        For widths `(p, r, n)` it gives `((L, R), S)`, the parameters of
        `bwflow.factors.LowRankPlusSparse`. The key does not count.

    Raises
    ------
    ValueError
        If the loss does not offer its gradient, `sparsity` is none, or a number is out of range; by
        the start, if the widths are not three, the count is larger than the matrix, or there are
        fewer measurements than `(n + p - r) r`, the freedom of the low-rank part.

    Notes
    -----
    Cost: an SVD of `n x p` for each round. It gets within the basin of local convergence where the
    corruption is of the order `1 / (mu r)` in every row and column.

    References
    ----------
    Zhang, Wang and Gu (2018), arXiv 1702.06525.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> Y = jnp.ones((30, 20)).at[3, 7].set(9.0)
    >>> start = bw.initializers.low_rank_plus_sparse(
    ...     bw.losses.Approximation(Y), bw.projections.Sparsity(1, 0.05, 0.05))
    >>> (L, R), S = start(jax.random.key(0), (20, 1, 30))
    >>> bool(abs(S[3, 7] - 8) < 0.1), L.shape, R.shape
    (True, (30, 1), (20, 1))
    """
    check_offers_gradient(loss)
    _checks.instance("sparsity", sparsity, Sparsity, "a bwflow.projections.Sparsity")
    step = _checks.scalar("step", step, float, positive=True)
    excess = _checks.scalar("excess", excess, float, minimum=1.0)
    num_steps = _checks.positive_int("num_steps", num_steps)

    def initialize(key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float) -> Any:
        widths, dtype = layout(key, widths, dtype)
        p, r, n = of_a_pair(widths)
        sparsity.threshold(jnp.zeros((n, p), dtype))  # refuses bounds that do not fit
        measurements = getattr(loss, "operator", None)
        if measurements is not None and measurements.num_measurements < (n + p - r) * r:
            raise ValueError(
                f"loss must have at least {(n + p - r) * r} measurements, the freedom of matrices "
                f"of rank {r}, or nothing can recover one; got {measurements.num_measurements}."
            )
        numbers = _checks.traced_numbers((loss, sparsity, step, excess), dtype)
        L, R, S = _alternated(numbers, num_steps, min(n, p, r), n, p, dtype)
        missing = ((0, 0), (0, r - L.shape[1]))
        return (jnp.pad(L, missing), jnp.pad(R, missing)), S

    return initialize


@eqx.filter_jit
@full_precision
def _alternated(numbers, num_steps: int, r: int, n: int, p: int, dtype):
    loss, sparsity, step, excess = numbers

    def gradient(L: Array, R: Array, S: Array) -> Array:
        return loss.covariance_gradient(ProductPlusSparse(Product(L, R), S)).as_matrix()

    def advance(_, parts: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        L, R, S = parts
        S = sparsity.threshold(S - step * gradient(L, R, S), excess)
        U, s, Vt = jnp.linalg.svd(L @ R.T - step * gradient(L, R, S), full_matrices=False)
        root = positive_power(s[:r], 0.5)[None, :]
        return U[:, :r] * root, Vt[:r].T * root, S

    zero = jnp.zeros((n, r), dtype), jnp.zeros((p, r), dtype), jnp.zeros((n, p), dtype)
    return jax.lax.fori_loop(0, num_steps, advance, zero)
