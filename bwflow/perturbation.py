"""Perturbations that let a descent leave strict saddles, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from bwflow import _checks

__all__ = ["PerturbationState", "in_ball", "perturbed"]


class PerturbationState(NamedTuple):
    """Updates made, updates since the last perturbation, and perturbations made."""

    made: Array
    since: Array
    perturbations: Array


def perturbed(
    radius: ArrayLike, *, gradient_norm: ArrayLike, every: int, key: PRNGKeyArray
) -> optax.GradientTransformationExtraArgs:
    """Add a random step where the gradient is small: uniform in the ball of a radius.

    Where `||grad|| <= gradient_norm` and the last perturbation is at least `every` updates ago,
    `xi` is added to the update, uniform in `||xi|| <= radius` over all parameters together. The
    last of a chain, it perturbs by just that:

        optax.chain(optax.sgd(0.1), bw.perturbation.perturbed(1e-3, ...))

    Parameters
    ----------
    radius
        In units of the parameters; positive.
    gradient_norm
        Threshold for the norm of the gradient in the parameters (the extra argument `grad`, which
        `gradient_descent` passes; without it, of the updates, so that it has to stand first).
    every
        Updates between perturbations at the least: time to leave, and to settle elsewhere.
    key
        Random key.

    Raises
    ------
    ValueError
        If a number is not positive or `key` is not a random key.

    Notes
    -----
    Guaranteed (Jin et al. 2017, Theorem 3): for gradient descent of `f` with a gradient of
    Lipschitz constant `l` and a Hessian of Lipschitz constant `rho`, with the step `c / l` and

        chi = 3 max(log(d l D / (c e^2 delta)), 4),     gradient_norm = sqrt(c) e / chi^2,
        radius = gradient_norm / l,                     every = chi l / (c^2 sqrt(rho e)),

    `c <= 1` a constant that is not given, `d` the number of parameters and `D = f(start) - min f`,
    some iterate within `O(l D log^4 / e^2)` updates has `||grad|| <= e` and no curvature below
    `-sqrt(rho e)`, with probability `1 - delta`. There the perturbation comes before the step, here
    after it; the two differ by a step of a gradient below the threshold. The paper's test of
    whether the loss fell enough in `every` updates, which ends its method, is left to
    `bwflow.until.certified_gap`.

    Not guaranteed: anything for other numbers, other optimisers or functions whose derivatives are
    not Lipschitz, as those of factorisations are not but on bounded sets; that saddles without
    negative curvature are left, such as zero layers of a network of three or more; that a point
    without negative curvature is a minimiser, which for factors of a convex function needs as
    many columns as they come to be dependent. A certificate tells in any of these cases. Near a
    minimiser perturbations go on, of which the loss rises by the order of `radius^2`.

    Cost: a random vector of the size of the parameters in every update.

    References
    ----------
    Jin, Ge, Netrapalli, Kakade, Jordan (2017), arXiv 1703.00887.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))))
    >>> saddle = jnp.diag(jnp.array([0.0, 1.0]))
    >>> noise = bw.perturbation.perturbed(
    ...     1e-3, gradient_norm=1e-4, every=100, key=jax.random.key(0))
    >>> for optimizer in optax.sgd(0.02), optax.chain(optax.sgd(0.02), noise):
    ...     run = bw.gradient_descent(loss, (saddle,), optimizer, num_steps=200, save_every=200,
    ...                               until=bw.until.certified_gap(1e-6, trace_bound=5.0))
    ...     bool(jnp.isfinite(run.hit))
    False
    True
    """
    radius = _checks.scalar("radius", radius, float, positive=True)
    threshold = _checks.scalar("gradient_norm", gradient_norm, float, positive=True)
    every = _checks.positive_int("every", every)
    _checks.random_key("key", key)

    def init(params: Any) -> PerturbationState:
        del params
        zero = jnp.zeros((), jnp.int32)
        return PerturbationState(zero, jnp.full((), every, jnp.int32), zero)

    def update(
        updates: Any, state: Any, params: Any = None, *, grad: Any = None, **_: Any
    ) -> tuple[Any, PerturbationState]:
        del params
        norm = optax.tree.norm(updates if grad is None else grad)
        now = (norm <= jnp.asarray(threshold, norm.dtype)) & (state.since >= every)
        step = in_ball(jax.random.fold_in(key, state.made), updates, radius)
        moved = jax.tree.map(lambda u, x: u + jnp.where(now, x, 0), updates, step)
        since = jnp.where(now, 0, state.since) + 1
        return moved, PerturbationState(
            state.made + 1, since, state.perturbations + now.astype(jnp.int32)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def in_ball(key: PRNGKeyArray, tree: Any, radius: ArrayLike) -> Any:
    """A pytree like another, uniform in the ball of a radius around zero.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from bwflow import perturbation
    >>> x = perturbation.in_ball(jax.random.key(0), jnp.zeros((3, 2)), 0.5)
    >>> x.shape, bool(jnp.linalg.norm(x) <= 0.5)
    ((3, 2), True)
    """
    entries, unravel = ravel_pytree(tree)
    direction, length = jax.random.split(key)
    x = jax.random.normal(direction, entries.shape, entries.dtype)
    share = jax.random.uniform(length, (), entries.dtype) ** (1 / entries.size)
    return unravel(jnp.asarray(radius, x.dtype) * share * x / jnp.linalg.norm(x))
