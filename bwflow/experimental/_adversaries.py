"""Problems that an adversary has added measurements to."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from bwflow import _checks, losses, operators
from bwflow.linalg import after, full_precision
from bwflow.losses._measured import measured
from bwflow.problems import Problem, drawn_truth


@full_precision
def sensing_problem(
    key: PRNGKeyArray,
    n: int,
    *,
    rank: int,
    num_random: int,
    condition: ArrayLike = 1.25,
    copies: int = 10,
) -> Problem:
    """`Sensing` by random matrices and by others of an adversary, all of whose values are right.

    To `num_random` symmetric Gaussian matrices, with `sum_i <A_i, E>^2` about `||E||^2`, it adds
    for orthonormal `v_j` orthogonal to the eigenvectors `z_j` of the truth
    `5^{1/2} (z_j z_j^T + 5/2 v_j v_j^T)` and `20^{1/2} (z_j v_k^T + v_k z_j^T)`, each in `copies`
    slightly different ones. The former make a matrix with the `v_j` for eigenvectors look right;
    the latter make it costly to turn these towards the `z_j`. So `1/2 ||A(U U^T) - y||^2`, for `U`
    of `rank` columns and no more, has a bad local minimum there, and a spectral start leads to it
    if `condition` is below 2.

    The order is random.

    References
    ----------
    Gao and Cheng (2023), Robust matrix sensing in the semi-random model, for the model; the
    adversary is bwflow's.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, W = bw.experimental.semirandom.sensing_problem(
    ...     jax.random.key(0), 8, rank=1, num_random=50)
    >>> loss.y.size, W.shape, bool(loss(W) < 1e-10)
    (70, (8, 1), True)
    """
    n, r = _checks.positive_int("n", n), _checks.positive_int("rank", rank)
    if 2 * r > n:
        raise ValueError(f"rank must be at most n / 2 = {n // 2}; got {r}.")
    m = _checks.positive_int("num_random", num_random)
    copies = _checks.positive_int("copies", copies)
    drawn: Any = drawn_truth(key, n, r, condition)
    (one, two), W = drawn
    turned, noise, order = jax.random.split(two, 3)
    # Columns of the truth are orthogonal.
    Z = W / jnp.linalg.norm(W, axis=0)[None, :]
    V = jax.random.normal(turned, (n, r), W.dtype)
    V = jnp.linalg.qr(after(V - Z @ (Z.T @ V), W))[0]
    G = jax.random.normal(one, (m, n, n), W.dtype) / m**0.5
    fooling = 5**0.5 * (_squares(Z) + 2.5 * _squares(V))
    costly = 20**0.5 * jnp.einsum("ij,kl->jlik", Z, V).reshape(r * r, n, n)
    added = jnp.repeat(jnp.concatenate([fooling, costly + jnp.swapaxes(costly, 1, 2)]), copies, 0)
    added = added / copies**0.5
    jitter = jax.random.normal(noise, added.shape, W.dtype)
    sizes = jnp.linalg.norm(added, axis=(1, 2), keepdims=True)
    added += 0.03 * jitter * sizes / jnp.linalg.norm(jitter, axis=(1, 2), keepdims=True)
    A = jnp.concatenate([G, added])
    A = (A + jnp.swapaxes(A, 1, 2)) / 2
    A = operators.Dense(A[jax.random.permutation(order, A.shape[0])])
    return Problem(losses.Sensing(A, measured(A, W)), W)


@full_precision
def completion_problem(
    key: PRNGKeyArray, n: int, *, rate: ArrayLike = 0.2, strength: ArrayLike = 0.8
) -> Problem:
    """`Completion` from a uniform sample of entries and two blocks that an adversary has added.

    The truth has rank two, with rows `e_i (1, s)` and `e_i (1, -s)` in turn, `e_i` random signs and
    `s` the strength. Of `W* W*^T` a symmetric sample is observed, every entry with probability
    `rate`, and both blocks on the diagonal, those of the first and of the last half of the rows,
    are revealed as a whole. No block sees a reflection of its own rows: where those of one block
    are reflected, `(x, -y)` for `(x, y)`, only the sample pulls them back, and at low rates that
    point is near a bad local minimum.

    Raises
    ------
    ValueError
        If `n` is no integer of at least 4, or the rate or the strength not in `[0, 1]`.

    References
    ----------
    Cheng and Ge (2018), arXiv 1803.10846, for the model; the adversary is bwflow's.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> loss, W = bw.experimental.semirandom.completion_problem(jax.random.key(0), 40)
    >>> W.shape, float(loss(W)), bool(loss.observed > 0.55)
    ((40, 2), 0.0, True)
    """
    _checks.random_key("key", key)
    n = _checks.integer("n", n, minimum=4)
    dtype = jnp.result_type(float)
    share = _checks.scalar("rate", rate, float, minimum=0.0, maximum=1.0)
    s = jnp.asarray(_checks.scalar("strength", strength, dtype, minimum=0.0, maximum=1.0))
    signs, sample = jax.random.split(key)
    turns = jnp.where(jnp.arange(n) % 2 == 0, s, -s)
    W = jax.random.rademacher(signs, (n, 1), dtype) * jnp.stack([jnp.ones(n, dtype), turns], axis=1)
    upper = jnp.triu(jax.random.bernoulli(sample, share, (n, n)))
    first = jnp.arange(n) < n // 2
    rows, columns = jnp.nonzero(upper | upper.T | (first[:, None] == first[None, :]))
    y = measured(operators.Entries(rows, columns, (n, n)), W)
    return Problem(losses.Completion(rows, columns, y, (n, n)), W)


def _squares(Z: Array) -> Array:
    """`z_j z_j^T` of the columns."""
    return Z.T[:, :, None] * Z.T[:, None, :]
