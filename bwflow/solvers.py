"""A differential equation solver for long flows, beside those of diffrax."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import diffrax
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bwflow import _checks

__all__ = ["RKC"]

_DAMPING = 2 / 13  # of Chebyshev polynomials, as in the reference
_FIRST_ITERATIONS = 24  # of the power method, before the first step
_MARGIN = 1.2  # by which the estimated spectral radius is enlarged

# The slope at the start of a step, and the direction of the power method.
_State: TypeAlias = tuple[Array, Array]


class RKC(diffrax.AbstractAdaptiveSolver[_State]):
    """Runge-Kutta-Chebyshev method of second order, explicit and stabilised.

    A step of `s` stages is stable for eigenvalues in `[-0.653 (s^2 - 1), 0]` of `h df/dy`, so that
    the work to pass a time grows with the square root of the stiffness, where it is proportional to
    it for other explicit methods. Each step takes as many stages as it needs,
    `s = 1 + ceil(sqrt(1 + 1.54 h rho))`, from an estimate of the spectral radius `rho`.

    It pays where decay rates differ by more than about 100 and moderate accuracy is wanted: for
    flows followed to convergence, of ill-conditioned targets above all. Otherwise `diffrax.Tsit5`,
    of fifth order, needs fewer evaluations.

    Parameters
    ----------
    max_stages
        Most stages of a step. Where more are needed the step is refused and halved or worse.

    Raises
    ------
    ValueError
        If `max_stages` is not an integer of at least 2.

    Notes
    -----
    Cost: `s + 1` evaluations of the vector field a step, one of them for the spectral radius, and
    24 before the first. The error estimate is that of the reference, of the size of the local
    error, `h^3`; dense output is the cubic Hermite polynomial. Rounding grows like `s^2 eps`, so
    that in float32 some 50 stages are sensible. The radius is found by the power method on
    differences of the field, continued from step to step; the Jacobian should have nearly real
    eigenvalues, as that of a gradient flow has. In reverse mode the stages of one step are kept,
    `max_stages` of them. In a batch every step takes the stages of the run that needs most.

    References
    ----------
    Sommeijer, Shampine, Verwer (1998), RKC: an explicit solver for parabolic PDEs, J. Comput. Appl.
    Math. 88.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([1.0, 1e-4])))
    >>> loss = bw.losses.BuresWasserstein(target, tau=0.0)
    >>> layers = (jnp.eye(2), jnp.eye(2))
    >>> run = bw.gradient_flow(loss, layers, bw.solvers.RKC(), times=jnp.array([0.0, 300.0]),
    ...                        rtol=1e-3, atol=1e-5)
    >>> bool(run.probes["loss"][-1] < 1e-8)
    True
    """

    max_stages: int = 256

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    def __check_init__(self):
        if _checks.positive_int("max_stages", self.max_stages) < 2:
            raise ValueError(f"max_stages must be at least 2; got {self.max_stages}.")

    def order(self, terms: Any) -> int:
        return 2

    def error_order(self, terms: Any) -> int:
        return 3

    def func(self, terms: diffrax.AbstractTerm, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> _State:
        slope, y, _ = _raveled(terms, y0, args)
        f = slope(t0, y)
        # Of no direction in particular, lest symmetries of the start hide the stiffest one.
        v = jax.random.normal(jax.random.key(0), y.shape, y.dtype)
        v = lax.fori_loop(0, _FIRST_ITERATIONS, lambda _, v: _power(slope, t0, y, f, v)[1], v)
        return f, v

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: _State, made_jump: Any
    ) -> tuple[Any, Any, dict[str, Any], _State, diffrax.RESULTS]:
        slope, y, restored = _raveled(terms, y0, args)
        f, v = solver_state
        f = lax.cond(made_jump, lambda: slope(t0, y), lambda: f)
        h = jnp.asarray(t1 - t0, y.dtype)
        radius, v = _power(slope, t0, y, f, v)
        wanted = 1 + jnp.ceil(jnp.sqrt(1 + 1.54 * _MARGIN * jnp.abs(h) * radius))
        # A field that is not finite fails by its values, not for want of stages.
        stages = jnp.where(jnp.isfinite(wanted), jnp.maximum(wanted, 2), 2)
        enough = stages <= self.max_stages
        stages = jnp.where(enough, stages, 2).astype(jnp.int32)
        y1 = _chebyshev(slope, t0, h, y, f, stages, self.max_stages)
        f1 = slope(t1, y1)
        error = 0.8 * (y - y1) + 0.4 * h * (f + f1)
        error = jnp.where(enough, error, jnp.inf)
        dense = {"y0": y0, "y1": restored(y1), "k0": restored(h * f), "k1": restored(h * f1)}
        return restored(y1), restored(error), dense, (f1, v), diffrax.RESULTS.successful


def _raveled(terms: diffrax.AbstractTerm, y0: Any, args: Any) -> tuple[Any, Array, Any]:
    """The vector field on vectors, the vector `y0`, and how to make a tree of one."""
    y, restored = ravel_pytree(y0)

    def slope(t: Any, y: Array) -> Array:
        return ravel_pytree(terms.vf(t, restored(y), args))[0]

    return slope, y, restored


def _power(slope: Any, t: Any, y: Array, f: Array, v: Array) -> tuple[Array, Array]:
    """An estimate of the spectral radius at `y` from below, and the next direction."""
    y, f, v = lax.stop_gradient((y, f, v))
    tiny = jnp.finfo(y.dtype).tiny
    length = jnp.sqrt(jnp.sum(v**2))
    # A difference that is as far from rounding as from curvature.
    size = jnp.sqrt(jnp.finfo(y.dtype).eps) * (1 + jnp.sqrt(jnp.sum(y**2)))
    d = v * (size / jnp.maximum(length, tiny))
    change = lax.stop_gradient(slope(t, y + d)) - f
    found = jnp.sqrt(jnp.sum(change**2))
    return found / size, jnp.where(found > 0, change / jnp.maximum(found, tiny), v)


def _chebyshev(
    slope: Any,
    t0: Any,
    h: Array,
    y: Float[Array, " d"],
    f: Float[Array, " d"],
    stages: Array,
    max_stages: int,
) -> Float[Array, " d"]:
    """The state after a step of so many stages, at least 2."""
    dtype = y.dtype
    s = stages.astype(dtype)
    w0 = 1 + _DAMPING / s**2
    # T_s' / T_s'' at w0 = cosh(x), for the w0 that rounding has left.
    x = 2 * jnp.arcsinh(jnp.sqrt((w0 - 1) / 2))
    sinh, cosh = jnp.sinh(s * x), jnp.cosh(s * x)
    w1 = sinh * jnp.sinh(x) / (s * cosh - sinh / jnp.tanh(x))
    # T_j, T_j', T_j'' for j = 1, 2, and b_j = T_j'' / T_j'^2, which is the same for j = 0, 1, 2.
    T1 = jnp.stack([w0, jnp.ones_like(w0), jnp.zeros_like(w0)])
    T2 = jnp.stack([2 * w0**2 - 1, 4 * w0, jnp.full_like(w0, 4.0)])
    b = 1 / (4 * w0**2)
    first = b * w1
    begun = (jnp.int32(2), T1, T2, b, b, y, y + first * h * f, jnp.zeros_like(w0), first)

    def advance(state):
        j, T1, T2, b0, b1, Y0, Y1, c0, c1 = state
        b2 = T2[2] / T2[1] ** 2
        mu, nu, step = 2 * b2 * w0 / b1, -b2 / b0, 2 * b2 * w1 / b1
        drag = -(1 - b1 * T1[0]) * step
        time = t0 + (c1 * h).astype(jnp.result_type(t0))
        Y2 = y + mu * (Y1 - y) + nu * (Y0 - y) + h * (step * slope(time, Y1) + drag * f)
        c2 = mu * c1 + nu * c0 + step + drag
        T3 = 2 * w0 * T2 - T1 + jnp.array([0, 2, 4], dtype) * jnp.roll(T2, 1)
        return j + 1, T2, T3, b1, b2, Y1, Y2, c1, c2

    final = eqxi.while_loop(
        lambda state: state[0] <= stages,
        advance,
        begun,
        max_steps=max_stages,
        kind="bounded",
        base=16,
    )
    return final[6]
