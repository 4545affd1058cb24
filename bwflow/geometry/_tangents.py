"""Tangent vectors: exponential and logarithm, metric, transport, derivatives on the manifold.

Tangent vectors at a matrix `A` are symmetric matrices `V`, and the metric is
`<U, V>_A = tr (S A R)` for `U = S A + A S`, `V = R A + A R`. At a `Factor` `F` with `k` columns
they are horizontal lifts, `n x k` matrices `Z` with `F^T Z` symmetric, which stand for
`V = F Z^T + Z F^T`; the metric is `tr Z^T Y`. Lifts belong to their factor: at `F Q` they are
`Z Q`.
"""

import diffrax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.geometry import _operands
from bwflow.geometry._deviation import aligned, deviation
from bwflow.geometry._operands import Covariance, Factor, Kind, Operand, as_root
from bwflow.geometry._roots import projection, root
from bwflow.linalg import after, positive_power, symmetric_sylvester, symmetrize


def log(A: Covariance, B: Covariance) -> Float[Array, "*batch n k"]:
    """The tangent vector at `A` of the geodesic that is at `B` at time 1.

    `T A + A T - 2 A` for the optimal map `T`; at a factor the lift `G P - F`, with `B = G G^T` and
    `P` the polar factor of `G^T F`: aligned by the orthogonal group, reflections included.

    Parameters
    ----------
    A, B
        Covariances, as for `bures_wasserstein`.

    Returns
    -------
    Array
        `n x n`, or `n x k` at a factor of `k` columns. Its norm is the distance, unless `B` has
        parts that no map from `A` reaches, as one of larger rank.

    Raises
    ------
    ValueError
        As `bures_wasserstein` does.

    References
    ----------
    Malago, Montrucchio, Pistone (2018), Wasserstein Riemannian geometry of Gaussian densities.
    Massart, Absil (2020), Quotient geometry with simple geodesics for the manifold of fixed-rank
    positive-semidefinite matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> A, B = jnp.eye(1), 9.0 * jnp.eye(1)
    >>> print(bw.geometry.log(A, B), bw.geometry.log(bw.geometry.Factor(A), B))
    [[4.]] [[2.]]
    """
    given = _operands.operands(A=A, B=B)
    return _operands.mapped(_log, given, [], space(given[0]))


def _log(kinds: tuple[Kind, ...], A: Array, B: Array) -> Array:
    if kinds[0] == "factor":
        G = as_root(B, kinds[1])
        return G @ aligned(A, G) - A
    if kinds[1] == "factor":
        B = B @ B.T
    XA = deviation(A, B) @ A
    return XA + XA.T


def exp(A: Covariance, V: ArrayLike) -> Float[Array, "*batch n n"] | Factor:
    """The point at time 1 of the geodesic that leaves `A` with velocity `V`.

    `(I + S) A (I + S)` with `S A + A S = V`; at a factor `F`, `F + Z`.

    Parameters
    ----------
    A
        Covariance.
    V
        Tangent vector at `A`: `n x n`, or the lift `n x k` at a factor.

    Returns
    -------
    Array or Factor
        A covariance; at a factor a `Factor` of as many columns.

    Raises
    ------
    ValueError
        If `A` is no covariance, or if `V` is no real finite matrix of the shape of a tangent.

    Notes
    -----
    It is the inverse of `log` while `I + S` is positive semi-definite, within
    `injectivity_radius(A)` at least; beyond, the curve is no longer a shortest one.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.exp(jnp.eye(1), jnp.array([[4.0]])))
    [[9.]]
    """
    given = [_operands.operand("A", A)]
    found = _operands.mapped(_exp, given, vectors(given, V=V), space(given[0]))
    return Factor(found) if given[0].kind == "factor" else found


def _exp(kinds: tuple[Kind, ...], A: Array, V: Array) -> Array:
    if kinds[0] == "factor":
        return A + V
    S = symmetric_sylvester(A, symmetrize(V))
    SA = S @ A
    return A + SA + SA.T + SA @ S


