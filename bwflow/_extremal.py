"""Smallest eigenvalues of symmetric operators, bounded from below."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from bwflow.linalg import full_precision, symmetrize

Method: TypeAlias = Literal["auto", "dense", "lanczos"]
_LARGEST_DENSE = 512
_BISECTIONS = 48


class Floor(NamedTuple):
    """`lower <= lambda_min` but for rounding of `size * eps` units; `failure`: how surely not."""

    lower: Array
    size: Array  # of the operator's norm
    failure: Array


def resolved(method: Method, n: int, steps: int) -> Method:
    """`"dense"` or `"lanczos"`; as many steps as the size are no less work than a matrix."""
    if method != "auto":
        return method
    return "dense" if n <= max(_LARGEST_DENSE, steps) else "lanczos"


@full_precision
def dense_floor(matrix: Float[Array, "n n"]) -> Floor:
    """The smallest eigenvalue itself."""
    values = jnp.linalg.eigvalsh(symmetrize(matrix))
    return Floor(values[0], jnp.max(jnp.abs(values)), jnp.zeros((), values.dtype))


@full_precision
def lanczos_floor(
    product: Callable[[Array], Array], n: int, steps: int, failure: Array, key: PRNGKeyArray
) -> Floor:
    """A lower bound from `steps` products with a random start, wrong with probability `failure`.

    Notes
    -----
    Let `b` be the start, uniform on the sphere, `z` a unit eigenvector of `lambda_min` and
    `v_1 = b, v_2, ...` Lanczos' orthonormal vectors, `v_{j+1} = p_j(A) b` with polynomials of
    degree `j` whose recurrence has the coefficients `alpha`, `beta` of the tridiagonal `T`.

    *The start.* A coordinate of `b` has a density of at most `sqrt((n - 1) / (2 pi))` for `n >= 3`
    and of an arcsine law for `n = 2`, so that `P(|<z, b>| < s) <= 0.824 sqrt(n) s`. With
    `s = failure / (2 * 0.824 sqrt(n))` both ends of the spectrum have `|<z, b>| >= s`, but for a
    probability `failure`. What follows is certain where they do.

    *What was computed.* `|p_j(lambda_min)| |<z, b>| = |<z, v_{j+1}>| <= 1`. All roots of `p_j` are
    Ritz values, and below them `|p_j|` falls; so `|p_j(x)| >= 1 / s` at an `x` below the roots
    shows that `lambda_min >= x`. The largest such `x` over all `j` is found by bisection, with
    `|p_j(x)|` as the product of the pivots of `T_j - x` over `beta_1 ... beta_j`: positive
    numbers without cancellation, in logarithms.

    *What can be said before.* Shift and scale the spectrum into `[0, 1]`, `lambda = 1` being the
    end of interest, and take `p(y) = U_{2k-2}(sqrt(y / (1 - e)))`, `U` Chebyshev's polynomial of
    the second kind, of degree `k - 1` in `y`. Were the Ritz value `theta` of `k` steps below
    `1 - e`, then `sum_i b_i^2 p(y_i)^2 (1 - e - y_i) > 0`, while `p(y)^2 (1 - e - y) <= 1 - e` on
    `[0, 1 - e]` and `p(1) = sinh((2k-1) h) / sinh(h)`, `tanh h = sqrt(e)`. That leaves
    `|<z, b>| < 1 / cosh((2k-1) h)`. Hence `sqrt(e) = tanh(arccosh(1 / s) / (2k - 1))` has
    `theta_min - lambda_min <= e R` and `lambda_max - theta_max <= e R`, `R` the spread of the
    eigenvalues, which is at most that of the Ritz values over `1 - 2 e`. Since
    `artanh x >= x` and `cosh x >= e^x / 2` this implies the theorem of Kuczynski and Wozniakowski,
    a failure of at most `1.648 sqrt(n) e^{-(2k-1) sqrt(e)}` for an error `e` relative to the
    largest eigenvalue of a positive definite matrix. The better of the two bounds is returned.

    With `steps >= n` the Ritz values are the eigenvalues. Vectors are reorthogonalised twice
    against all others, and a new random direction is taken where the Krylov space ends.

    References
    ----------
    Kuczynski and Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13. Van Dorsselaer, Hochstenbach
    and van der Vorst (2000), SIAM J. Matrix Anal. Appl. 22, on bounds by Lanczos' polynomials.
    """
    steps = min(steps, n)
    alphas, betas, size = _lanczos(product, n, steps, failure.dtype, key)
    off = jnp.diag(betas[:-1], 1)
    ritz = jnp.linalg.eigvalsh(jnp.diag(alphas) + off + off.T)
    if steps == n:
        return Floor(ritz[0], size, jnp.zeros_like(failure))
    reach = jnp.log(2 * 0.824 * jnp.sqrt(jnp.asarray(n, failure.dtype)) / failure)  # log(1 / s)
    seen = _polynomial_bound(alphas, jnp.maximum(betas, _eps(size) * size), ritz[0], reach)
    # arccosh of e^reach; the two differ by log 2 already for small failures.
    angle = reach + jnp.log1p(jnp.sqrt(-jnp.expm1(-2 * reach)))
    e = jnp.tanh(angle / (2 * steps - 1)) ** 2
    slack = e / jnp.where(e < 0.5, 1 - 2 * e, 1.0)
    known = jnp.where(e < 0.5, ritz[0] - slack * (ritz[-1] - ritz[0]), -jnp.inf)
    lower = jnp.maximum(seen, known)
    return Floor(lower, jnp.maximum(size, jnp.abs(lower)), failure)


def _lanczos(
    product: Callable, n: int, steps: int, dtype, key: PRNGKeyArray
) -> tuple[Array, Array, Array]:
    """The diagonal of `T`, what is beside it (the last belongs to no entry), the largest `||A v||`.

    Rows of the basis that are still zero leave what is orthogonalised against them as it is.
    """

    def drawn(j: Array | int) -> Array:
        return jax.random.normal(jax.random.fold_in(key, j), (n,), dtype)

    def orthogonal(w: Array, basis: Array) -> Array:
        for _ in range(2):
            w = w - basis.T @ (basis @ w)
        return w

    def step(carry: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], tuple]:
        basis, size = carry
        v = basis[j]
        w = product(v)
        size = jnp.maximum(size, jnp.linalg.norm(w))
        alpha, w = v @ w, orthogonal(w, basis)
        beta = jnp.linalg.norm(w)
        ended = beta <= 8 * _eps(size) * size  # rounding is as good a direction as a fresh one
        fresh = jnp.where(ended, drawn(j + 1), w / jnp.where(ended, 1.0, beta))
        fresh = orthogonal(fresh, basis)
        fresh = fresh / jnp.linalg.norm(fresh)
        return (basis.at[j + 1].set(fresh, mode="drop"), size), (alpha, beta)

    start = drawn(0)
    basis = jnp.zeros((steps, n), dtype).at[0].set(start / jnp.linalg.norm(start))
    (_, size), (alphas, betas) = lax.scan(step, (basis, jnp.zeros((), dtype)), jnp.arange(steps))
    return alphas, betas, size


def _polynomial_bound(alphas: Array, betas: Array, theta: Array, reach: Array) -> Array:
    """The largest `x < theta` that is known to be below the spectrum."""

    def reached(x: Array) -> Array:
        def step(carry: tuple, coefficients: tuple) -> tuple[tuple, None]:
            pivot, beta, height, best = carry
            alpha, following = coefficients
            pivot = alpha - x - beta * (beta / pivot)
            # Once a pivot is not positive, x is no longer below the roots.
            height = height + jnp.where(pivot > 0, jnp.log(jnp.abs(pivot) / following), -jnp.inf)
            return (pivot, following, height, jnp.fmax(best, height)), None

        one, zero = jnp.ones_like(x), jnp.zeros_like(x)
        end, _ = lax.scan(step, (one, zero, zero, -jnp.inf * one), (alphas, betas))
        return end[-1] >= reach

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        near, far = bracket
        middle = (near + far) / 2
        inside = reached(theta - jnp.exp(middle))
        return jnp.where(inside, near, middle), jnp.where(inside, middle, far)

    size = jnp.max(jnp.abs(alphas)) + jnp.max(betas)
    size = jnp.where(size > 0, size, 1.0)
    near = jnp.log(_eps(size) * size)
    # The first polynomial, (x - alpha_1) / beta_1, gets there at the latest.
    far = jnp.maximum(near, jnp.log(betas[0]) + reach) + 1
    return theta - jnp.exp(lax.fori_loop(0, _BISECTIONS, halve, (near, far))[1])


def _eps(x: Array) -> float:
    return float(jnp.finfo(x.dtype).eps)
