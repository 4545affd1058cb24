"""Certificates of optimality: upper bounds of `phi(W W^T) - min phi` that need no minimum.

The minimum is over all positive semi-definite matrices, of whatever rank, or over all matrices
where the parameters are a pair: what a convex solver would find. A loss over matrices of bounded
rank has stationary points above it, and there the bound stays at least as large as that gap.
"""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from bwflow import _checks
from bwflow._certifier import Certificate as Certificate
from bwflow._certifier import Certifier, Form, certifier
from bwflow._extremal import Method
from bwflow._types import Loss, Params
from bwflow.diagnostics import Point, Record, checked_start, record, standard
from bwflow.factors import Deep
from bwflow.linalg import after

__all__ = ["Certificate", "Certified", "optimality_gap", "probe"]


def optimality_gap(
    loss: Loss,
    params: Params,
    *,
    trace_bound: ArrayLike,
    factorization: Any = Deep(),  # noqa: B008 (immutable)
    form: Form = "dual",
    method: Method = "auto",
    steps: int = 64,
    failure: ArrayLike = 1e-6,
    smoothness: ArrayLike | None = None,
    key: PRNGKeyArray | None = None,
) -> Certificate:
    """Bound `phi(W W^T) - phi*` from above, `phi* = min phi(M)` over all `M >= 0`.

    For convex `phi` with gradient `G` at `M = W W^T`, and `tr M* <= trace_bound`,

        dual                phi(M) - phi* <= <G, M> + trace_bound max(0, -lambda_min(G))
        rank_deficiency     phi(M) - phi* <= e_g ||W|| / 2 + trace_bound (e_H / 2 + 2 L e_l)

    where `e_g` is the norm of the gradient in `W`, `-e_H <= 0` a bound of the Hessian in `W` from
    below, `e_l = lambda_min(W^T W)` and `L` the smoothness. For parameters `(L, R)` of `E = L R^T`,
    with `Z` the gradient in `E` and `trace_bound` a bound on the nuclear norm of `E*`,

        dual                phi(E) - phi* <= <Z, E> + trace_bound ||Z||

    Parameters
    ----------
    loss
        Convex in `W W^T` (`convex = True`), with `covariance_gradient` for the form `"dual"`.
    params
        Parameters, as `factorization` assembles them.
    trace_bound
        Bound on the trace (or nuclear norm) of a minimiser, in units of the covariance; positive.
        A certificate is as good as this number. Against a target it is `sum (lambda_i - tau)_+`.
    factorization
        How parameters become the end-to-end matrix.
    form
        `"dual"`, the sharper one, or `"rank_deficiency"`, which explains why more columns than
        the minimiser has rank certify themselves: a stationary `W` of deficient rank without
        negative curvature is a minimiser.
    method
        How the least eigenvalue is bounded from below: `"dense"`, from a matrix; `"lanczos"`, from
        `steps` products; `"auto"`, dense up to a size of 512.
    steps
        Lanczos steps; memory is `steps` vectors.
    failure
        Probability that a Lanczos bound fails, over `key`; at most 0.5.
    smoothness
        `L`, Lipschitz constant of the gradient of `phi` in Frobenius norms; the loss's own if
        left out.
    key
        Random key of the Lanczos iteration; always the same if left out.

    Returns
    -------
    Certificate
        The bound and its parts.

    Raises
    ------
    ValueError
        If the loss is not convex or offers no `covariance_gradient`, `trace_bound` or another
        number is not positive, the form needs a smoothness that is not known or a matrix where
        there is a pair, or the loss has no gradient in `W W^T` at these parameters
        (Bures-Wasserstein, `tau = 0` and `W` of lower rank than the target). Under a trace, where
        that cannot be seen, the bound is infinite.

    Notes
    -----
    *Dual.* By convexity `phi(M) - phi* <= <G, M> - <G, M*>`, and `-<G, M*> <= -lambda_min(G) tr M*`
    for `M* >= 0`; `-<Z, E*> <= ||Z|| ||E*||_*` for a pair.

    *Rank deficiency.* `<G, M> = <grad, W> / 2 <= e_g ||W|| / 2`. For a unit vector `u` with
    `G u = lambda_min(G) u` and a unit `v` with `||W v||^2 = e_l`, the Hessian along `V = u v^T` is
    `2 <G, u u^T> + D^2 phi[D, D]` with `D = W v u^T + u (W v)^T`, and
    `||D||^2 = 2 ||W v||^2 + 2 <u, W v>^2 <= 4 e_l`. So `-e_H <= 2 lambda_min(G) + 4 L e_l`, and
    `-lambda_min(G) <= e_H / 2 + 2 L e_l` goes into the dual form. It is never smaller than that.

    `rounding` is `(n + steps) eps` times the size of the terms in the gradient times
    `tr M + trace_bound`: a loss may give that size as `gradient_scale(W)`, otherwise it is
    `smoothness * tr M`, or that of the gradient at `W = 0`.

    Cost, dual: the gradient, and `n^3` or `steps` products with `G` and `n steps^2`. Rank
    deficiency: `n p` or `steps` products with the Hessian. A void certificate says nothing of the
    parameters: with too few columns the bound stalls above 0 where no better matrix of that rank
    exists. It has no meaning for a loss whose `phi` is not convex.

    References
    ----------
    Zhang, Fattahi, Zhang (2023), JMLR 24(163), arXiv 2206.03345. The constants are derived here.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))))
    >>> saddle = jnp.array([[0.0], [1.0]])
    >>> for W in saddle, jnp.diag(jnp.array([2.0, 1.0])):
    ...     certificate = bw.certificate.optimality_gap(loss, (W,), trace_bound=5.0)
    ...     print(float(loss(W)), "<=", float(certificate.bound.round(6)))
    16.0 <= 40.0
    0.0 <= 0.0
    """
    rule = certifier(
        trace_bound=trace_bound,
        form=form,
        method=method,
        steps=steps,
        failure=failure,
        smoothness=smoothness,
        key=key,
    )
    params = checked_start(loss, params, factorization, standard)
    rule.check(Point(loss, params, factorization))
    dtype = jax.tree.leaves(params)[0].dtype
    rule, loss, factorization = (
        _checks.traced_numbers(tree, dtype) for tree in (rule, loss, factorization)
    )
    certificate = _certify(rule, loss, params, factorization)
    if _checks.is_concrete(certificate.bound) and not np.all(np.isfinite(certificate.bound)):
        raise ValueError(
            "params must be where the loss is finite and has a gradient in W W^T; there is no "
            f"bound here. Of {type(loss).__name__} at tau = 0, W W^T must cover the target's range."
        )
    return certificate


