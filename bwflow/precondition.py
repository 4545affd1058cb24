"""Preconditioners: optax transformations that divide gradients by the Grams of the other factors.

They chain with whatever optax has, and take extra arguments, which `gradient_descent` passes: the
factorisation, and where they ask for it the loss, its value and the gradient. In a loop of one's
own:

    updates, state = optimizer.update(
        gradients, state, params, loss=loss, value=value, grad=gradients)

On step sizes: the gradient of a loss `phi(W W^T)` in `W` is `2 G W`, with `G` that of `phi`. A step
`mu` which a paper takes along `G W` is the learning rate `mu / 2` here. The gradients in the two
factors of `L R^T` are `Z R` and `Z^T L`, without a factor 2: there the learning rate is that of the
papers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike

from bwflow import _checks
from bwflow._deep_precgd import deep_precgd
from bwflow._gram_scaling import Damping, scale_by_gram
from bwflow.linalg import full_precision

__all__ = [
    "add_balancing",
    "agn",
    "deep_precgd",
    "noraplus",
    "precgd",
    "riemannian_lora",
    "scale_by_gram",
    "scale_by_polyak",
    "scaledgd",
    "scaledgd_lambda",
]


def scaledgd(
    learning_rate: optax.ScalarOrSchedule, *, view: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """ScaledGD: `X <- X - learning_rate g (X^T X)^{-1}`, or the same for both factors of `L R^T`.

    The papers' step `mu` along `G X` is `learning_rate = mu / 2`; for `L R^T` it is the papers'.
    With more columns than the truth has ranks it can leap far away, where an iterate is nearly
    rank deficient and the residual is not small: see `precgd`.

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2005.08898.

    Examples
    --------
    Newton's square root, `x <- x - (x^2 - 4) / (2 x)`:

    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.array([[4.0]])))
    >>> run = bw.gradient_descent(
    ...     loss, (jnp.ones((1, 1)),), bw.precondition.scaledgd(1 / 8), num_steps=5)
    >>> print(run.factors[0].round(5))
    [[2.]]
    """
    return _descent(learning_rate, scale_by_gram(view=view))


def scaledgd_lambda(
    learning_rate: optax.ScalarOrSchedule, damping: ArrayLike | optax.Schedule, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """ScaledGD(lambda): the damping is a number or a schedule, whatever the error is.

    The paper takes a small multiple of `sigma_min(M*)` and a small random start. Where the loss
    does not see all of `M`, a constant leaves a slow tail: let it fall, for instance by
    `optax.exponential_decay`. Further options are those of `scale_by_gram`.

    References
    ----------
    Xu, Shen, Chi and Ma (2023), arXiv 2302.01186.

    Examples
    --------
    >>> import optax
    >>> import bwflow as bw
    >>> optimizer = bw.precondition.scaledgd_lambda(0.2, optax.exponential_decay(1.0, 10, 0.5))
    """
    if isinstance(damping, str):
        raise ValueError(
            f"damping must be a number or a function of the step; got {_checks.shown(damping)}. "
            "bwflow.precondition.precgd takes names."
        )
    return _descent(learning_rate, scale_by_gram(damping, **options))


def precgd(
    learning_rate: optax.ScalarOrSchedule, damping: Damping = "error_scale", **options: Any
) -> optax.GradientTransformationExtraArgs:
    """PrecGD: `X <- X - learning_rate g (X^T X + eta I)^{-1}` with `eta` about `||X X^T - M*||`.

    Too small a damping is ScaledGD, too large a one gradient descent, with its slow tail where
    there are more columns than ranks. The default takes the loss's own estimate of the error:
    `sqrt(f)` for sensing, completion and `losses.Frobenius`, the norm of `G` for one bit and phase
    retrieval; a loss that has no `error_scale` is refused. `damping="value"` with `noise_energy`
    takes `sqrt|f - noise_energy|`. Further options are those of `scale_by_gram`.

    The papers' step `mu` along `G X` is `learning_rate = mu / 2`.

    References
    ----------
    Zhang, Fattahi and Zhang (2021), arXiv 2504.09708, and (2023), arXiv 2206.03345.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([4.0, 0.0]))))
    >>> run = bw.gradient_descent(
    ...     loss, (jnp.eye(2),), bw.precondition.precgd(0.1, damping="value"), num_steps=100)
    >>> print(abs(run.factors[0]).round(4))
    [[2. 0.]
     [0. 0.]]
    """
    return _descent(learning_rate, scale_by_gram(damping, **options))


def agn(
    learning_rate: optax.ScalarOrSchedule, *, floor: ArrayLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Gauss-Newton, by pseudo-inverses: `L <- L - learning_rate Z R (R^T R)^+`, and `R` likewise.

    With `gradient_descent(..., order=(0, 1))` it is the alternating method AGN. `floor` is the
    relative cutoff of eigenvalues of `R^T R`.

    References
    ----------
    Jia, Feng, Meng and Sun, "Globally Q-linear Gauss-Newton method for overparameterized non-convex
    matrix sensing" (NeurIPS 2024).

    Examples
    --------
    >>> import bwflow as bw
    >>> optimizer = bw.precondition.agn(0.5)
    """
    return _descent(learning_rate, scale_by_gram(pseudo_inverse=True, floor=floor))


