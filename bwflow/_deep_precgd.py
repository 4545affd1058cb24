"""Preconditioned descent of deep factorisations, for losses that are well conditioned in `W`."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._gauss_newton import Model, inner, model
from bwflow._types import Factors
from bwflow.factors import VIEWS, Deep
from bwflow.linalg import full_precision, positive_power

_DAMPING, _RAISED, _LOWERED = 0.3, 4.0, 3.0
_RANGE = 1e8  # the multiplier of the damping stays within this factor of one
_PAIRS = 8
_ITERATIONS = 3  # of conjugate gradients; more resolve layers that the damping should hold back


class Memory(NamedTuple):
    """Changes of `W` and of half its gradient over the last steps, in a ring."""

    end_to_end: Array
    half_gradient: Array  # both at the last point
    steps: Array
    changes: Array
    known: Array  # number of pairs; -1 where not even the last point is known


class DeepPrecGDState(NamedTuple):
    """What `deep_precgd` remembers; `value` and `grad` are those of the parameters it leads to."""

    damping: Array
    value: Array
    grad: Factors
    memory: Memory | None


def deep_precgd(
    learning_rate: ArrayLike = 1.0, *, view: Literal["end_to_end", "covariance"] = "end_to_end"
) -> optax.GradientTransformationExtraArgs:
    """Gauss-Newton descent of all layers, damped by the roots of their Grams, with memory in `W`.

    Layers `W_j + D_j` of a network change `W` by `J D = sum_j A_j D_j B_j` to first order, with
    `A_j = W_{>j}` and `B_j = W_{<j}`. With `z = sqrt(value)` and `|M| = (M^T M)^{1/2}`, the step is
    what three iterations of preconditioned conjugate gradients find of

        (J^T J + d_j |A_j| (x) |B_j^T|) D = J^T E,    d_j = 0.3 mu z^{1 - 1/N} m / ||W_j||,

    times the learning rate, where norms are divided by the root of the layer's smaller side and `m`
    is their geometric mean. `E` is the step of L-BFGS in `W`, begun with a Hessian of `2 I`: `-G/2`
    at first, for which `J^T E` are the layers' own gradients `-g_j / 2`. A step that does not lower
    the loss is refused (the parameters stay), what `E` remembers is dropped, and `mu`, at first 1,
    is raised fourfold; else it is divided by 3. Where a layer is narrower than `W` has rows, an
    update does this twice.

    Parameters
    ----------
    learning_rate
        Factor on all steps. One is right for losses whose Hessian in `W` is at most `2 I`, as that
        of the Bures-Wasserstein loss, smoothed or not, and for the other view those whose Hessian
        in `W W^T` is about `I`, as that of `losses.Sensing` with many measurements. With few it is
        above `I` on matrices of the ranks that occur, and one too much: 0.7 did for 600
        measurements at n = 30 and hidden layers of width 10, where 0.8 and more were slow.
    view
        `"end_to_end"` for losses that are well conditioned in `W`. In the view `"covariance"`, for
        those of `W W^T`, `J D` is `X + X^T` with `X = sum_j A_j D_j B_j W^T`, its right-hand side
        `-g_j`, `z = sqrt(2 value)`, `2 N` stands for `N`, and nothing is remembered.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes `params`, the layers, and by name `value`, `value_fn` and, where it is
        given, `factorization`. It stands alone, or last in a chain.

    Raises
    ------
    ValueError
        If the learning rate is not a positive finite number or the view unknown; in the update, if
        an argument is missing or the factorisation is not `bwflow.factors.Deep()`.

    Notes
    -----
    It sees gradients of layers, their products and values, and no minimiser in closed form. If a
    target is known, that one is a single step away: a balanced splitting of the minimising `W`
    (`split_evenly`). The rule is for where the factors' own path matters, or where there is no
    closed form.

    Why it works. The loss has a Hessian in `W` of at most `2 I`, hence
    `L(W + E) <= L(W) + <G, E> + ||E||^2`, least at `E = -G / 2`, whatever the conditioning of the
    target: what the step of the layers has to make of `W` is known, and Gauss-Newton finds who
    makes it. It is exact to first order only. In a mode that all layers share, with scales
    `s_1, ..., s_N` and product `s`, small beside the distance `z` that it has to go, it asks for
    steps far above `s_j`; what reaches `z` together is a step of the order of `z^{1/N}` for every
    layer. A denominator `z^{1 - 1/N} a b` gives just that, for singular values `a` of `A_j` and `b`
    of `B_j`. Few iterations, since the coupled system gives a mode to the layers that move it most
    easily, and damping is right for shares about equal. Beyond ten layers as wide as `W`, most
    modes of a product are close to rounding: there one iteration and no memory arrive more often.

    Through a bottleneck `k` below the rank of the target, the Hessian in `W` is as small as
    `2 (1 - sqrt(lambda_{k+1} / lambda_k))` in the direction that turns the range of `W`, and with
    smoothing about `2 (1 - tau / lambda)`: this is what the memory is for. It lives in `W`, where
    the Hessian changes little, and not in the layers, whose Hessian changes as they do. What is
    known is the bound and the first-order model, for aligned layers the damping; that it arrives,
    and in how many steps, is only measured, in `benchmarks/C0_deep.py`.

    Where it does not work. Modes whose `a` or `b` is at the rounding of the largest carry no
    information and do not move: the product of 32 square Gaussian layers has few others, and that
    of ten of a tenth of the usual size is slow at a condition of 1e6. Where several layers lack a
    mode, as at zero, all gradients vanish there, and a multiple of the identity is tried on every
    layer instead, kept if it lowers the loss. A `tau` close to an eigenvalue of the target makes
    the minimum degenerate, and nothing quick.

    Cost: a value and gradient at the new parameters, which `gradient_descent` uses again for the
    next step, `2 (N - 1)` eigendecompositions of Grams, for networks deeper than five layers and in
    single precision singular value decompositions of partial products (Grams have half the
    digits), and about `24 N` products; where layers are narrow all this twice. It remembers 16
    matrices of the size of `W`. A run has no derivatives: those of the decompositions do not exist
    where eigenvalues repeat.

    References
    ----------
    Grams of layers: Zhang, Fattahi and Zhang (2021), arXiv 2504.09708, for one factor.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([1.0, 1e-4]))), tau=0.0)
    >>> factors = bw.initializers.gaussian()(jax.random.key(1), (2, 2, 2, 2))
    >>> run = bw.gradient_descent(
    ...     loss, factors, bw.precondition.deep_precgd(), num_steps=30,
    ...     until=bw.until.gap(1e-10))
    >>> bool(run.hit < 15)
    True
    """
    _checks.scalar("learning_rate", learning_rate, float, positive=True)
    _checks.choice("view", view, VIEWS)
    covariance = view == "covariance"

    def init(params: Any) -> Any:
        dtype = jax.tree.leaves(params)[0].dtype
        unknown = jnp.asarray(jnp.inf, dtype)
        zeros = jax.tree.map(jnp.zeros_like, params)
        # What else there may be is refused in the update, which knows the factorisation.
        layers = tuple(params) if isinstance(params, tuple | list) else ()
        remembers = layers and all(W.ndim == 2 for W in layers) and not _lossy(layers)
        memory = _empty(layers) if remembers and not covariance else None
        return DeepPrecGDState(jnp.ones((), dtype), unknown, zeros, memory)

    def update(
        updates, state, params=None, *, value=None, value_fn=None, factorization=None, **extra
    ):
        value, value_fn = _given("value", value), _given("value_fn", value_fn)
        params = _given("params", params)
        if not isinstance(factorization, Deep | None):
            raise ValueError(
                "factorization must be bwflow.factors.Deep() for deep_precgd; "
                f"got {_checks.shown(factorization)}."
            )
        rate = jnp.asarray(learning_rate, value.dtype)

        def moved(_, carry):
            gone, state = carry
            here = jax.tree.map(jnp.add, params, gone)
            steps, memory = _steps(here, state, rate, covariance)
            steps = jax.tree.unflatten(jax.tree.structure(params), steps)
            steps = jax.tree.map(jnp.add, gone, steps)
            trial = jax.tree.map(jnp.add, params, steps)
            # The gradient comes with the value almost for free, and the next step needs it.
            new_value, new_grad = jax.value_and_grad(value_fn)(trial)
            accepted = new_value < state.value

            def choose(new, old):
                return jax.tree.map(lambda x, y: jnp.where(accepted, x, y), new, old)

            damping = jnp.where(accepted, state.damping / _LOWERED, state.damping * _RAISED)
            return choose(steps, gone), DeepPrecGDState(
                jnp.clip(damping, 1 / _RANGE, _RANGE),
                choose(new_value, state.value),
                choose(new_grad, state.grad),
                memory and memory._replace(known=jnp.where(accepted, memory.known, -1)),
            )

        start = jax.tree.map(jnp.zeros_like, params), state._replace(value=value, grad=updates)
        return lax.fori_loop(0, _moves(params), moved, start)

    return optax.GradientTransformationExtraArgs(init, update)


def _given(name: str, x: Any) -> Any:
    if x is None:
        raise ValueError(f"{name} must be given to the update of deep_precgd; got None.")
    return x


def _moves(factors: Factors) -> int:
    """Two where a bottleneck leaves the Hessian in `W` badly conditioned, else one."""
    return 2 if _narrow(factors) else 1


def _narrow(factors: Factors) -> bool:
    return min(min(W.shape) for W in factors) < factors[-1].shape[0]


def _lossy(factors: Factors) -> bool:
    """Whether products of the layers keep so few modes that gradients in `W` cannot be told."""
    return len(factors) > 10 and not _narrow(factors)


def _steps(
    factors: Factors, state: DeepPrecGDState, rate: Array, covariance: bool
) -> tuple[Factors, Memory | None]:
    """The steps of all layers; multiples of the identity where the gradients say nothing."""
    value, mu = state.value, state.damping
    network = model(factors, covariance)
    z = positive_power(2 * value if covariance else value, 0.5)
    sizes = jnp.stack([jnp.linalg.norm(W) / min(W.shape) ** 0.5 for W in factors])
    sizes = jnp.maximum(sizes, jnp.finfo(value.dtype).tiny)
    mean = jnp.exp(jnp.mean(jnp.log(sizes)))
    dampings = _DAMPING * mu * z ** (1 - 1 / network.shared_by) * mean / sizes
    # Half the gradient is the step in W that the bound on the Hessian asks for.
    wanted = [-g if covariance else -g / 2 for g in network.rotated(state.grad)]
    memory = state.memory
    if memory is not None:
        memory, correction = _recalled(memory, network, state.grad)
        wanted = [x + y for x, y in zip(wanted, network.pulled_back(correction), strict=True)]
    found = network.solution(wanted, dampings, 1 if _lossy(factors) else _ITERATIONS)
    steps = [rate * D for D in network.restored(found)]
    # What the step promises to first order; at a saddle it is nothing.
    promise = -inner(state.grad, steps)
    stuck = promise <= jnp.finfo(value.dtype).eps * value
    scale = (z / mu) ** (1 / network.shared_by)
    return tuple(
        jnp.where(stuck, scale * jnp.eye(*W.shape, dtype=W.dtype), D)
        for W, D in zip(factors, steps, strict=True)
    ), memory


def _empty(factors: Factors) -> Memory:
    last = jnp.zeros((factors[-1].shape[0], factors[0].shape[1]), factors[0].dtype)
    pairs = jnp.zeros((_PAIRS, *last.shape), last.dtype)
    return Memory(last, last, pairs, pairs, jnp.asarray(-1, jnp.int32))


@full_precision
def _recalled(memory: Memory, network: Model, found: Factors) -> tuple[Memory, Array]:
    """The memory with the newest pair, and by what it changes the step `-G / 2` in `W`: L-BFGS.

    Where the change leads uphill, there is none. The recursions are of inner products: all vectors
    are sums of the pairs' and of the gradient.
    """
    W, half = Deep().assemble(network.factors), network.gradient(found) / 2
    count = memory.known
    newest = count % _PAIRS
    S = memory.steps.at[newest].set(W - memory.end_to_end)
    Y = memory.changes.at[newest].set(half - memory.half_gradient)
    vectors = jnp.concatenate([S, Y, half[None]]).reshape(2 * _PAIRS + 1, -1)
    products = vectors @ vectors.T
    last = 2 * _PAIRS
    q, weights = jax.nn.one_hot(last, last + 1, dtype=W.dtype), []
    ages = [((newest - age) % _PAIRS, age <= count) for age in range(_PAIRS)]
    for i, usable in ages:
        curvature, size = products[i, _PAIRS + i], products[_PAIRS + i, _PAIRS + i]
        sound = usable & (curvature > 1e-12 * size)
        inverse = jnp.where(sound, 1 / jnp.where(sound, curvature, 1), 0)
        weights.append((inverse, inverse * (products[i] @ q)))
        q = q.at[_PAIRS + i].add(-weights[-1][1])
    for (i, _), (inverse, weight) in zip(reversed(ages), reversed(weights), strict=True):
        q = q.at[i].add(weight - inverse * (products[_PAIRS + i] @ q))
    downhill = products[last] @ q > 0
    correction = jnp.where(downhill, half - (q @ vectors).reshape(W.shape), 0)
    return Memory(W, half, S, Y, count + 1), correction