def inner_product(A: Covariance, U: ArrayLike, V: ArrayLike) -> Float[Array, "*batch"]:
    """The metric at `A`: `tr (S V) / 2` with `S A + A S = U`; of lifts `tr (U^T V)`.

    Parameters
    ----------
    A
        Covariance.
    U, V
        Tangent vectors at `A`.

    Returns
    -------
    Array
        Their inner product, in units of the covariance.

    Raises
    ------
    ValueError
        As `exp` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.inner_product(jnp.eye(2), 2.0 * jnp.eye(2), 2.0 * jnp.eye(2)))
    2.0
    """
    given = [_operands.operand("A", A)]
    return _operands.mapped(_inner, given, vectors(given, U=U, V=V), "()")


def _inner(kinds: tuple[Kind, ...], A: Array, U: Array, V: Array) -> Array:
    if kinds[0] == "factor":
        return jnp.vdot(U, V)
    return jnp.vdot(symmetric_sylvester(A, symmetrize(U)), symmetrize(V)) / 2


def norm(A: Covariance, V: ArrayLike) -> Float[Array, "*batch"]:
    """Length of a tangent vector, `<V, V>_A^{1/2}`; its derivative at 0 is 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> A, B = jnp.eye(2), 4.0 * jnp.eye(2)
    >>> print(f"{bw.geometry.norm(A, bw.geometry.log(A, B)):.4f}")
    1.4142
    """
    given = [_operands.operand("A", A)]
    (vector,) = vectors(given, V=V)
    return positive_power(_operands.mapped(_inner, given, [vector, vector], "()"), 0.5)


def tangent_projection(A: Covariance, V: ArrayLike) -> Float[Array, "*batch n k"]:
    """The tangent vector nearest to any matrix.

    At a matrix: its symmetric part, without what lies between vectors outside of the range of `A`,
    which a curve of constant rank cannot have. At a factor: the horizontal part
    `Z - F W` with `W` skew, `F^T F W + W F^T F = F^T Z - Z^T F`.

    Parameters
    ----------
    A
        Covariance.
    V
        Matrix of the shape of a tangent vector.

    Returns
    -------
    Array
        The projection; in the Frobenius norm at a matrix, in the metric at a factor.

    Raises
    ------
    ValueError
        As `exp` does.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.tangent_projection(jnp.diag(jnp.array([1.0, 0.0])), jnp.ones((2, 2))))
    [[1. 1.]
     [1. 0.]]
    """
    given = [_operands.operand("A", A)]
    return _operands.mapped(project, given, vectors(given, V=V), space(given[0]))


def project(kinds: tuple[Kind, ...], A: Array, V: Array) -> Array:
    if kinds[0] == "factor":
        return V - A @ _vertical(A, A.T @ V)
    V, R = symmetrize(V), projection(A)
    RV = R @ V
    return RV + RV.T - RV @ R


def _vertical(F: Array, C: Array) -> Array:
    """The skew `W` with `F^T F W + W F^T F = C - C^T`."""
    return symmetric_sylvester(F.T @ F, C - C.T)


def injectivity_radius(A: Covariance) -> Float[Array, "*batch"]:
    """Up to which distance from `A` geodesics are shortest, and `log` inverts `exp`.

    The root of the least eigenvalue; at a factor that of the least one of `F^T F`, among
    covariances of rank `k`.

    Parameters
    ----------
    A
        Covariance.

    Returns
    -------
    Array
        A length; 0 where `A`, or `F`, is of lower rank.

    Raises
    ------
    ValueError
        If `A` is no covariance.

    Notes
    -----
    Derivatives are those of a least eigenvalue: not defined where that is repeated.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> print(bw.geometry.injectivity_radius(jnp.diag(jnp.array([4.0, 9.0]))))
    2.0
    """
    return _operands.mapped(_radius, [_operands.operand("A", A)], [], "()")


def _radius(kinds: tuple[Kind, ...], A: Array) -> Array:
    L = root(A) if kinds[0] == "matrix" else A
    if L.shape[1] > L.shape[0]:
        return jnp.zeros((), A.dtype)
    U, _, Vt = jnp.linalg.svd(lax.stop_gradient(L), full_matrices=False)
    return jnp.maximum(U[:, -1] @ (L @ Vt[-1]), 0)


