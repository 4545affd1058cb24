"""Losses of linear measurements: of `M = W W^T`, for a `Product` of `L R^T` (`+ S`)."""

from abc import abstractmethod
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.factors import Product, ProductPlusSparse
from bwflow.linalg import frobenius_norm, positive_power, symmetrize
from bwflow.operators import RankOne, measured_matrix
from bwflow.operators._arguments import check_operator, vector

EndToEnd: TypeAlias = Array | Product | ProductPlusSparse


def measured(operator: Any, W: EndToEnd) -> Float[Array, " m"]:
    """Measurements of `W W^T`, of a `Product`, or of one plus a sparse matrix."""
    if isinstance(W, Product):
        return operator(W.left, W.right)
    if isinstance(W, ProductPlusSparse):
        return measured(operator, W.product) + measured_matrix(operator, W.sparse)
    n, p = operator.shape
    if n != p:
        raise ValueError(
            f"W must be a bwflow.factors.Product, as the operator has shape {(n, p)} and is not"
            " square; use factorization=bwflow.factors.Rectangular()."
        )
    return operator(W, W)


class Measured(eqx.Module):
    """A convex function of `A(M)`."""

    operator: Any
    y: Float[Array, " m"]
    convex: ClassVar[bool] = True  # in M

    def __init__(self, operator: Any, y: ArrayLike):
        check_operator(operator)
        self.operator = operator
        self.y = vector(operator, y, "y", finite=True)

    def __call__(self, W: EndToEnd) -> Scalar:
        return self._of_measurements(measured(self.operator, W))

    @abstractmethod
    def _of_measurements(self, z: Float[Array, " m"]) -> Scalar:
        """The loss where the measurements are `z`."""

    @abstractmethod
    def _sizes(self, z: Float[Array, " m"]) -> Float[Array, " m"]:
        """Sizes of the terms whose differences are the slopes of `_of_measurements`."""

    def gradient_scale(self, W: EndToEnd) -> Scalar:
        """Size of the terms that cancel in `covariance_gradient`, which its rounding goes by.

        `sqrt(sum_i (s_i ||A_i||)^2)`, `s_i` being the size of those in a measurement's slope:
        roundings are independent. Cost: one of measuring.
        """
        z = measured(self.operator, W)
        return positive_power(
            jnp.sum((self._sizes(z) * self.operator.norms.astype(z.dtype)) ** 2), 0.5
        )

    def _smoothness(self, slope: float) -> Scalar | None:
        """Lipschitz constant of the gradient in `M`, `slope` being that of each measurement's."""
        squared = getattr(self.operator, "squared_norm", None)
        return None if squared is None else slope * jnp.asarray(squared, self.y.dtype)

    def covariance_gradient(self, W: EndToEnd) -> lx.AbstractLinearOperator:
        """Gradient in `M`: its symmetric part `G` for `M = W W^T`, itself for the others.

        The gradient in `W` is `2 G W`, those in `L` and `R` are `Z R` and `Z^T L`, that in `S` is
        `Z`.
        """
        z = measured(self.operator, W)
        slope = self.operator.adjoint(jax.grad(self._of_measurements)(z))
        if not isinstance(W, Array):
            return slope
        if isinstance(slope, lx.MatrixLinearOperator):
            return lx.MatrixLinearOperator(symmetrize(slope.as_matrix()), lx.symmetric_tag)
        half = jnp.asarray(0.5, self.y.dtype)
        return lx.TaggedLinearOperator((slope + slope.transpose()) * half, lx.symmetric_tag)


class Sensing(Measured):
    """`1/2 ||A(M) - y||^2`, for measurements `y = A(M*) + noise`.

    Parameters
    ----------
    operator
        `A`, of `bwflow.operators`.
    y
        Measurements.
    noise_energy
        What the loss is expected to be at the truth: `m sigma^2 / 2` for noise of standard
        deviation `sigma`.

    Raises
    ------
    ValueError
        If the operator is none, `y` does not have as many finite entries as it has measurements, or
        the energy is negative; in a call, if a matrix `W` comes where `A` is not square.

    Notes
    -----
    Cost: that of the operator, twice for a gradient.

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2005.08898.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Dense(jnp.eye(4).reshape(4, 2, 2))
    >>> loss = bw.losses.Sensing(operator, jnp.zeros(4))
    >>> float(loss(jnp.eye(2))), loss.covariance_gradient(jnp.eye(2)).as_matrix().tolist()
    (1.0, [[1.0, 0.0], [0.0, 1.0]])
    """

    noise_energy: ArrayLike

    def __init__(self, operator: Any, y: ArrayLike, noise_energy: ArrayLike = 0.0):
        super().__init__(operator, y)
        _checks.scalar("noise_energy", noise_energy, self.y.dtype, minimum=0.0)
        self.noise_energy = noise_energy

    def _of_measurements(self, z: Array) -> Scalar:
        return jnp.sum((z - self.y) ** 2) / 2

    def _sizes(self, z: Array) -> Array:
        return jnp.abs(z) + jnp.abs(self.y)

    @property
    def smoothness(self) -> Scalar | None:
        """Lipschitz constant `||A||^2` of the gradient in `M`; `None` if `A` does not tell it."""
        return self._smoothness(1.0)

    def error_scale(self, W: EndToEnd) -> Scalar:
        """`sqrt|loss - noise_energy|`: `||M - M*||` over the root of 2, where `A` keeps norms."""
        value = self(W)
        return positive_power(jnp.abs(value - jnp.asarray(self.noise_energy, value.dtype)), 0.5)

    def statistical_floor(self, rank: int, *, rectangular: bool = False) -> Scalar:
        """Expected `||M - M*||^2` of least squares of the right rank, `sigma^2` times its freedom.

        `sigma^2 = 2 noise_energy / m`. The freedom is the dimension of the matrices of that rank:
        `n r - r (r - 1) / 2` for `W W^T`, `(n + p - r) r` for `L R^T`. It is right to first order
        in the noise for operators that keep the norms of these matrices.
        """
        n, p = self.operator.shape
        r = _checks.positive_int("rank", rank)
        if r > min(n, p):
            raise ValueError(f"rank must be at most {min(n, p)}; got {r}.")
        freedom = (n + p - r) * r if rectangular else n * r - r * (r - 1) // 2
        energy = jnp.asarray(self.noise_energy, self.y.dtype)
        return 2 * energy / self.y.size * freedom