@eqx.filter_jit
def _certify(rule: Certifier, loss: Any, params: Any, factorization: Any) -> Certificate:
    return rule(Point(loss, params, factorization))


class Certified(eqx.Module):
    """Probe that records named quantities and a certificate."""

    rule: Certifier
    record: Record
    factorization: Any = Deep()

    def __call__(self, loss: Loss, params: Params) -> dict[str, Array]:
        self.rule.check(Point(loss, params, self.factorization))
        rows = self.record(loss, params)
        found = self.rule(Point(loss, after(params, *rows.values()), self.factorization))
        return rows | {
            "certified_gap": found.bound,
            "smallest_eigenvalue": found.smallest_eigenvalue,
        }

    def bind(self, factorization: Any) -> "Certified":
        """The same probe of parameters of another factorization."""
        return Certified(self.rule, self.record.bind(factorization), factorization)


def probe(*names: str, trace_bound: ArrayLike, **options: Any) -> Certified:
    """Probe that records certificates beside named quantities, at every save of a run.

    Parameters
    ----------
    *names
        Quantities of `bwflow.diagnostics.record`.
    trace_bound, **options
        As `optimality_gap` takes them.

    Returns
    -------
    Certified
        Records `certified_gap`, the bound, and `smallest_eigenvalue` under these names.

    Raises
    ------
    ValueError
        As `optimality_gap` does; for the loss when the run starts.

    Examples
    --------
    >>> import jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> loss = bw.losses.Frobenius(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))))
    >>> run = bw.gradient_descent(
    ...     loss, (jnp.eye(2),), optax.sgd(0.02), num_steps=60, save_every=30,
    ...     probe=bw.certificate.probe("loss", trace_bound=5.0))
    >>> bool((run.probes["loss"] <= run.probes["certified_gap"]).all())
    True
    """
    return Certified(certifier(trace_bound=trace_bound, **options), record(*names))
