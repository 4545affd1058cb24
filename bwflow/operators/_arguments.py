"""What operators do with their arguments."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from bwflow import _checks

CHUNK = 2**20  # entries made or gathered at a time


def indices(name: str, x: ArrayLike | Sequence[int], size: int) -> Array:
    array = _checks.seen(name, x)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a non-empty list of integers; got shape {array.shape} of dtype "
            f"{array.dtype}."
        )
    if _checks.is_concrete(array):
        values = np.asarray(array)
        if values.min() < 0 or values.max() >= size:
            raise ValueError(
                f"{name} must be at least 0 and below {size}; "
                f"got values from {values.min()} to {values.max()}."
            )
    return jnp.asarray(array, jnp.int32)


def factors(operator: Any, left: Array, right: Array) -> tuple[Array, Array]:
    left, right = (
        _checks.real_array(name, x, ndim=2, finite=False)
        for name, x in (("left", left), ("right", right))
    )
    n, p = operator.shape
    if left.shape[0] != n or right.shape[0] != p or left.shape[1] != right.shape[1]:
        raise ValueError(
            f"left and right must have shapes ({n}, r) and ({p}, r), as the operator has shape "
            f"{(n, p)}; got {left.shape} and {right.shape}."
        )
    return left, right


def matrix(operator: Any, M: ArrayLike) -> Array:
    M = _checks.real_array("M", M, ndim=2, finite=False)
    if M.shape != operator.shape:
        raise ValueError(f"M must have shape {operator.shape}, as the operator has; got {M.shape}.")
    return M


def vector(operator: Any, v: ArrayLike, name: str = "v", *, finite: bool = False) -> Array:
    """`v` as an array with an entry for each measurement."""
    v = _checks.real_array(name, v, ndim=1, finite=finite)
    if v.size != operator.num_measurements:
        raise ValueError(
            f"{name} must have {operator.num_measurements} entries, one for each measurement; "
            f"got {v.size}."
        )
    return v


def check_operator(operator: Any) -> None:
    """Refuse what does not measure."""
    if isinstance(operator, type) or not callable(getattr(operator, "adjoint", None)):
        raise ValueError(
            "operator must be an operator of bwflow.operators, such as "
            f"bwflow.operators.Dense(matrices); got {_checks.shown(operator)}."
        )
