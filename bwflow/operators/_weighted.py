"""Measurements with weights, and of matrices that are given by their entries."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.linalg import positive_power
from bwflow.operators._arguments import check_operator, vector


class Weighted(eqx.Module):
    """`w_i^{1/2} A_i`, for an operator and weights `w_i` that are not negative.

    With measurements `w_i^{1/2} y_i` the loss `losses.Sensing` is
    `1/2 sum_i w_i (<A_i, M> - y_i)^2`; `losses.weighted` makes that of one.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Entries([0, 1], [1, 1], (2, 2))
    >>> weighted = bw.operators.Weighted(operator, jnp.array([4.0, 0.0]))
    >>> weighted(jnp.eye(2), jnp.ones((2, 2))).tolist()
    [2.0, 0.0]
    """

    operator: Any
    weights: Float[Array, " m"]

    def __init__(self, operator: Any, weights: ArrayLike):
        check_operator(operator)
        self.operator = operator
        w = vector(operator, weights, "weights", finite=True)
        self.weights = jnp.asarray(_checks.numbers("weights", w, w.dtype, minimum=0.0))

    @property
    def shape(self) -> tuple[int, int]:
        return self.operator.shape

    @property
    def num_measurements(self) -> int:
        return self.operator.num_measurements

    @property
    def norms(self) -> Float[Array, " m"]:
        return self._roots(self.weights.dtype) * self.operator.norms.astype(self.weights.dtype)

    def __call__(self, left: Array, right: Array) -> Float[Array, " m"]:
        z = self.operator(left, right)
        return self._roots(z.dtype) * z

    def of_matrix(self, M: Float[Array, "n p"]) -> Float[Array, " m"]:
        """Measurements of a matrix that is given by its entries."""
        z = measured_matrix(self.operator, M)
        return self._roots(z.dtype) * z

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        return self.operator.adjoint(self._roots(v.dtype) * v)

    def _roots(self, dtype: Any) -> Array:
        return positive_power(self.weights, 0.5).astype(dtype)


def measured_matrix(operator: Any, M: Float[Array, "n p"]) -> Float[Array, " m"]:
    """Measurements of a matrix that is given by its entries, by any operator.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import operators
    >>> A = operators.Dense(jnp.stack([jnp.eye(2), jnp.ones((2, 2))]))
    >>> operators.measured_matrix(A, jnp.array([[1.0, 2.0], [2.0, 5.0]])).tolist()
    [6.0, 10.0]
    """
    if hasattr(operator, "of_matrix"):
        return operator.of_matrix(M)
    return operator(M, jnp.eye(M.shape[1], dtype=M.dtype))
