"""Division of gradients by the Grams of a factorisation, damped by a number or by the error."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._pairs import VIEWS
from bwflow._types import Grams, Params
from bwflow.factors import Deep
from bwflow.linalg import after, frobenius_norm, full_precision, positive_power

RULES = ("error_scale", "value", "gradient_norm")
Damping: TypeAlias = ArrayLike | optax.Schedule | Literal["error_scale", "value", "gradient_norm"]


class GramState(NamedTuple):
    """What `scale_by_gram` remembers."""

    step: Array  # the number of updates made


def scale_by_gram(
    damping: Damping = 0.0,
    *,
    view: str | None = None,
    pseudo_inverse: bool = False,
    normalize: bool = False,
    floor: ArrayLike | None = None,
    scale: ArrayLike = 1.0,
    noise_energy: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Every gradient `g` becomes `(A + eta I)^{-1} g (B + eta I)^{-1}`, with its leaf's Grams.

    The Grams `A`, `B` are `factorization.grams(params, view)`. For `X` of a loss of `X X^T` they
    are an identity and `X^T X`; for the pair of `L R^T` the right ones are `R^T R` and `L^T L`.

    Parameters
    ----------
    damping
        `eta`, in units of a Gram, not negative: a number, a function of the number of updates, or

        - `"error_scale"`: `loss.error_scale(W)`,
        - `"value"`: `sqrt|value - noise_energy|`, for losses that are half a squared distance,
        - `"gradient_norm"`: Frobenius norm of `loss.covariance_gradient(W)`.
    view
        `"covariance"`, for losses of `W W^T`, or `"end_to_end"`, for losses of `W`; by default the
        former where the factorisation has it.
    pseudo_inverse
        Divide by the pseudo-inverse instead of by Cholesky's factors: what belongs to eigenvalues
        of at most `floor` times the largest is dropped.
    normalize
        Divide by the Frobenius norm of each inverse, so that only its direction counts.
    floor
        Least `eta` in units of the Gram's trace, without which rounding would make a Gram
        indefinite; by default `4 k eps` for a `k x k` Gram.
    scale
        Factor on the damping, whatever gives it.
    noise_energy
        What the value is expected to be at the truth; counts for `damping="value"` alone.

    Returns
    -------
    optax.GradientTransformationExtraArgs
        Its update takes `params`, and by name `factorization` (`bwflow.factors.Deep()` where it is
        not given) and what the damping needs of `loss` and `value`.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or a name is unknown. In the update, if the
        parameters or what the damping needs are missing, or the factorisation has no Grams or not
        that view of them.

    Notes
    -----
    Cost: products and a Cholesky factorisation (or an eigendecomposition) per Gram, `n k^2 + k^3`.
    `"gradient_norm"` adds a norm: of an operator that is not dense it takes a product with every
    unit vector, in blocks.
    A gradient of zero stays zero even at a Gram of zero.

    References
    ----------
    Zhang, Fattahi and Zhang (2021), arXiv 2504.09708; Tong, Ma and Chi (2021), arXiv 2005.08898.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> X = 2.0 * jnp.eye(2)
    >>> transform = bw.precondition.scale_by_gram(damping=1.0)
    >>> (u,), _ = transform.update((X,), transform.init((X,)), (X,))
    >>> print(u.round(5))
    [[0.4 0. ]
     [0.  0.4]]
    """
    if view is not None:
        _checks.choice("view", view, VIEWS)
    if floor is not None:
        _checks.scalar("floor", floor, float, minimum=0.0)
    _checks.scalar("scale", scale, float, minimum=0.0)
    eta_of = _rule(damping, noise_energy)

    def init(params: Params) -> GramState:
        return GramState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, factorization=None, loss=None, value=None, **_):
        if params is None:
            raise ValueError("params must be given to the update of scale_by_gram; got None.")
        factorization = Deep() if factorization is None else factorization
        grams = grams_of(factorization, params, view)
        leaves, structure = jax.tree.flatten(updates)
        if len(grams) != len(leaves):
            raise ValueError(
                "updates must have a leaf for each Gram of the factorisation; "
                f"got {len(leaves)} for {len(grams)}."
            )
        dtype = leaves[0].dtype
        eta = jnp.asarray(eta_of(state.step, factorization, params, loss, value), dtype)
        eta = jnp.asarray(scale, dtype) * eta
        inverse = _by_pseudo_inverse if pseudo_inverse else _by_cholesky

        def divided(g: Array, gram: Array | None) -> Array:
            """Solution `x` of `(gram + eta I) x = g`."""
            if gram is None:
                return g
            lowest = 4 * gram.shape[0] * jnp.finfo(dtype).eps if floor is None else floor
            # A decomposition waits for what it divides, which may come of one itself; see `after`.
            return inverse(after(gram, g), g, eta, jnp.asarray(lowest, dtype), normalize)

        steps: list[Array] = []
        with full_precision:
            for g, (left, right) in zip(leaves, grams, strict=True):
                g = after(g, *steps[-1:])
                steps.append(divided(divided(g, left).T, right).T)
        return jax.tree.unflatten(structure, steps), GramState(state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def grams_of(factorization: Any, params: Params, view: str | None) -> Grams:
    """The Grams in a view, by default that of the covariance where there is one."""
    if not callable(getattr(factorization, "grams", None)):
        raise ValueError(
            "factorization must offer `grams(params, view)`, as those of bwflow.factors do; "
            f"got {_checks.shown(factorization)}."
        )
    offered = getattr(factorization, "views", ())
    if view is None and "covariance" in offered:
        view = "covariance"
    return factorization.grams(params) if view is None else factorization.grams(params, view)


def _rule(damping: Damping, noise_energy: ArrayLike) -> Callable[..., ArrayLike]:
    """What gives the damping from `(step, factorization, params, loss, value)`."""
    _checks.scalar("noise_energy", noise_energy, float, minimum=0.0)
    if callable(damping):
        return lambda step, *_: jnp.maximum(damping(step), 0)
    if not isinstance(damping, str):
        _checks.scalar("damping", damping, float, minimum=0.0)
        return lambda *_: damping
    _checks.choice("damping", damping, RULES)

    def by_value(step, factorization, params, loss, value):
        if value is None:
            raise ValueError('value must be given to the update, for damping="value".')
        return positive_power(jnp.abs(value - jnp.asarray(noise_energy, value.dtype)), 0.5)

    def by_loss(step, factorization, params, loss, value):
        attribute = "error_scale" if damping == "error_scale" else "covariance_gradient"
        if not callable(getattr(loss, attribute, None)):
            raise ValueError(
                f'loss must offer `{attribute}` for damping="{damping}"; '
                f"{type(loss).__name__} does not."
            )
        found = getattr(loss, attribute)(factorization.assemble(params))
        return found if damping == "error_scale" else frobenius_norm(found)

    return by_value if damping == "value" else by_loss


def _by_cholesky(gram: Array, g: Array, eta: Array, floor: Array, normalize: bool) -> Array:
    # A Gram of zero goes with a gradient of zero, which must stay one.
    least = jnp.maximum(floor * jnp.trace(gram), jnp.finfo(gram.dtype).tiny)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(gram + jnp.maximum(eta, least) * identity)
    if normalize:
        inverse = jax.scipy.linalg.cho_solve(factor, identity)
        return inverse @ g / jnp.linalg.norm(inverse)
    return jax.scipy.linalg.cho_solve(factor, g)


def _by_pseudo_inverse(gram: Array, g: Array, eta: Array, floor: Array, normalize: bool) -> Array:
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    inverse = jnp.linalg.pinv(gram + eta * identity, rtol=floor, hermitian=True)
    norm = jnp.linalg.norm(inverse)
    return inverse @ g / jnp.where(norm > 0, norm, 1) if normalize else inverse @ g