def parallel_transport(
    A: Covariance, B: Covariance, V: ArrayLike, *, num_steps: int = 64
) -> Float[Array, "*batch n k"]:
    """A tangent vector at `A` moved to `B` along the geodesic between them.

    Of lifts it is the solution of `Z' = F W` along `F(t) = (1 - t) F + t G P`, with the skew `W`
    that solves `F^T F W + W F^T F = Z^T F' - F'^T Z` and keeps `Z` horizontal.

    Parameters
    ----------
    A, B
        Covariances; the geodesic must be one of constant rank.
    V
        Tangent vector at `A`.
    num_steps
        Steps of Dormand and Prince's method of order 8. Lengths and angles do not change, so their
        drift, as that of `norm`, tells the error.

    Returns
    -------
    Array
        The tangent vector at `B`; the lift at `G P`, which for a `Factor` `A` is
        `A.factor + log(A, B)`.

    Raises
    ------
    ValueError
        As `exp` does; if `num_steps` is not a positive integer.

    Notes
    -----
    Cost: 12 eigendecompositions of size `k` a step. The error falls as the eighth power of the
    number of steps; many are needed if the geodesic comes close to lower rank, where `W` is large.

    References
    ----------
    Thanwerdas, Pennec (2023), O(n)-invariant Riemannian metrics on SPD matrices.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> A, B = jnp.eye(1), 4.0 * jnp.eye(1)
    >>> print(bw.geometry.parallel_transport(A, B, jnp.ones((1, 1))).round(4))
    [[2.]]
    """
    given = _operands.operands(A=A, B=B)
    num_steps = _checks.positive_int("num_steps", num_steps)
    return _operands.mapped(
        _transported, given, vectors(given, V=V), space(given[0]), num_steps=num_steps
    )


def _transported(kinds: tuple[Kind, ...], A: Array, B: Array, V: Array, *, num_steps: int) -> Array:
    F = A if kinds[0] == "factor" else root(A)
    G = as_root(after(B, F), kinds[1])
    Z = V if kinds[0] == "factor" else symmetric_sylvester(after(A, G), symmetrize(V)) @ F
    velocity = G @ aligned(F, after(G, Z)) - F

    def rate(t, Z, _):
        now = F + t * velocity
        return now @ _vertical(now, Z.T @ velocity)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        diffrax.Dopri8(),
        t0=jnp.zeros((), F.dtype),
        t1=jnp.ones((), F.dtype),
        dt0=jnp.asarray(1 / num_steps, F.dtype),
        y0=Z,
        max_steps=num_steps,
        stepsize_controller=diffrax.ConstantStepSize(),
        adjoint=diffrax.DirectAdjoint(),
    )
    assert solution.ys is not None
    Z = solution.ys[-1]
    if kinds[0] == "factor":
        return Z
    ZF = Z @ (F + velocity).T
    return ZF + ZF.T


def space(of: Operand) -> str:
    """Dimensions of the tangent vectors at a covariance."""
    return "(n,n)" if of.kind == "matrix" else "(n,k)"


def vectors(given: list[Operand], **vectors: ArrayLike) -> list[tuple[Array, str]]:
    """Tangent vectors at the first of the covariances."""
    of = given[0]
    return shaped(given, of.array.shape[-2:], space(of), vectors)


def shaped(
    given: list[Operand], shape: tuple[int, ...], core: str, arrays: dict[str, ArrayLike]
) -> list[tuple[Array, str]]:
    found = {name: _operands.batch(name, x, 2) for name, x in arrays.items()}
    for name, x in found.items():
        if x.shape[-2:] != shape:
            raise ValueError(
                f"{name} must be {shape[0]} x {shape[1]} for such a {given[0].name}; "
                f"got shape {x.shape}."
            )
    shapes = {x.name: x.array.shape[:-2] for x in given}
    _operands.broadcast(shapes | {name: x.shape[:-2] for name, x in found.items()})
    return [(x.astype(given[0].array.dtype), core) for x in found.values()]
