"""Exact solutions of the gradient flow, to hold numerical solvers against.

The flow is `dW_j/dt = -grad_j` with plain gradients, without a factor 1/2. Each solution is a
closed form or one bisection on a quadrature that is exact to rounding, and shares no code with
the losses. Loops have a fixed number of steps, so everything may be jitted and vmapped, but do
not differentiate through the bisections. Where it can be seen, a negative time, eigenvalue or
smoothing, an array that is not finite, a covariance that is none or a shape that does not fit is a
`ValueError`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.linalg import full_precision

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2  # on [0, 1]
_STEPS = 64  # halvings of a bracket, pieces of a time


def linear_flow(W0: ArrayLike, B: ArrayLike, time: ArrayLike) -> Float[Array, "n p"]:
    """End-to-end matrix of the unsmoothed flow of one layer, `W(t) = B P + e^{-2t} (W0 - B P)`.

    `P`, the polar factor of `B^T W0`, is also that of `B^T W(t)`: the gradient `2 (W - B P)` is
    linear along the path, a geodesic from `W0 W0^T` to `B B^T`, and the loss decays as `e^{-4t}`.

    Parameters
    ----------
    W0, B, time
        Start, `n x p`; factor of the target `B B^T`, `n x m`, `rank(B^T W0) = m <= p`; a scalar.

    Notes
    -----
    Cost: one SVD of an `m x p` matrix. The error is a rounding times the condition number of
    `B^T W0`; where the rank is below `m` the flow has a kink and the formula does not hold.

    References
    ----------
    Derived for the loss of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import theory
    >>> print(theory.linear_flow(3 * jnp.eye(2), jnp.eye(2), jnp.log(2.0) / 2).round(3))
    [[2. 0.]
     [0. 2.]]
    """
    W0 = _checks.real_array("W0", W0, ndim=2)
    B = _checks.real_array("B", B, ndim=2)
    if B.shape[0] != W0.shape[0] or B.shape[1] > W0.shape[1]:
        raise ValueError(f"B must be n x m for W0 n x p, p >= m; got {B.shape} and {W0.shape}.")
    time = _checks.scalar("time", time, W0.dtype, minimum=0.0)
    return _linear(W0, B.astype(W0.dtype), time)


@jax.jit
@full_precision
def _linear(W0: Float[Array, "n p"], B: Float[Array, "n m"], time: Scalar) -> Float[Array, "n p"]:
    U, _, Vt = jnp.linalg.svd(B.T @ W0, full_matrices=False)
    limit = B @ (U @ Vt)
    return limit + jnp.exp(-2 * time) * (W0 - limit)


def rank_one_flow(w0: ArrayLike, covariance: ArrayLike, time: ArrayLike) -> Float[Array, "n ..."]:
    """Unsmoothed flow of a single column, `w(t) = e^{-2t} e^{2 Sigma x} w0`, in the shape of `w0`.

    The scalar `x(t)` solves `e^{2t} = 1 + 2 int_0^x (w0^T Sigma e^{4 Sigma y} w0)^{1/2} dy`.

    Parameters
    ----------
    w0, covariance, time
        Start, a vector of length `n` or an `n x 1` matrix; target `Sigma`, `n x n`; a scalar.

    Notes
    -----
    Cost: one eigendecomposition and 64 quadratures of 768 nodes in `n` exponentials. Exact to a
    few roundings of `t`, for eigenvalues of any spread. A start with `Sigma w0 = 0` sits on a
    kink and decays as `e^{-2t} w0`, the flow of the subgradient of lowest rank.

    References
    ----------
    Derived for the loss of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import theory
    >>> print(theory.rank_one_flow(jnp.ones(2), jnp.diag(jnp.array([4.0, 1.0])), 9.0).round(3))
    [2. 0.]
    """
    start = _checks.real_array("w0", w0)
    if start.shape not in ((start.size,), (start.size, 1)):
        raise ValueError(f"w0 must be a vector or one column; got shape {start.shape}.")
    Sigma = _covariance(covariance, start.size)
    t = _checks.scalar("time", time, start.dtype, minimum=0.0)
    return _rank_one(start.reshape(-1), Sigma.astype(start.dtype), t).reshape(start.shape)


@jax.jit
@full_precision
def _rank_one(w0: Float[Array, " n"], Sigma: Float[Array, "n n"], time: Scalar) -> Array:
    lam, Q = jnp.linalg.eigh(Sigma)
    lam, coordinates = jnp.maximum(lam, 0), Q.T @ w0
    mass = lam * coordinates**2
    seen = jnp.any(mass > 0)
    top = jnp.where(seen, jnp.max(jnp.where(mass > 0, lam, 0)), 1)
    mass = jnp.where(seen, mass, 1)
    # The unknown is y = 2 lam_1 x - 2 t: of large numbers differences alone keep their digits.
    goal = jnp.log(-jnp.expm1(-2 * time))  # log(e^{2t} - 1) - 2 t

    def x_of(y):
        return jnp.maximum(y + 2 * time, 0) / (2 * top)

    def excess(y):
        x = x_of(y)
        exponents = jnp.log(mass) - 4 * (top - lam) * x
        history = _graded_integral(jax.nn.softmax(exponents), lam, x, top)
        return jnp.log(2.0) + jax.nn.logsumexp(exponents) / 2 + jnp.log(history) + y - goal

    # The logarithm of the integrand is convex, and its slope is at most 2 lam_1: hence both bounds.
    rates = jnp.stack([top, jnp.where(seen, mass @ lam / jnp.sum(mass), 1)])
    size = jax.nn.softplus(jnp.log(rates) - jnp.log(jnp.sum(mass)) / 2 + 2 * time + goal)
    bounds = top * size / rates - 2 * time
    rounding = 8 * jnp.finfo(time.dtype).eps * (2 * time + top * size / rates)
    y = crossing(excess, bounds[0] - rounding[0], bounds[1] + rounding[1])
    growth = jnp.where(seen, y - 2 * (top - lam) * x_of(y), -2 * time)
    return Q @ jnp.where(coordinates == 0, 0, jnp.exp(growth) * coordinates)


def _graded_integral(weights: Array, lam: Array, x: Scalar, top: Scalar) -> Scalar:
    """`int_0^x (sum_i weights_i e^{-4 lam_i d})^{1/2} dd`, for any spread of the `lam`."""
    # A branch point that still matters at d is further than a fraction of d from the real line.
    edges = np.concatenate([[0.0], 1.5 ** np.arange(47), [np.inf]])
    edges = jnp.minimum(jnp.asarray(edges, x.dtype) / top, x)
    widths = jnp.diff(edges)
    d = edges[:-1, None] + widths[:, None] * jnp.asarray(_NODES, x.dtype)[None, :]
    terms = weights[None, None, :] * jnp.exp(-4 * lam[None, None, :] * d[:, :, None])
    return widths @ (jnp.sqrt(jnp.sum(terms, axis=-1)) @ jnp.asarray(_WEIGHTS, x.dtype))


def crossing(increasing: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where an increasing function changes sign between `low` and `high`."""

    def halve(_, bracket):
        low, high = bracket
        middle = low + (high - low) / 2
        above = increasing(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    return lax.fori_loop(0, _STEPS, halve, (low, high))[0]


def aligned_flow(
    singular_values: ArrayLike,
    eigenvalues: ArrayLike,
    time: ArrayLike,
    *,
    depth: int,
    tau: ArrayLike = 0.0,
) -> Float[Array, "..."]:
    """Singular values of an aligned balanced flow, `s' = -2N s^{3-2/N} (1 - b / (s^2+tau)^{1/2})`.

    Balanced layers with product `Omega diag(s) V^T`, `Omega` the eigenvectors of the target, keep
    that form, and each `s_i` moves alone, towards `(lambda_i - tau)_+^{1/2}`; `b = lambda^{1/2}`.
    At `tau = 0`, `s = b + (s0 - b) e^{-2t}` for `N = 1`, `s = b / (1 + (b/s0 - 1) e^{-4bt})` for 2.

    Parameters
    ----------
    singular_values, eigenvalues, time, tau
        `s(0)`, `lambda`, `t` and the smoothing, not negative, of shapes that broadcast.
    depth
        Number of layers `N`, static.

    Notes
    -----
    Cost: 2000 evaluations of the velocity per element, whatever the arguments. Exact to a few
    roundings of `t`, relative to `s`; values that die out are followed down by a factor `e^{-128}`
    (`e^{-64}` in float32). `s(0) = 0` stays, although `tau = 0`, `N = 1` has a kink there.

    References
    ----------
    Derived for the loss of arXiv 2303.03027.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import theory
    >>> print(theory.aligned_flow(jnp.array([0.1, 2.0]), 1.0, 90.0, depth=2, tau=0.75).round(3))
    [0.5 0.5]
    """
    depth = _checks.positive_int("depth", depth)
    given = {"singular_values": singular_values, "eigenvalues": eigenvalues}
    return _aligned(depth, *_elementwise(given | {"time": time, "tau": tau}))


@partial(jax.jit, static_argnums=0)
@partial(jnp.vectorize, excluded=(0,))
def _aligned(depth: int, start: Scalar, lam: Scalar, time: Scalar, tau: Scalar) -> Scalar:
    """March in a coordinate `z` that is unbounded at the rest point and, from below it, at zero.

    `z = -log(s - rest)` from above, the logit of `s / rest` from below. In it `dt/dz` is analytic
    in a strip of half-width `pi/2` whatever the parameters, so panels of width 2 are exact.
    """
    root, smoothing = jnp.sqrt(lam), jnp.sqrt(tau)
    rest, surplus = jnp.sqrt(jnp.maximum(lam - tau, 0)), jnp.maximum(tau - lam, 0)
    s0 = jnp.where(start > 0, start, 1)
    below, scale = s0 < rest, jnp.maximum(rest, s0)

    def position(z):
        shrink = jnp.exp(-z)
        from_below = rest * s0 / jnp.where(below, s0 + (rest - s0) * shrink, 1)
        return jnp.where(below, from_below, rest + (s0 - rest) * shrink)

    def elapsed(z, width):
        s = position(z + width * jnp.asarray(_NODES, s0.dtype))
        pace = (jnp.hypot(s, smoothing) + root) / (s + rest + surplus / s)
        pace *= jnp.hypot(1.0, smoothing / s) * jnp.where(below, s / scale, 1)
        pace *= s ** (2 / depth - 2) / (2 * depth)
        return width * jnp.sum(pace * jnp.asarray(_WEIGHTS, s0.dtype))

    def advance(_, state):
        z, left = state
        cost = elapsed(z, 2.0)
        whole = left > cost
        return jnp.where(whole, z + 2, z), jnp.where(whole, left - cost, left)

    panels = 64 if s0.dtype == jnp.float64 else 32
    z, left = lax.fori_loop(0, panels, advance, (jnp.zeros_like(s0), time))
    rise = crossing(
        lambda width: elapsed(z, width) - left, jnp.zeros_like(s0), jnp.full_like(s0, 2)
    )
    return jnp.where(start > 0, position(z + rise), 0)


def scalar_unbalanced_flow(
    w1: ArrayLike, w2: ArrayLike, eigenvalue: ArrayLike, time: ArrayLike
) -> Float[Array, "..."]:
    """Product `s = w2 w1` of two scalar layers without smoothing, `s' = -2 (s-b) (4s^2+d^2)^{1/2}`.

    `d = w2^2 - w1^2` is conserved and `b^2` is the eigenvalue. With `R = (4b^2 + d^2)^{1/2}`, the
    variable `q = (w1 + w2)^2` is a logistic curve between `2b - R` and `2b + R`, at rate `2R`.

    Parameters
    ----------
    w1, w2, eigenvalue, time
        Layers at the start, target and time, of shapes that broadcast; the last two not negative.

    Notes
    -----
    Constant cost; the error is a rounding of `max(abs(s), b)`. `d = 0` and `b = 0` are regular.
    The sign of `s` is conserved, and a start with `w1 w2 = 0`, on a kink, stays.

    References
    ----------
    Derived for the loss of arXiv 2303.03027.

    Examples
    --------
    >>> from bwflow import theory
    >>> print(theory.scalar_unbalanced_flow(0.5, 1.25, 2.25, 0.5).round(3))
    1.44
    """
    given = {"w1": w1, "w2": w2, "eigenvalue": eigenvalue, "time": time}
    return _scalar_unbalanced(*_elementwise(given, signed=("w1", "w2")))


@jax.jit
@jnp.vectorize
def _scalar_unbalanced(w1: Scalar, w2: Scalar, lam: Scalar, time: Scalar) -> Scalar:
    sign, s0 = jnp.sign(w1) * jnp.sign(w2), jnp.abs(w1 * w2)
    moves = s0 > 0
    b, d = jnp.sqrt(lam), jnp.abs(w2 - w1) * jnp.abs(w2 + w1)
    R, weight0 = jnp.hypot(2 * b, d), jnp.where(moves, w1**2 + w2**2, 1)
    upper = 2 * b + R
    lower = -d * jnp.where(upper > 0, d / jnp.where(upper > 0, upper, 1), 0)
    decay = jnp.exp(-2 * R * time)
    # (1 - e^{-2Rt}) / 2R, which is t where the two roots of the logistic curve meet
    delay = jnp.where(R > 0, -jnp.expm1(-2 * R * time) / jnp.where(R > 0, 2 * R, 1), time)
    q0 = 2 * s0 + weight0
    share = (q0 - lower) * delay + decay
    q = lower + (q0 - lower) / share
    # q - upper = 2 (s - b) (1 + 2 (s + b) / (weight + R)): s - b follows without cancellation.
    s, weight = (q - d * (d / q)) / 4, (q + d * (d / q)) / 2
    ratio = (1 + 2 * (s0 + b) / (weight0 + R)) / (1 + 2 * (s + b) / (weight + R))
    return jnp.where(moves, sign * (b + (s0 - b) * (decay / share) * ratio), 0)


def frobenius_flow(W0: ArrayLike, covariance: ArrayLike, time: ArrayLike) -> Float[Array, "n n"]:
    """Covariance `W W^T` under the flow of `||W W^T - Sigma||_F^2`, a Riccati equation.

    `S(t) = e^{4 Sigma t} W0 (I + W0^T Phi W0)^{-1} W0^T e^{4 Sigma t}`, where `Phi` has the
    eigenvectors of `Sigma` and the eigenvalues `(e^{8 lambda t} - 1) / lambda`, `8t` at 0.

    Parameters
    ----------
    W0, covariance, time
        Start, `n x p`, and target `Sigma`, `n x n`, both of any rank; a scalar.

    Notes
    -----
    Cost: one eigendecomposition, 64 Cholesky factorisations of size `p`, one for each 64th of the
    time. Exact to rounding up to `lambda_1 t` of about 100; overflows near 5000 (500 in float32).

    References
    ----------
    Derived for the Frobenius loss that arXiv 2303.03027 compares with.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import theory
    >>> print(theory.frobenius_flow(jnp.eye(2), jnp.diag(jnp.array([4.0, 0.0])), 0.875).round(3))
    [[4.    0.   ]
     [0.    0.125]]
    """
    W0 = _checks.real_array("W0", W0, ndim=2)
    Sigma = _covariance(covariance, W0.shape[0])
    time = _checks.scalar("time", time, W0.dtype, minimum=0.0)
    return _frobenius(W0, Sigma.astype(W0.dtype), time)


@jax.jit
@full_precision
def _frobenius(W0: Float[Array, "n p"], Sigma: Float[Array, "n n"], time: Scalar) -> Array:
    lam, Q = jnp.linalg.eigh(Sigma)
    piece = time / _STEPS
    exponent = 8 * lam * piece
    growth = jnp.exp(exponent / 2)[:, None]
    ratio = jnp.expm1(exponent) / jnp.where(exponent == 0, 1, exponent)
    mass = 8 * piece * jnp.where(exponent == 0, 1, ratio)

    # In pieces, because the exponentials of a long time would drown the small directions.
    def advance(_, A):
        root = jnp.linalg.cholesky(jnp.eye(A.shape[1], dtype=A.dtype) + A.T @ (mass[:, None] * A))
        return growth * lax.linalg.triangular_solve(root, A, lower=True, transpose_a=True)

    W = Q @ lax.fori_loop(0, _STEPS, advance, Q.T @ W0)
    return W @ W.T


def _elementwise(
    given: dict[str, ArrayLike], *, signed: tuple[str, ...] = ()
) -> Sequence[ArrayLike]:
    """Arguments as arrays of the first one's dtype; not negative, those with a sign apart."""
    dtype = getattr(next(iter(given.values())), "dtype", None)
    dtype = dtype if dtype in (np.float32, np.float64) else float
    bounds = {name: None if name in signed else 0.0 for name in given}
    arrays = [_checks.numbers(name, x, dtype, minimum=bounds[name]) for name, x in given.items()]
    shapes = [array.shape for array in arrays]
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        names, got = ", ".join(given), ", ".join(map(str, shapes))
        raise ValueError(f"{names} must have shapes that broadcast; got {got}.") from None
    return arrays


def _covariance(x: ArrayLike, size: int) -> Array:
    array = _checks.covariance_matrix("covariance", x)
    if array.shape != (size, size):
        raise ValueError(f"covariance must have shape {(size, size)}; got {array.shape}.")
    return array
