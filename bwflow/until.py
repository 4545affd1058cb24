"""Stopping criteria: `until=bwflow.until.gap(1e-6)` ends a run and records when it held."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from bwflow import _checks
from bwflow._certifier import Certifier, certifier
from bwflow.diagnostics import Point

__all__ = ["Criterion", "certified_gap", "gap", "gradient_norm"]


class Criterion(eqx.Module):
    """`measure <= tolerance`, the tolerance relative to a scale of the start unless absolute.

    The measure and its scale, in the units of the loss or of its gradient, are what a subclass
    says.
    """

    tolerance: ArrayLike
    absolute: bool = eqx.field(static=True)
    kind: ClassVar[Literal["gap", "gradient_norm", "certified_gap"]]

    @abstractmethod
    def measure(self, point: Point) -> Array:
        """What has to become small."""

    @abstractmethod
    def scale(self, start: Point) -> Array:
        """What a relative tolerance is relative to."""

    def check(self, start: Point) -> None:
        """Refuse a start that cannot be measured, before anything is compiled."""
        del start

    def threshold(self, start: Point) -> Array:
        """The bound that the measure has to reach, fixed at the start."""
        scale = self.scale(start)
        tolerance = jnp.asarray(self.tolerance, scale.dtype)
        return tolerance if self.absolute else tolerance * scale

    def excess(self, point: Point, threshold: Array) -> Array:
        """Measure minus threshold: the criterion holds where this is not positive."""
        return self.measure(point) - threshold


class _Gap(Criterion):
    minimum: Any
    kind: ClassVar = "gap"

    def measure(self, point: Point) -> Array:
        minimum = point.minimum if self.minimum is None else self.minimum
        return point.value - jnp.asarray(minimum, point.value.dtype)

    def scale(self, start: Point) -> Array:
        return start.value


class _GradientNorm(Criterion):
    kind: ClassVar = "gradient_norm"

    def measure(self, point: Point) -> Array:
        return point.gradient_norm

    def scale(self, start: Point) -> Array:
        return start.gradient_norm


class _CertifiedGap(Criterion):
    rule: Certifier
    kind: ClassVar = "certified_gap"

    def measure(self, point: Point) -> Array:
        bound = self.rule(point).bound
        # A run goes on where there is no bound; it ends where the loss has become non-finite.
        finite = jnp.minimum(bound, jnp.finfo(bound.dtype).max)
        return jnp.where(jnp.isfinite(point.value), finite, jnp.nan)

    def scale(self, start: Point) -> Array:
        return start.value

    def check(self, start: Point) -> None:
        self.rule.check(start)


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
    return _Gap(_tolerance(tolerance), absolute, minimum)


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
    return _GradientNorm(_tolerance(tolerance), absolute)


def certified_gap(
    tolerance: ArrayLike, *, trace_bound: ArrayLike, absolute: bool = False, **options: Any
) -> Criterion:
    """Stop when `bwflow.certificate` bounds the gap by `tolerance * loss(start)`.

    The gap is that to the convex problem's minimum over matrices of any rank, and nothing needs to
    be known of that but a bound on the trace of a minimiser. At a saddle the bound stays large.

    Parameters
    ----------
    tolerance
        Relative to the loss at the start, or absolute. Below the certificate's `rounding` it is
        never met.
    trace_bound, **options
        As `bwflow.certificate.optimality_gap` takes them.
    absolute
        Whether the tolerance is in the units of the loss.

    Raises
    ------
    ValueError
        If the tolerance or an option is refused; in the run, before it starts, if the loss has no
        certificate.

    Notes
    -----
    Cost: a certificate at every step, up to `n^3` beside the gradient. With the method
    `"lanczos"` each has its probability of failure; all of a run have the same random start.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))))
    >>> run = bw.gradient_descent(
    ...     loss, (jnp.eye(2),), optax.sgd(0.02), num_steps=500, save_every=500,
    ...     until=bw.until.certified_gap(1e-3, trace_bound=5.0))
    >>> bool(run.hit < 100), bool(run.probes["loss"][-1] <= 1e-3 * 9.0)
    (True, True)
    """
    rule = certifier(trace_bound=trace_bound, **options)
    return _CertifiedGap(_tolerance(tolerance), absolute, rule)


def check_until(until: Any, loss: Any, params: Any, factorization: Any) -> None:
    """Refuse what is neither `None` nor a criterion that can be measured of the loss."""
    if until is not None:
        expected = "a criterion of bwflow.until, such as bwflow.until.gap(1e-6)"
        _checks.instance("until", until, Criterion, expected)
        until.check(Point(loss, params, factorization))


def _tolerance(tolerance: ArrayLike) -> ArrayLike:
    return _checks.scalar("tolerance", tolerance, float, positive=True)
