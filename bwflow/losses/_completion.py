"""Loss of a matrix of which some entries are known, and weights of measurements."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.linalg import positive_power
from bwflow.losses._measured import EndToEnd, Measured, Sensing
from bwflow.operators import Entries, Weighted


class Completion(Measured):
    """`1/(2 q) sum (M_ij - y_ij)^2` over the observed entries, `q` their share of all `n p`.

    The share makes it about `||M - M*||^2 / 2`, of incoherent matrices and random entries.

    Parameters
    ----------
    rows, columns
        Indices of the observed entries.
    y
        Their values.
    shape
        `(n, p)`.

    Raises
    ------
    ValueError
        If the three do not have as many entries, or an index is outside the shape.

    Notes
    -----
    Cost: `m r` for `m` observed entries; memory `(n + p) r + m`.

    References
    ----------
    Tong, Ma and Chi (2021), arXiv 2005.08898.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Completion([0, 1], [0, 0], jnp.array([1.0, 2.0]), (2, 2))
    >>> float(loss(jnp.eye(2)))
    4.0
    """

    @classmethod
    def from_matrix(cls, M: ArrayLike, observed: ArrayLike | None = None) -> "Completion":
        """Of a matrix with holes: entries where `observed`, by default all that are not NaN.

        Raises
        ------
        ValueError
            If `M` is no real matrix, `observed` no array of its shape, nothing is observed, or what
            is observed is NaN.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> import bwflow as bw
        >>> loss = bw.losses.Completion.from_matrix(jnp.array([[1.0, jnp.nan], [2.0, jnp.nan]]))
        >>> loss.operator.num_measurements
        2
        """
        values = np.asarray(_checks.seen("M", M))
        if values.ndim != 2 or values.dtype.kind not in "iuf":
            raise ValueError(f"M must be a real matrix; got {_checks.shown(M)}.")
        mask = ~np.isnan(values) if observed is None else np.asarray(observed, bool)
        if mask.shape != values.shape:
            raise ValueError(f"observed must have the shape of M; got {mask.shape}.")
        if not mask.any():
            raise ValueError("M must have an observed entry; got none.")
        if not np.all(np.isfinite(values[mask])):
            raise ValueError(
                "M must be finite where it is observed; it holds NaN or infinity there."
            )
        rows, columns = np.nonzero(mask)
        return cls(rows, columns, jnp.asarray(values[rows, columns]), values.shape)

    def __init__(self, rows: Any, columns: Any, y: ArrayLike, shape: tuple[int, int]):
        super().__init__(Entries(rows, columns, shape), y)

    @property
    def observed(self) -> float:
        """Share of the entries that are observed."""
        n, p = self.operator.shape
        return self.y.size / (n * p)

    @property
    def smoothness(self) -> Scalar | None:
        """Lipschitz constant of the gradient in `M`: `1 / q` where no entry is observed twice.

        Otherwise it is as many times that as the entry observed most often is. Cost: a sort.
        """
        return self._smoothness(1 / self.observed)

    def _of_measurements(self, z: Array) -> Scalar:
        return jnp.sum((z - self.y) ** 2) / (2 * self.observed)

    def _sizes(self, z: Array) -> Array:
        return (jnp.abs(z) + jnp.abs(self.y)) / self.observed

    def error_scale(self, W: EndToEnd) -> Scalar:
        """Root of the loss, near `||M - M*||` over the root of 2 for incoherent matrices."""
        return positive_power(self(W), 0.5)


def weighted(loss: Sensing | Completion, weights: ArrayLike) -> Sensing:
    """`1/2 sum_i w_i (<A_i, M> - y_i)^2`, for the measurements of a loss of squares.

    Of a `Completion` it is that divided by the observed share, as its loss is.

    Parameters
    ----------
    loss
        `Sensing` or `Completion`; a `noise_energy` is dropped.
    weights
        `w_i`, one for each measurement, not negative.

    Raises
    ------
    ValueError
        If the loss is another, or the weights are not as many finite numbers of at least 0.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Completion([0, 1], [0, 0], jnp.array([1.0, 2.0]), (2, 2))
    >>> float(bw.losses.weighted(loss, jnp.array([1.0, 0.5]))(jnp.eye(2)))
    2.0
    """
    _checks.instance("loss", loss, (Sensing, Completion), "one of squares, Sensing or Completion")
    share = loss.observed if isinstance(loss, Completion) else 1.0
    operator = Weighted(loss.operator, jnp.asarray(weights) / share)
    return Sensing(operator, positive_power(operator.weights, 0.5).astype(loss.y.dtype) * loss.y)
