"""Named quantities of a run: what probes record.

`record("loss", "gap", "imbalance")` makes a probe; `standard` is the default of both dynamics. A
probe is any function of `(loss, params)` that returns a dict of arrays, so people write their own
too.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bwflow import _checks
from bwflow._quantities import ALL, LOSS
from bwflow._quantities import QUANTITIES as QUANTITIES
from bwflow._quantities import Point as Point
from bwflow._representations import principal_angles as principal_angles
from bwflow._representations import representation_similarity as representation_similarity
from bwflow._types import Loss, Params
from bwflow.factors import Deep

__all__ = [
    "QUANTITIES",
    "Record",
    "principal_angles",
    "record",
    "representation_similarity",
    "standard",
]

_PROBE = "the loss and the parameters"


class Record(eqx.Module):
    """Probe that records named quantities."""

    names: tuple[str, ...] = eqx.field(static=True)
    factorization: Any = Deep()

    def __call__(self, loss: Loss, params: Params) -> dict[str, Array]:
        point = Point(loss, params, self.factorization)
        return {name: ALL[name].compute(point) for name in self.names}

    def bind(self, factorization: Any) -> "Record":
        """The same probe of parameters of another factorization."""
        return Record(self.names, factorization)


def record(*names: str) -> Record:
    """Probe of the named quantities.

    Parameters
    ----------
    *names
        `loss`, `gap`, `gradient_norm`, `singular_values`, `numerical_rank`, `effective_rank`,
        `imbalance`, `alignment`, `cosines`, `covariance`, `eigenvalue_errors`, `residual`,
        `distance_frobenius`, `distance_bures`, and with feedback `feedback_alignment`,
        `direction_alignment`, `sketch_distance`.

    Raises
    ------
    ValueError
        If a name is unknown; when it runs, if the loss does not offer what the quantity needs:
        `gap` needs `minimum`, `alignment` and `cosines` need `target`, `eigenvalue_errors`,
        `residual` and the distances `target` and `tau`, `sketch_distance` a matrix `Y`; the last
        three need a factorization with feedback.

    Notes
    -----
    `gap` subtracts the known minimum over matrices of the network's rank, so it can be as low as
    minus the rounding error of the loss. `effective_rank` is the exponential of the entropy of the
    singular values divided by their sum. `eigenvalue_errors` are `sigma_i^2 - (lambda_i - tau)_+`,
    and `sigma_i^2` for `i` above the bottleneck or the target's rank.

    `cosines` are `Omega^T U`, for eigenvectors of the target and left singular vectors of the
    network; the sign of each column is arbitrary, and columns of zero singular values are zero.
    `alignment` is the diagonal of its absolute values. Both are in the order of the singular
    values, and mean little where these repeat.

    `feedback_alignment` are the cosines `<W_k, B_k> / (||W_k|| ||B_k||)`, `direction_alignment` is
    that of what the parameters follow with the gradient in all of them, and `sketch_distance` is
    the one to `bwflow.theory.sketch_limit`. A cosine with zero is 0.

    References
    ----------
    Roy and Vetterli (2007), EUSIPCO, The effective rank: a measure of effective dimensionality.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(jnp.diag(jnp.array([4.0, 1.0]))), tau=0.0)
    >>> values = bw.diagnostics.record("loss", "numerical_rank")(loss, (jnp.eye(2),))
    >>> {name: float(value.round(5)) for name, value in values.items()}
    {'loss': 1.0, 'numerical_rank': 2.0}
    """
    for name in names:
        if not isinstance(name, str) or name not in ALL:
            raise ValueError(
                f"unknown quantity {_checks.shown(name)}; choose from {', '.join(ALL)}."
            )
    return Record(tuple(names))


def standard(loss: Loss, params: Params) -> dict[str, Array]:
    """Loss and gradient norm, and the gap where the loss knows its minimum.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> loss = bw.losses.BuresWasserstein(bw.Target(4.0 * jnp.eye(2)), tau=0.0)
    >>> {name: float(x) for name, x in bw.diagnostics.standard(loss, (jnp.eye(2),)).items()}
    {'loss': 2.0, 'gap': 2.0, 'gradient_norm': 2.8284271247461903}
    """
    return _standard(loss)(loss, params)


def _standard(loss: Loss) -> Record:
    known = ("gap",) if hasattr(loss, "minimum") else ()
    return record("loss", *known, "gradient_norm")


def bound_probe(probe: Any, loss: Loss, factorization: Any) -> Any:
    """The probe as it reads parameters of the given factorization."""
    probe = _standard(loss) if probe is standard else probe
    return probe.bind(factorization) if hasattr(probe, "bind") else probe


def recorded(probe: Any, loss: Loss, params: Params) -> dict[str, Array]:
    """What a probe records, refused if it is no dict of arrays."""
    _checks.takes("probe", probe, _PROBE, loss, params)
    rows = probe(loss, params)
    if not isinstance(rows, Mapping) or not all(
        isinstance(name, str) and isinstance(row, (Array, np.ndarray, np.generic, float, int))
        for name, row in rows.items()
    ):
        raise ValueError(f"probe must return a dict of arrays by name; got {_checks.shown(rows)}.")
    return {name: jnp.asarray(row) for name, row in rows.items()}


def checked_start(loss: Any, params: Any, factorization: Any, probe: Any) -> Params:
    """The start as arrays; refused if a run cannot go from it, or not with such functions."""
    methods = ("assemble", "pullback")
    # The type is asked first, for a module of equinox makes its bound methods slowly.
    owners = (type(factorization), factorization)
    offered = [any(callable(getattr(owner, m, None)) for owner in owners) for m in methods]
    if isinstance(factorization, type) or not all(offered):
        raise ValueError(
            f"factorization must be an object with the methods {', '.join(methods)}, such as "
            f"bwflow.factors.Deep(); got {_checks.shown(factorization)}."
        )
    params = _checks.parameters("params", params)
    if hasattr(factorization, "bottleneck"):
        factorization.bottleneck(params)  # refuses what does not chain
    _checks.function("loss", loss, LOSS)
    _checks.function("probe", probe, _PROBE)
    return params
