"""Preconditioned descent of deep factorisations, for losses that are well conditioned in `W`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._gram_scaling import grams_of
from bwflow._types import Params
from bwflow.factors import Deep, partial_products
from bwflow.linalg import after, full_precision, positive_power, range_mask

_DAMPING, _RAISED, _LOWERED = 0.3, 4.0, 3.0
_RANGE = 1e8  # the multiplier of the damping stays within this factor of one


class DeepPrecGDState(NamedTuple):
    """What `deep_precgd` remembers; `value` and `grad` are those of the parameters it leads to."""

    damping: Array
    value: Array
    grad: Params


class _Basis(NamedTuple):
    """Eigenvectors and square roots of eigenvalues of a Gram; no vectors for an identity."""

    vectors: Array | None
    roots: Array


def deep_precgd(learning_rate: ArrayLike = 1.0) -> optax.GradientTransformationExtraArgs:
    """Block Gauss-Newton descent of all layers, damped by the roots of their Grams.

    With the Grams `A_j^T A_j = U diag(a^2) U^T` and `B_j B_j^T = V diag(b^2) V^T` of
    `A_j = W_{>j}`, `B_j = W_{<j}`, and `z = sqrt(value)`, layer `j` of `N` moves by

        D_j = -learning_rate U [U^T g_j V / (2 N a^2 b^2 + 2 d_j a b)] V^T,
        d_j = 0.3 mu z^{1 - 1/N} m / ||W_j||,

    where `a b` stands for the outer product, norms are divided by the root of the layer's smaller
    side and `m` is their geometric mean. A step that does not lower the loss is refused (the
    parameters stay) and `mu`, at first 1, is raised fourfold; else it is divided by 3.

    Parameters
    ----------
    learning_rate
        Factor on all steps. One is right for losses whose Hessian in `W` is at most `2 I`, as that
        of the Bures-Wasserstein loss, smoothed or not, and about `2 I` where it matters.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes `params` and by name `value`, `value_fn` and, if it is not
        `bwflow.factors.Deep()`, `factorization`. It stands alone, or last in a chain.

    Raises
    ------
    ValueError
        If the learning rate is not a positive finite number; in the update, if an argument is
        missing or the factorisation has no Grams.

    Notes
    -----
    It sees gradients, Grams and values, and no minimiser in closed form. If a target is known, that
    one is a single step away: a balanced splitting of the minimising `W` (`split_evenly`). The rule
    is for where the factors' own path matters, or where there is no closed form.

    Why it works. The loss has a Hessian in `W` of at most `2 I`, hence
    `L(W + E) <= L(W) + <G, E> + ||E||^2`, least at `E = -G / 2`. If every layer takes an equal
    share, `A_j D_j B_j = -G / (2 N)`, then `D_j` is the step with no damping. It is exact to first
    order only. In a mode that all layers share, with scales `s_1, ..., s_N` and product `s`, small
    beside the distance `z` that it has to go, the share asks for steps far above `s_j`; what
    reaches `z` together is a step of the order of `z^{1/N}` for every layer. The denominator
    `z^{1 - 1/N} a b` gives just that. This is an argument for aligned layers; for others it is
    only measured, in `benchmarks/C0_deep.py`.

    Where it does not work. Modes whose `a` or `b` is at the rounding of the largest carry no
    information and do not move. Where several layers lack a mode, as at zero, all gradients vanish
    there, and a multiple of the identity is tried on every layer instead, kept if it lowers the
    loss.

    Where the target has more ranks than the bottleneck `k`, the last layer alone can turn the range
    of `W`, and takes its share of the step only: the error shrinks by `1 - (1 - q) / N` a step, for
    `q = lambda_{k+1} / lambda_k`. Where `tau` is not small beside the eigenvalues of the target,
    the Hessian in `W` is not near `2 I`, and the rate depends on `tau / lambda`. Both are quicker
    than descent, but not independent of conditioning.

    Cost: a value and gradient at the new parameters, which `gradient_descent` uses again for the
    next step, and `2 (N - 1)` eigendecompositions of Grams, for networks deeper than five layers
    and in single precision singular value decompositions of partial products (Grams have half the
    digits).

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

    def init(params: Params) -> DeepPrecGDState:
        dtype = jax.tree.leaves(params)[0].dtype
        unknown = jnp.asarray(jnp.inf, dtype)
        return DeepPrecGDState(jnp.ones((), dtype), unknown, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates, state, params=None, *, value=None, value_fn=None, factorization=None, **extra
    ):
        value, value_fn = _given("value", value), _given("value_fn", value_fn)
        params = _given("params", params)
        factorization = Deep() if factorization is None else factorization
        rate = jnp.asarray(learning_rate, value.dtype)
        with full_precision:
            steps = _steps(factorization, params, updates, value, state.damping, rate)
        trial = jax.tree.map(jnp.add, params, steps)
        # The gradient comes with the value almost for free, and the next step needs it.
        new_value, new_grad = jax.value_and_grad(value_fn)(trial)
        accepted = new_value < value

        def choose(new, old):
            return jax.tree.map(lambda x, y: jnp.where(accepted, x, y), new, old)

        damping = jnp.where(accepted, state.damping / _LOWERED, state.damping * _RAISED)
        return choose(steps, jax.tree.map(jnp.zeros_like, steps)), DeepPrecGDState(
            jnp.clip(damping, 1 / _RANGE, _RANGE),
            jnp.where(accepted, new_value, value),
            choose(new_grad, updates),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _given(name: str, x: Any) -> Any:
    if x is None:
        raise ValueError(f"{name} must be given to the update of deep_precgd; got None.")
    return x


def _steps(factorization: Any, params: Params, gradients: Params, value, mu, rate) -> Params:
    """The steps of all layers; multiples of the identity where the gradients say nothing."""
    layers, structure = jax.tree.flatten(params)
    found = jax.tree.leaves(gradients)
    bases = _bases(factorization, params, len(layers))
    depth, eps = len(layers), jnp.finfo(value.dtype).eps
    z = positive_power(value, 0.5)
    sizes = jnp.stack([jnp.linalg.norm(W) / min(W.shape) ** 0.5 for W in layers])
    sizes = jnp.maximum(sizes, jnp.finfo(value.dtype).tiny)
    mean = jnp.exp(jnp.mean(jnp.log(sizes)))
    dampings = _DAMPING * mu * z ** (1 - 1 / depth) * mean / sizes
    steps = [
        -rate * _divided(g, left, right, depth, damping)
        for g, (left, right), damping in zip(found, bases, dampings, strict=True)
    ]
    # What the step promises to first order; at a saddle it is nothing.
    promise = -sum(jnp.vdot(g, step) for g, step in zip(found, steps, strict=True))
    scale = (z / mu) ** (1 / depth)
    stuck = promise <= eps * value
    steps = [
        jnp.where(stuck, scale * jnp.eye(*W.shape, dtype=W.dtype), step)
        for W, step in zip(layers, steps, strict=True)
    ]
    return jax.tree.unflatten(structure, steps)


def _divided(g: Array, left: _Basis, right: _Basis, depth: int, damping: Array) -> Array:
    """`U [U^T g V / (2 N a^2 b^2 + 2 d a b)] V^T` over the modes above rounding."""
    U, V = left.vectors, right.vectors
    core = g if U is None else U.T @ g
    core = core if V is None else core @ V
    product = left.roots[:, None] * right.roots[None, :]
    divisor = 2 * product * (depth * product + damping)
    core = jnp.where(divisor > 0, core / jnp.where(divisor > 0, divisor, 1), 0)
    core = core if U is None else U @ core
    return core if V is None else core @ V.T


def _bases(factorization: Any, params: Params, depth: int) -> list[tuple[_Basis, _Basis]]:
    """Eigenbases of the Grams of every leaf, roots at the level of rounding set to zero."""
    dtype = jax.tree.leaves(params)[0].dtype
    if isinstance(factorization, Deep) and (depth > 5 or dtype == jnp.float32):
        above, below = partial_products(params)
        return _paired(
            [None if A is above[-1] else A for A in above],
            [None if B is below[0] else B.T for B in below],
            _by_svd,
            params,
        )
    grams = grams_of(factorization, params, "end_to_end")
    left, right = [A for A, _ in grams], [B for _, B in grams]
    if isinstance(factorization, Deep):
        left[-1] = right[0] = None  # identities
    return _paired(left, right, _by_eigh, params)


def _paired(left: list, right: list, decompose: Any, params: Params) -> list[tuple[_Basis, _Basis]]:
    """Bases of all matrices, those of one shape in one batch, the batches one after another.

    See `linalg.after` for why they wait for each other.
    """
    matrices = [*left, *right]
    sides = [side for i in (0, 1) for side in (W.shape[i] for W in jax.tree.leaves(params))]
    dtype = jax.tree.leaves(params)[0].dtype
    bases = [_Basis(None, jnp.ones(side, dtype)) for side in sides]
    shapes = {M.shape for M in matrices if M is not None}
    last = None
    for shape in sorted(shapes):
        where = [i for i, M in enumerate(matrices) if M is not None and M.shape == shape]
        stack = jnp.stack([matrices[i] for i in where])
        if last is not None:
            stack = after(stack, last)
        vectors, roots = decompose(stack)
        last = roots
        for i, V, s in zip(where, vectors, roots, strict=True):
            bases[i] = _Basis(V, s)
    depth = len(left)
    return list(zip(bases[:depth], bases[depth:], strict=True))


def _by_eigh(grams: Array) -> tuple[Array, Array]:
    """Eigenvectors and roots; the roots have half the digits of the Grams."""
    values, vectors = jnp.linalg.eigh(grams)
    return vectors, jnp.where(_kept(values, 100), positive_power(values, 0.5), 0)


def _by_svd(products: Array) -> tuple[Array, Array]:
    """The same of `M^T M` from `M`, with all digits."""
    k = products.shape[-1]
    _, roots, Vt = jnp.linalg.svd(products, full_matrices=products.shape[-2] < k)
    roots = jnp.where(_kept(roots, 10), roots, 0)
    return jnp.swapaxes(Vt, -1, -2), jnp.pad(roots, ((0, 0), (0, k - roots.shape[-1])))


_kept = jax.vmap(range_mask, in_axes=(0, None))