def riemannian_lora(
    learning_rate: optax.ScalarOrSchedule, damping: ArrayLike | optax.Schedule = 1e-6
) -> optax.GradientTransformationExtraArgs:
    """Each factor of a product `B A` is preconditioned by the Gram of the other.

    The gradients become `(B^T B + eta I)^{-1} g_A` and `g_B (A A^T + eta I)^{-1}`. The pair is two
    layers `(A, B)` of `Deep`, or the factors `(B, A^T)` of `Rectangular`. For Adam on top, chain
    `scale_by_gram(1e-6, view="end_to_end")` and `optax.adam`.

    References
    ----------
    Zhang and Pilanci (2024), arXiv 2402.02347.

    Examples
    --------
    >>> import bwflow as bw
    >>> optimizer = bw.precondition.riemannian_lora(1e-2)
    """
    return _descent(learning_rate, scale_by_gram(damping, view="end_to_end"))


def noraplus(
    learning_rate: optax.ScalarOrSchedule,
    damping: ArrayLike | optax.Schedule = 1e-6,
    **adam_options: Any,
) -> optax.GradientTransformationExtraArgs:
    """NoRA+: `riemannian_lora` with inverses of Frobenius norm one, and Adam behind it.

    `g_A <- P g_A / ||P||` with `P = (B^T B + eta I)^{-1}`, and likewise for `B`. At `B = 0`, where
    NoRA starts, `P / ||P||` is a multiple of the identity. Further options are those of
    `optax.adam`.

    References
    ----------
    Li, Zhang, Mokhtari and He (2025), arXiv 2410.18965.

    Examples
    --------
    >>> import bwflow as bw
    >>> optimizer = bw.precondition.noraplus(3e-4, b2=0.95)
    """
    _learning_rate(learning_rate)
    transform = scale_by_gram(damping, view="end_to_end", normalize=True)
    return optax.chain(transform, optax.adam(learning_rate, **adam_options))


def add_balancing(weight: ArrayLike = 0.5) -> optax.GradientTransformation:
    """Adds the gradient of `weight / 4 ||L^T L - R^T R||^2`, which keeps a pair balanced.

    The updates of `(L, R)` become `u + weight L D` and `v - weight R D`, `D = L^T L - R^T R`. Put
    it first in a chain, before the learning rate, for gradients of losses of `L R^T`.

    Raises
    ------
    ValueError
        If the weight is negative; in the update, if the parameters are not given, or are no pair.

    References
    ----------
    Tu, Boczar, Simchowitz, Soltanolkotabi and Recht (2016), arXiv 1507.03566; Zhang, Wang and Gu
    (2018), arXiv 1702.06525.

    Examples
    --------
    >>> import optax
    >>> import bwflow as bw
    >>> optimizer = optax.chain(bw.precondition.add_balancing(0.5), optax.sgd(0.1))
    """
    weight = _checks.scalar("weight", weight, float, minimum=0.0)

    def update(updates, state, params=None):
        if not isinstance(params, (tuple, list)) or len(params) != 2:
            raise ValueError(f"params must be a pair (L, R); got {_checks.shown(params)}.")
        (u, v), (L, R) = updates, params
        with full_precision:
            D = jnp.asarray(weight, L.dtype) * (L.T @ L - R.T @ R)
            return (u + L @ D, v - R @ D), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_polyak(minimum: ArrayLike = 0.0) -> optax.GradientTransformationExtraArgs:
    """Polyak's step: updates `u` become `(value - minimum) / <grad, u> u`.

    Behind `scale_by_gram` it is Polyak's step in the metric of the Grams, for losses without a
    Lipschitz gradient such as a sum of absolute values. (`optax.scale_by_polyak` divides by
    `<u, u>`, which is another number once `u` is not the gradient.)

    Parameters
    ----------
    minimum
        Least value of the loss.

    Raises
    ------
    ValueError
        If `minimum` is no finite number; in the update, if `value` or `grad` is not given.

    Notes
    -----
    Where `value <= minimum` or `<grad, u> <= 0` the step is zero.

    Examples
    --------
    >>> import optax
    >>> import bwflow as bw
    >>> optimizer = optax.chain(
    ...     bw.precondition.scale_by_gram(), bw.precondition.scale_by_polyak(), optax.scale(-1.0))
    """
    _checks.scalar("minimum", minimum, float)

    def update(updates, state, params=None, *, value=None, grad=None, **_):
        if value is None or grad is None:
            raise ValueError("value and grad must be given to the update of scale_by_polyak.")
        pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(updates), strict=True)
        with full_precision:
            slope = sum(jnp.vdot(g, u) for g, u in pairs)
        gap = jnp.maximum(value - jnp.asarray(minimum, value.dtype), 0)
        step = jnp.where(slope > 0, gap / jnp.where(slope > 0, slope, 1), 0)
        return jax.tree.map(lambda u: step.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _descent(
    learning_rate: optax.ScalarOrSchedule, transform: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    _learning_rate(learning_rate)
    return optax.chain(transform, optax.scale_by_learning_rate(learning_rate))


def _learning_rate(x: Any) -> None:
    if not callable(x):
        _checks.scalar("learning_rate", x, float)
