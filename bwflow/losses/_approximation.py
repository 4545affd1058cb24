"""The loss of a low-rank approximation, `1/2 ||M - Y||^2`."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.factors import Product, ProductPlusSparse
from bwflow.linalg import positive_power
from bwflow.losses._measured import EndToEnd


class Approximation(eqx.Module):
    """`1/2 ||M - Y||^2` for a matrix `Y` (`n x p`), of the end-to-end matrix itself.

    `M` is the matrix `W`, the `L R^T` of a `Product`, or `L R^T + S`. (The losses of measurements
    and those against a target take a plain `W` for `W W^T`; this one does not.)

    Raises
    ------
    ValueError
        If `Y` is no finite matrix; in a call, if `M` has another shape.

    Notes
    -----
    Cost: `n p` beside forming `M`. The least value over matrices of rank `r`, half the sum of the
    squares of all but `r` singular values of `Y`, is that of its truncation.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Approximation(jnp.diag(jnp.array([3.0, 2.0])))
    >>> print(loss(jnp.zeros((2, 2))), loss.minimum(1).round(4))
    6.5 2.0
    """

    Y: Float[Array, "n p"]
    convex: ClassVar[bool] = True  # in M

    def __init__(self, Y: ArrayLike):
        self.Y = _checks.real_array("Y", Y, ndim=2)

    def __call__(self, W: EndToEnd) -> Scalar:
        return jnp.sum(self._residual(W) ** 2) / 2

    def covariance_gradient(self, W: Product | ProductPlusSparse) -> lx.AbstractLinearOperator:
        """Gradient `M - Y` in `M = L R^T`, or in `L R^T + S`."""
        if isinstance(W, Array):
            raise ValueError(
                "W must be a bwflow.factors.Product: of a plain matrix this loss is one of W, and "
                "has no gradient in W W^T (spectral starts take rectangular=True); got "
                f"{_checks.shown(W)}."
            )
        return lx.MatrixLinearOperator(self._residual(W))

    @property
    def smoothness(self) -> float:
        """Lipschitz constant of the gradient in `M`."""
        return 1.0

    def error_scale(self, W: EndToEnd) -> Scalar:
        """Root of the loss, `||M - Y||` over the root of 2."""
        return positive_power(self(W), 0.5)

    def minimum(self, rank: int) -> Scalar:
        """Least value over matrices of a rank. Cost: the singular values of `Y`."""
        s = jnp.linalg.svd(self.Y, compute_uv=False)
        return jnp.sum(s[_checks.positive_int("rank", rank) :] ** 2) / 2

    def _residual(self, W: EndToEnd) -> Array:
        M = W if isinstance(W, Array) else W.matrix()
        if M.shape != self.Y.shape:
            raise ValueError(
                f"W must have shape {self.Y.shape}, as Y has; got {_checks.shown(M.shape)}."
            )
        return M - self.Y
