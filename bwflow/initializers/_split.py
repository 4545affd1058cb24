"""Even splits: balanced layers of a random matrix, or of a given one."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, PRNGKeyArray

from bwflow import _checks
from bwflow._types import Factors, Initializer, Widths
from bwflow.covariances import Target
from bwflow.factors import end_to_end
from bwflow.initializers._random import gaussian, layout, magnitude
from bwflow.linalg import full_precision, positive_power, range_mask


def balanced(
    init: Initializer | None = None,
    *,
    scale: ArrayLike = 1.0,
    min_singular_value: ArrayLike = 0.0,
    rank: int | None = None,
) -> Initializer:
    """Even split of a random end-to-end matrix: `W_{j+1}^T W_{j+1} = W_j W_j^T` for every `j`.

    With the `r` leading singular triples `U diag(s) V^T` of `scale` times a draw of `init`, `s`
    raised to at least `min_singular_value`, and `a = s^{1/N}`, the factors are
    `W_1 = [diag(a); 0] V^T`, `W_j = diag(a)` padded by zeros, `W_N = U [diag(a), 0]`. A draw of
    rank above `r` is thereby cut to its best approximation of rank `r`: networks with different
    bottlenecks start at different end-to-end matrices.

    Parameters
    ----------
    init
        Draws the `n x p` matrix, as a network of one layer; `gaussian()` by default.
    scale
        Factor on the end-to-end matrix, whatever the depth.
    min_singular_value
        Lower bound of all `r` singular values.
    rank
        Where given, `r` is the least of it and the widths; else the least of the widths alone.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> factors = bw.initializers.balanced(scale=0.1)(jax.random.key(0), (4, 5, 3))
    >>> bool(abs(bw.imbalance(factors)[0]).max() < 1e-6)
    True
    """
    return _resplit(init, lambda widths: (widths[0], widths[-1]), scale, min_singular_value, rank)


def rebalanced(
    init: Initializer | None = None,
    *,
    scale: ArrayLike = 1.0,
    min_singular_value: ArrayLike = 0.0,
    rank: int | None = None,
) -> Initializer:
    """Even split of the product of random layers: as `init` draws the network, but balanced.

    What is split is no single draw, as in `balanced`, but a product of layers of the network's own
    widths. The singular values of Gaussian products spread exponentially with depth, and those at
    the rounding of the largest count as zeros. The rank is at most the bottleneck, so nothing is
    cut. The parameters are those of `balanced`; `scale` is a factor on the product.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> key, widths = jax.random.key(0), (4, 2, 3)
    >>> W = bw.end_to_end(bw.initializers.gaussian()(key, widths))
    >>> factors = bw.initializers.rebalanced()(key, widths)
    >>> bool(abs(bw.end_to_end(factors) - W).max() < 1e-6)
    True
    """
    return _resplit(init, lambda widths: widths, scale, min_singular_value, rank)


def low_rank(rank: int, *, scale: ArrayLike = 1.0) -> Initializer:
    """Even split of `W = scale (r p)^{-1/2} L R`, with `L` (`n x r`) and `R` (`r x p`) Gaussian.

    The entries of `L` and `R` are independent standard normals; those of `W` have variance
    `scale^2 / p` whatever the rank `r`, at most the bottleneck.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> factors = bw.initializers.low_rank(2)(jax.random.key(0), (5, 4, 6))
    >>> int(jax.numpy.linalg.matrix_rank(bw.end_to_end(factors)))
    2
    """
    rank = _checks.positive_int("rank", rank)

    def one_hidden_layer(widths: Widths) -> Widths:
        if rank > (r := min(widths)):
            raise ValueError(
                f"rank must be at most the bottleneck {r} of widths {widths}; got {rank}."
            )
        return widths[0], rank, widths[-1]

    # The variances 1/p and 1/r are those of a network with one hidden layer of r units.
    return _resplit(gaussian(), one_hidden_layer, scale, 0.0, rank)


def near_target(target: Target, *, radius: ArrayLike = 0.5, tau: ArrayLike = 0.0) -> Initializer:
    """Even split of `W = (Omega_k diag((lambda - tau)_+)^{1/2} + D) V^T`: the optimum, moved.

    With `r` the bottleneck and `k = min(r, target.rank)`: the `k` leading eigenpairs, followed by
    `r - k` zero columns; `D` (`n x r`) Gaussian of Frobenius norm `radius sqrt(lambda_k)`; `V`
    (`p x r`) uniform with orthonormal columns. Hence, for `S*` of rank at most `k` the minimiser
    of the loss smoothed by `tau`, and `L*` its loss,

        BW(W W^T, S*) <= radius sqrt(lambda_k),   sqrt(L_tau(W)) <= sqrt(L*) + radius sqrt(lambda_k)
        sigma_k(W) >= sqrt((lambda_k - tau)_+) - radius sqrt(lambda_k).

    At full rank and `tau <= lambda_n`, where `L* = 0`, the margin `sqrt(lambda_n) - sqrt(L_tau(W))`
    is at least `(1 - radius) sqrt(lambda_n)`. While the loss does not grow it is a lower bound of
    `sqrt(sigma_n^2 + tau)`, which keeps the rank where it is above `sqrt(tau)`.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> target = bw.Target(jax.numpy.diag(jax.numpy.array([4.0, 1.0])))
    >>> factors = bw.initializers.near_target(target, radius=0.5)(jax.random.key(0), (2, 2, 2))
    >>> bool(bw.smoothed_bures(bw.end_to_end(factors), target, tau=0.0) <= 0.25)
    True
    """
    _checks.instance("target", target, Target, "a bwflow.Target")
    radius, tau = magnitude("radius", radius), magnitude("tau", tau)

    def initialize(
        key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float
    ) -> Factors:
        widths, dtype = layout(key, widths, dtype)
        n, p, r = widths[-1], widths[0], min(widths)
        if n != target.dim:
            raise ValueError(
                f"widths must end with {target.dim}, the dimension of the target; got {widths}."
            )
        k = min(r, target.rank)
        lam = target.eigenvalues[:k]
        root = positive_power(lam - jnp.asarray(tau, lam.dtype), 0.5).astype(dtype)
        key_V, key_D = jax.random.split(key)
        V = jax.random.orthogonal(key_V, p, dtype=dtype, m=r)
        D = jax.random.normal(key_D, (n, r), dtype)
        D = (
            jnp.asarray(radius, dtype)
            * positive_power(lam[-1], 0.5).astype(dtype)
            / jnp.linalg.norm(D)
            * D
        )
        optimum = target.eigenvectors[:, :k].astype(dtype) * root[None, :]
        return split_evenly(end_to_end((V.T, D + jnp.pad(optimum, ((0, 0), (0, r - k))))), widths)

    return initialize


def split_evenly(W: ArrayLike, widths: Sequence[int]) -> Factors:
    """Balanced factors of an end-to-end matrix, as `balanced` makes them of a random one.

    One layer is `W` itself. If the rank of `W` is above the least of several widths, its best
    approximation of that rank is split instead. Singular values at the level of rounding count
    as zeros: their N-th roots would not be small.

    Raises
    ------
    ValueError
        If `W` is not a real floating matrix of shape `(d_N, d_0)`.

    Examples
    --------
    >>> import jax.numpy as jnp, bwflow as bw
    >>> factors = bw.initializers.split_evenly(jnp.array([[8.0]]), (1, 1, 1, 1))
    >>> [round(abs(float(W[0, 0])), 5) for W in factors]
    [2.0, 2.0, 2.0]
    """
    W = _checks.real_array("W", W, ndim=2)
    widths = _checks.widths("widths", widths)
    if W.shape != (widths[-1], widths[0]):
        raise ValueError(
            f"W must have shape {(widths[-1], widths[0])} for widths {widths}; got {W.shape}."
        )
    return (W,) if len(widths) == 2 else _split(W, 1.0, 0.0, min(widths), widths)


def _resplit(
    init: Initializer | None,
    through: Callable[[Widths], Widths],
    scale: ArrayLike,
    floor: ArrayLike,
    rank: int | None,
) -> Initializer:
    """Even split of what `init` draws as a network of the widths `through(widths)`."""
    inner = gaussian() if init is None else init
    _checks.function("init", inner, "key, widths and dtype")
    _checks.takes("init", inner, "key, widths and dtype", None, (), float)
    scale, floor = magnitude("scale", scale), magnitude("min_singular_value", floor)
    bound = None if rank is None else _checks.positive_int("rank", rank)

    def initialize(
        key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float
    ) -> Factors:
        widths, dtype = layout(key, widths, dtype)
        W = end_to_end(inner(key, through(widths), dtype))
        r = min(widths) if bound is None else min(bound, *widths)
        return _split(W, jnp.asarray(scale, dtype), jnp.asarray(floor, dtype), r, widths)

    return initialize


@partial(jax.jit, static_argnums=(3, 4))
@full_precision
def _split(W: Array, scale: ArrayLike, floor: ArrayLike, rank: int, widths: Widths) -> Factors:
    """Balanced factors of `scale W` cut to a rank, its singular values raised to `floor`."""
    U, s, Vt = jnp.linalg.svd(W, full_matrices=False)
    s = jnp.where(range_mask(s, max(W.shape)), s, 0.0)
    # Scaled only now, so that a derivative in the scale need not pass the decomposition.
    U, s, Vt = U[:, :rank], jnp.maximum(scale * s[:rank], floor), Vt[:rank]
    depth = len(widths) - 1
    if depth == 1:
        return (U * s[None, :] @ Vt,)
    a = positive_power(s, 1 / depth)
    first = jnp.pad(a[:, None] * Vt, ((0, widths[1] - rank), (0, 0)))
    last = jnp.pad(U * a[None, :], ((0, 0), (0, widths[-2] - rank)))
    middle = [
        jnp.pad(jnp.diag(a), ((0, rows - rank), (0, columns - rank)))
        for rows, columns in zip(widths[2:-1], widths[1:-2], strict=True)
    ]
    return (first, *middle, last)
