"""Stopping criteria: `until=bwflow.until.gap(1e-6)` ends a run and records when it held."""

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow.diagnostics import Point


class Criterion(eqx.Module):
    """`measure <= tolerance`, the tolerance relative to a scale of the start unless absolute."""

    tolerance: ArrayLike
    minimum: Any
    kind: Literal["gap", "gradient_norm"] = eqx.field(static=True)
    absolute: bool = eqx.field(static=True)

    def threshold(self, start: Point) -> Array:
        """The bound that the measure has to reach, fixed at the start."""
        scale = start.value if self.kind == "gap" else start.gradient_norm
        tolerance = jnp.asarray(self.tolerance, scale.dtype)
        return tolerance if self.absolute else tolerance * scale

    def excess(self, point: Point, threshold: Array) -> Array:
        """Measure minus threshold: the criterion holds where this is not positive."""
        if self.kind == "gradient_norm":
            return point.gradient_norm - threshold
        minimum = point.minimum if self.minimum is None else self.minimum
        return point.value - jnp.asarray(minimum, threshold.dtype) - threshold


def gap(
    tolerance: ArrayLike, *, minimum: ArrayLike | None = None, absolute: bool = False
) -> Criterion:
    """Stop when `loss - minimum <= tolerance * loss(start)`.

    Parameters
    ----------
    tolerance
        Relative to the loss at the start (not to the gap there), or absolute.
    minimum
        The least loss; by default the loss is asked for it (`loss.minimum(rank)`).
    absolute
        Whether the tolerance is in the units of the loss.

    Raises
    ------
    ValueError
        If the tolerance is not a positive number or the minimum is no finite one; in the run, if
        the minimum is not known.

    Examples
    --------
    >>> import bwflow as bw
    >>> bw.until.gap(1e-6).kind
    'gap'
    """
    if minimum is not None:
        minimum = _checks.scalar("minimum", minimum, float)
    return Criterion(_tolerance(tolerance), minimum, "gap", absolute)


def gradient_norm(tolerance: ArrayLike, *, absolute: bool = False) -> Criterion:
    """Stop when the norm of the parameters' gradient is at most `tolerance` times its first value.

    Raises
    ------
    ValueError
        If the tolerance is not a positive number.

    Examples
    --------
    >>> import bwflow as bw
    >>> bw.until.gradient_norm(1e-8, absolute=True).absolute
    True
    """
    return Criterion(_tolerance(tolerance), None, "gradient_norm", absolute)


def check_until(until: Any) -> None:
    """Refuse what is neither a criterion nor `None`."""
    if until is not None:
        expected = "a criterion of bwflow.until, such as bwflow.until.gap(1e-6)"
        _checks.instance("until", until, Criterion, expected)


def _tolerance(tolerance: ArrayLike) -> ArrayLike:
    return _checks.scalar("tolerance", tolerance, float, positive=True)
