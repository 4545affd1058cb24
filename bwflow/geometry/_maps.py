"""Optimal maps and couplings of two covariances, and the geodesic between them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.geometry import _operands
from bwflow.geometry._deviation import aligned, mapping
from bwflow.geometry._operands import Covariance, Factor, Kind, Operand, as_roots
from bwflow.geometry._roots import pseudo_inverse
from bwflow.linalg import after


def transport_map(A: Covariance, B: Covariance) -> Float[Array, "*batch n n"]:
    """The optimal map `T` from a Gaussian of covariance `A` to one of covariance `B`.

    The symmetric positive semi-definite matrix with `T A T = B`,
    `T = A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2}`.

    Parameters
    ----------
    A, B
        Covariances, as for `bures_wasserstein`.

    Returns
    -------
    Array
        `T`, `n x n`. Where `A` is singular it is known on the range of `A` only: of the symmetric
        matrices with that action the one that is 0 between vectors outside of the range. It takes
        `A` to `B` if the range of `A` has enough of that of `B`; otherwise no map does, and `T A T`
        is the part of `B` that one reaches.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does.

    Notes
    -----
    Cost: that of `bures_wasserstein` and a triangular inverse. The gradient of `bures_wasserstein`
    in `A` is `I - T`. Between matrices that nearly coincide `T - I` has full relative accuracy, and
    so have derivatives; at conditions beyond 1e7 it is refined, with a residual in twice the
    precision, to some `eps` at 1e8 and 1e-10 at 1e12. For factors, `transport` moves points without
    a matrix of size `n x n`.

    References
    ----------
    Olkin, Pukelsheim (1982), The distance between two random vectors with given dispersion
    matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> A, B = jnp.diag(jnp.array([1.0, 4.0])), jnp.diag(jnp.array([9.0, 1.0]))
    >>> print(bw.geometry.transport_map(A, B).round(4))
    [[3.  0. ]
     [0.  0.5]]
    """
    return _operands.mapped(_map, _operands.operands(A=A, B=B), [], "(n,n)")


def _map(kinds: tuple[Kind, ...], A: Array, B: Array) -> Array:
    if kinds == ("matrix", "matrix"):
        return mapping(A, B)
    F, G = as_roots(kinds, A, B)
    K = pseudo_inverse(F)
    P = aligned(after(F, K), G)
    onto = (G @ P) @ K
    return onto + onto.T - (onto.T @ F) @ K


def transport(A: Covariance, B: Covariance, points: ArrayLike) -> Float[Array, "*batch N n"]:
    """Points moved by the optimal map, `T x` for each row `x`, without the matrix `T`.

    Parameters
    ----------
    A, B
        Covariances, as for `bures_wasserstein`.
    points
        `N x n` or batches of such: centred samples of covariance `A`, in rows.

    Returns
    -------
    Array
        As many points. What is orthogonal to the range of `A` is moved as `transport_map` says.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does; if points are not rows of `n` real finite numbers.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.transport(jnp.eye(2), 4.0 * jnp.eye(2), jnp.ones((1, 2))).round(4))
    [[2. 2.]]
    """
    given = _operands.operands(A=A, B=B)
    moved = _operands.batch("points", points, 2)
    if moved.shape[-1] != given[0].dim:
        raise ValueError(
            f"points must have {given[0].dim} columns, as A has; got shape {moved.shape}."
        )
    shapes = {x.name: x.array.shape[:-2] for x in given} | {"points": moved.shape[:-2]}
    _operands.broadcast(shapes)
    extra = [(moved.astype(given[0].array.dtype), "(N,n)")]
    return _operands.mapped(_moved, given, extra, "(N,n)")


def _moved(kinds: tuple[Kind, ...], A: Array, B: Array, X: Array) -> Array:
    if kinds == ("matrix", "matrix"):
        return X @ _map(kinds, A, B)
    F, G = as_roots(kinds, A, B)
    K = pseudo_inverse(F)
    P = aligned(after(F, K), G)
    inside = X @ K.T
    across = (X @ G) @ P
    return inside @ (G @ P).T + (across - (inside @ (F.T @ G)) @ P) @ K


def optimal_coupling(A: Covariance, B: Covariance) -> Float[Array, "*batch m m"] | Factor:
    """Joint covariance `[[A, A T], [T A, B]]` of the optimal coupling, `m = 2 n`.

    Parameters
    ----------
    A, B
        Covariances, as for `bures_wasserstein`.

    Returns
    -------
    Array or Factor
        The joint covariance; where both come as factors, with `k` and `l` columns, a `Factor` of
        `k + l`. Where several couplings are optimal, as of matrices with orthogonal parts, it is
        the one in which those are independent.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.optimal_coupling(jnp.eye(1), 4.0 * jnp.eye(1)).round(4))
    [[1. 2.]
     [2. 4.]]
    """
    return _joined(_operands.operands(A=A, B=B), _coupled)


def _coupled(kinds: tuple[Kind, ...], A: Array, B: Array) -> Array:
    F, G = as_roots(kinds, A, B)
    P = aligned(F, G)
    moved = G @ P
    return jnp.block([[F, jnp.zeros_like(G)], [moved, G - moved @ P.T]])


def geodesic(A: Covariance, B: Covariance, t: ArrayLike) -> Float[Array, "*batch n n"] | Factor:
    """The point at `t` of the geodesic from `A` to `B`: the law of `(1 - t) x + t y`.

    `((1 - t) I + t T) A ((1 - t) I + t T)` for the optimal map `T`; for `x` and `y` coupled
    optimally in general, so that ranks may differ.

    Parameters
    ----------
    A, B
        Covariances, as for `bures_wasserstein`.
    t
        Numbers between 0 and 1, broadcast with the batches: for a list of times along one
        geodesic give `t` of shape `(num_times,)`.

    Returns
    -------
    Array or Factor
        The covariance at `t`; where both come as factors, with `k` and `l` columns, a `Factor` of
        `k + l`, of which the last `l` carry what no map from `A` reaches, often zeros.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does; if `t` is not between 0 and 1.

    Notes
    -----
    Beyond `[0, 1]` the curve may cease to be a geodesic; `exp(A, t * log(A, B))` follows it.

    References
    ----------
    McCann (1997), A convexity principle for interacting gases.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> times = jnp.array([0.0, 0.5, 1.0])
    >>> print(bw.geometry.geodesic(jnp.eye(1), 9.0 * jnp.eye(1), times).ravel())
    [1. 4. 9.]
    """
    given = _operands.operands(A=A, B=B)
    times = _operands.number("t", t, given, minimum=0.0, maximum=1.0)
    return _joined(given, _between, [(times, "()")])


def interpolate(
    covariances: Covariance, times: ArrayLike, t: ArrayLike
) -> Float[Array, "*batch n n"] | Factor:
    """Covariances at given times, joined by geodesics and asked for at others.

    Parameters
    ----------
    covariances
        A list of `N`, `N x n x n` or a `Factor` of `N x n x k`.
    times
        Their times, `N` increasing numbers.
    t
        Times to interpolate at, between the first and the last.

    Returns
    -------
    Array or Factor
        As `geodesic` does, for each `t`.

    Raises
    ------
    ValueError
        As `geodesic` does; if `times` are not `N`, two or more, increasing numbers, or `t` is
        outside of them.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> variances = jnp.array([1.0, 9.0, 1.0])[:, None, None]
    >>> print(bw.geometry.interpolate(variances, jnp.arange(3.0), jnp.array([0.5, 2.0])).ravel())
    [4. 1.]
    """
    given = _operands.operand("covariances", covariances)
    dtype = given.array.dtype
    knots = jnp.asarray(_checks.numbers("times", times, dtype, ndim=1, increasing=True))
    if given.array.ndim != 3 or len(knots) != len(given.array) or len(knots) < 2:
        raise ValueError(
            "covariances and times must be two or more of each, as many of one as of the other; "
            f"got shapes {given.array.shape} and {knots.shape}."
        )
    bounds: dict[str, Any] = {}
    if _checks.is_concrete(knots):
        bounds = {"minimum": float(knots[0]), "maximum": float(knots[-1])}
    asked = jnp.asarray(_checks.numbers("t", t, dtype, **bounds))
    before = jnp.clip(jnp.searchsorted(knots, asked, side="right") - 1, 0, len(knots) - 2)
    share = (asked - knots[before]) / (knots[before + 1] - knots[before])
    ends = (
        _operands.Operand(name, given.array[i], given.kind)
        for name, i in (("before", before), ("after", before + 1))
    )
    return _joined([*ends], _between, [(share, "()")])


def _between(kinds: tuple[Kind, ...], A: Array, B: Array, t: Array) -> Array:
    F, G = as_roots(kinds, A, B)
    P = aligned(F, G)
    moved = G @ P
    return jnp.concatenate([(1 - t) * F + t * moved, t * (G - moved @ P.T)], axis=1)


def _joined(
    given: list[Operand], kernel: Callable[..., Array], extra: Sequence[tuple[Array, str]] = ()
) -> Array | Factor:
    """What a kernel of factors gives: a factor, or its covariance where a matrix came."""
    extra = list(extra)
    if all(x.kind == "factor" for x in given):
        return Factor(_operands.mapped(kernel, given, extra, "(m,r)"))
    return cast(Array, _operands.mapped(_squares, given, extra, "(m,m)", factor=kernel))


def _squares(kinds: tuple[Kind, ...], *arrays: Array, factor: Callable[..., Array]) -> Array:
    F = factor(kinds, *arrays)
    return F @ F.T
