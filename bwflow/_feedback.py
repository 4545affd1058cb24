"""Feedback alignment: gradients that come back through fixed matrices instead of the layers."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._chains import end_to_end, layers_of, partial_products, widths
from bwflow._pairs import VIEWS
from bwflow._types import Factors, Grams
from bwflow.linalg import full_precision, polar


class FeedbackAlignment(eqx.Module):
    """Layers whose gradients come back through fixed matrices `B_k` in place of the `W_k`.

    With a gradient `G` in the end-to-end matrix the direction of layer `j` is
    `B_{>j}^T G W_{<j}^T`, `B_{>j} = B_N ... B_{j+1}`; that of the last layer is its gradient. For
    two layers and `1/2 ||Y - W_2 W_1||^2`, `E = Y - W_2 W_1`, the flow is
    `W_2' = E W_1^T, W_1' = B^T E`.

    Parameters
    ----------
    feedback
        `(B_2, ..., B_N)`, of the shapes of the layers above the first; a matrix stands for one.
        For random ones take the layers of an initialiser but the first,
        `bwflow.initializers.gaussian()(key, widths)[1:]`. They may be traced and batched.

    Raises
    ------
    ValueError
        If these are no finite matrices; by a run, if they have other shapes, or another dtype, than
        the layers above the first.

    Notes
    -----
    Cost: that of a gradient. What the parameters follow is no gradient: the loss may rise, and
    `gradient_norm` is the norm of this direction.

    Where a run of a loss of `W` comes to rest, `B_{>1}^T G = 0` and `G W_{<N}^T = 0`. For
    `losses.Approximation(Y)` that makes the limit `Y P`, `P` the projection on the rows of
    `B_{>1}^T Y` (`bwflow.theory.sketch_limit`), if the rank of `W_{<N}` is no larger than that of
    `B_{>1}^T Y`, or the latter is that of `Y`: a sketch of `Y`, exact from as many inner columns as
    `Y` has ranks and otherwise, unlike the limit of gradient descent, not the best approximation.
    Assumed is that the run converges. From zero it does so linearly (`theory.feedback_modes`). With
    more columns than ranks, what the first layer has outside of the rows of `Y` must be switched
    off. For one such mode, `w` in the first and `z` in the last layer, `w' = -b z w`,
    `z' = -w^2 z`, and `w^2 - 2 b z = d` is conserved: the error falls exponentially, at a rate
    proportional to `|d|`, and like `t^{-3/2}`, with `w` like `t^{-1/2}`, if `d = 0`. Small random
    starts have a small `d` and stay long on a plateau.

    Of a Bures-Wasserstein loss the points of rest are those of gradient descent, at any depth, for
    its gradient vanishes with that in the last layer; but strong feedback can lead to one of lower
    rank.

    References
    ----------
    Lillicrap, Cownden, Tweed and Akerman (2016), Random synaptic feedback weights support error
    backpropagation for deep learning; Garg and Vempala (2022), arXiv 2111.08706.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> Y = jnp.diag(jnp.array([2.0, 1.0, 0.0]))
    >>> layers = (jnp.zeros((2, 3)), jnp.zeros((3, 2)))
    >>> network = bw.factors.FeedbackAlignment(jnp.eye(3, 2))
    >>> run = bw.gradient_descent(bw.losses.Approximation(Y), layers, optax.sgd(0.2), num_steps=100,
    ...                           factorization=network)
    >>> print(bw.end_to_end(run.factors).round(4) + 0.0)
    [[2. 0. 0.]
     [0. 1. 0.]
     [0. 0. 0.]]
    """

    feedback: Factors
    views: ClassVar[tuple[str, ...]] = VIEWS[:1]

    def __init__(self, feedback: Any):
        given = feedback if isinstance(feedback, (tuple, list)) else (feedback,)
        self.feedback = tuple(
            _checks.real_array(f"feedback[{k}]", B, ndim=2) for k, B in enumerate(given)
        )

    def assemble(self, params: Factors) -> Float[Array, "n p"]:
        """End-to-end matrix of the parameters."""
        return end_to_end(params)

    @full_precision
    def pullback(self, params: Factors, G: Float[Array, "n p"]) -> Factors:
        """Directions `B_{>j}^T G W_{<j}^T` of a gradient `G` in the end-to-end matrix."""
        layers = self._checked(params)
        below = [layers[0]]
        for layer in layers[1:-1]:
            below.append(layer @ below[-1])
        directions = []
        for B, C in zip(self.feedback[::-1], below[::-1], strict=False):
            directions.append(G @ C.T)
            G = B.T @ G
        return (G, *directions[::-1])

    @full_precision
    def grams(self, params: Factors, view: str = "end_to_end") -> Grams:
        """Per layer `(B_{>j}^T B_{>j}, W_{<j} W_{<j}^T)`; there is no other view."""
        _checks.choice("view", view, self.views)
        layers = self._checked(params)
        # In place of the first layer anything does: products above do not have it.
        above, _ = partial_products((layers[0], *self.feedback))
        _, below = partial_products(layers)
        return tuple((A.T @ A, C @ C.T) for A, C in zip(above, below, strict=True))

    def bottleneck(self, params: Factors) -> int:
        """Largest rank the end-to-end matrix can have."""
        return min(widths(self._checked(params)))

    def _checked(self, params: Factors) -> Factors:
        layers = layers_of(params)
        check_feedback(self.feedback, layers[1:])
        return layers


class FeedbackAlignmentStar(eqx.Module):
    """FA*: two layers, of which the second is always the best one for the first.

    The parameter is the first layer `W` (`r x p`). The end-to-end matrix is `Z W` with
    `Z = Y W^+`, the minimiser of `||Y - Z W||`; a gradient `G` there comes back as `B^T G`. With
    `losses.Approximation(Y)` the flow is `W' = B^T (Y - Z W)`. It conserves `W W^T`.

    Parameters
    ----------
    feedback
        `B`, `n x r`.
    Y
        What is approximated, `n x p`.

    Raises
    ------
    ValueError
        If `feedback` and `Y` are not finite matrices of one dtype with as many rows; by a run, if
        the parameter is not `r x p`.

    Notes
    -----
    Cost: a polar factor of `r x p` and products, `n p r + p r^2`. The limit is that of
    `FeedbackAlignment`, which has it under the same assumptions. `W` of lower rank than `r` is cut
    as `linalg.polar` does; the end-to-end matrix jumps there, and from zero, where it starts so,
    one step leads to the limit.

    References
    ----------
    Garg and Vempala (2022), arXiv 2111.08706.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> Y = jnp.diag(jnp.array([2.0, 1.0, 0.0]))
    >>> network = bw.factors.FeedbackAlignmentStar(jnp.eye(3, 2), Y)
    >>> run = bw.gradient_descent(bw.losses.Approximation(Y), jnp.ones((2, 3)).at[0, 1].set(0.0),
    ...                           optax.sgd(0.5), num_steps=200, factorization=network)
    >>> W, Z = network.layers(run.factors)
    >>> print((Z @ W).round(4) + 0.0)
    [[2. 0. 0.]
     [0. 1. 0.]
     [0. 0. 0.]]
    """

    feedback: Float[Array, "n r"]
    Y: Float[Array, "n p"]

    def __init__(self, feedback: ArrayLike, Y: ArrayLike):
        self.feedback = _checks.real_array("feedback", feedback, ndim=2)
        self.Y = _checks.real_array("Y", Y, ndim=2)
        if self.feedback.shape[0] != self.Y.shape[0] or self.feedback.dtype != self.Y.dtype:
            raise ValueError(
                f"feedback must have {self.Y.shape[0]} rows and dtype {self.Y.dtype}, as Y has; "
                f"got shape {self.feedback.shape} and dtype {self.feedback.dtype}."
            )

    @full_precision
    def assemble(self, params: Float[Array, "r p"]) -> Float[Array, "n p"]:
        """`Y W^+ W`."""
        return on_rows_of(params, self.Y)

    @full_precision
    def pullback(self, params: Float[Array, "r p"], G: Float[Array, "n p"]) -> Float[Array, "r p"]:
        """`B^T G`."""
        return self.feedback.T @ G

    def bottleneck(self, params: Float[Array, "r p"]) -> int:
        """Largest rank the end-to-end matrix can have."""
        expected = self.feedback.shape[1], self.Y.shape[1]
        found = _checks.real_array("params", params, ndim=2, finite=False).shape
        if found != expected:
            raise ValueError(
                f"params must be the first layer, of shape {expected} for this feedback and Y; "
                f"got shape {found}."
            )
        return min(*expected, self.Y.shape[0])

    @full_precision
    def layers(self, params: Float[Array, "r p"]) -> Factors:
        """Both layers, `(W, Y W^+)`."""
        return params, self.Y @ jnp.linalg.pinv(params)


@full_precision
def feedback_imbalance(factors: Factors, feedback: Factors) -> Factors:
    """`B_{j+1}^T W_{j+1} + W_{j+1}^T B_{j+1} - W_j W_j^T`, which flows with feedback conserve.

    Even `(B_{j+1}^T W_{j+1})' = W_j' W_j^T`. Without feedback the like of it is `imbalance`.

    Returns
    -------
    tuple of Array
        `N - 1` symmetric matrices, `j = 1..N-1`; empty for one layer.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import factors
    >>> layers = (2.0 * jnp.eye(1), 3.0 * jnp.eye(1))
    >>> factors.feedback_imbalance(layers, (jnp.eye(1),))[0].tolist()
    [[2.0]]
    """
    layers = layers_of(factors)
    check_feedback(feedback, layers[1:])
    crossed = [B.T @ W for B, W in zip(feedback, layers[1:], strict=True)]
    return tuple(C + C.T - W @ W.T for C, W in zip(crossed, layers, strict=False))


@full_precision
def on_rows_of(W: Float[Array, "r p"], Y: Float[Array, "n p"]) -> Float[Array, "n p"]:
    """`Y` projected on the rows of `W`: `Y W^+ W`, by the polar factor of `W`."""
    P = polar(W)
    return (Y @ P.T) @ P


def check_feedback(feedback: Factors, layers: Factors) -> None:
    """Refuse feedback that does not fit the layers above the first."""
    found, expected = ([(B.shape, str(B.dtype)) for B in chain] for chain in (feedback, layers))
    if found != expected:
        raise ValueError(
            "feedback must have the shapes and the dtype of the layers above the first, "
            f"{expected}; got {found}."
        )