class OneBit(Measured):
    """`mean_i [log(1 + e^{z_i}) - y_i z_i]` with `z = A(M)`: logistic regression on labels.

    `y_i` in `[0, 1]` is the label 0 or 1 that was drawn with probability `1 / (1 + e^{-z_i})`, or
    that probability itself, as for infinitely many draws.

    Raises
    ------
    ValueError
        As `Sensing`, or if a label is outside `[0, 1]`.

    References
    ----------
    Zhang, Fattahi and Zhang (2023), arXiv 2206.03345.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.OneBit(bw.operators.Dense(jnp.ones((1, 1, 1))), jnp.array([0.5]))
    >>> print(loss(jnp.zeros((1, 1))).round(4))
    0.6931
    """

    def __init__(self, operator: Any, y: ArrayLike):
        super().__init__(operator, y)
        _checks.numbers("y", self.y, self.y.dtype, minimum=0.0, maximum=1.0)

    def _of_measurements(self, z: Array) -> Scalar:
        return jnp.mean(jax.nn.softplus(z) - self.y * z)

    def _sizes(self, z: Array) -> Array:
        # The curvature is at most 1/4: by so much are roundings of the measurements handed on.
        return (jax.nn.sigmoid(z) + jnp.abs(z) / 4 + self.y) / z.size

    @property
    def smoothness(self) -> Scalar | None:
        """Lipschitz constant `||A||^2 / (4 m)` of the gradient in `M`; `None` if not known.

        It is the curvature at `A(M) = 0`, which is the largest.
        """
        return self._smoothness(1 / (4 * self.y.size))

    def error_scale(self, W: EndToEnd) -> Scalar:
        """Frobenius norm of the gradient in `M`, which vanishes at a truth without noise."""
        return frobenius_norm(self.covariance_gradient(W))


class PhaseRetrieval(Measured):
    """`1/(2 m) sum_i (a_i^T M a_i - y_i)^2`: squared magnitudes `y_i = ||W*^T a_i||^2`.

    A convex function of `M`, unlike one of `W`.

    Parameters
    ----------
    vectors
        `a_i` in rows, `m x n`.
    y
        Squared magnitudes.

    Raises
    ------
    ValueError
        If `vectors` is no finite matrix, or `y` does not have as many finite entries as it has
        rows.

    References
    ----------
    Zhang, Fattahi and Zhang (2023), arXiv 2206.03345.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.PhaseRetrieval(jnp.array([[1.0, 1.0]]), jnp.array([4.0]))
    >>> float(loss(jnp.ones((2, 1)))), float(loss(jnp.eye(2)))
    (0.0, 2.0)
    """

    def __init__(self, vectors: ArrayLike, y: ArrayLike):
        super().__init__(RankOne(_checks.real_array("vectors", vectors, ndim=2)), y)

    def _of_measurements(self, z: Array) -> Scalar:
        return jnp.mean((z - self.y) ** 2) / 2

    def _sizes(self, z: Array) -> Array:
        return (jnp.abs(z) + jnp.abs(self.y)) / z.size

    def error_scale(self, W: EndToEnd) -> Scalar:
        """Frobenius norm of the gradient in `M`, which vanishes at a truth without noise."""
        return frobenius_norm(self.covariance_gradient(W))


class AbsoluteSensing(Measured):
    """`sum_i |z_i - y_i|` with `z = A(M)`, which outliers among the measurements do not move.

    Not smooth: the gradient is that of a sign, 0 at 0. Take Polyak's step
    (`bwflow.precondition.scale_by_polyak`) or one that falls.

    Raises
    ------
    ValueError
        As `Sensing`.

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2010.13364.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Dense(jnp.eye(4).reshape(4, 2, 2))
    >>> float(bw.losses.AbsoluteSensing(operator, jnp.zeros(4))(2.0 * jnp.eye(2)))
    8.0
    """

    def _of_measurements(self, z: Array) -> Scalar:
        # The slope of `jnp.abs` at 0 is 1.
        residual = z - self.y
        return jnp.sum(residual * lax.stop_gradient(jnp.sign(residual)))

    def _sizes(self, z: Array) -> Array:
        return jnp.ones_like(z)
