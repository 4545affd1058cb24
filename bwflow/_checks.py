"""What the doors do with their arguments: refuse by name, and turn numbers into arrays.

A refusal says which argument, what came and what was expected.

Values are looked at only when they are concrete; under a trace only shapes and dtypes are. They
are looked at with numpy: inside `jax.jit` even an operation on a concrete array would be traced.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, DTypeLike


def is_concrete(x: object) -> bool:
    """Whether the value of `x` can be looked at now."""
    return not isinstance(x, Tracer)


def real_array(name: str, x: ArrayLike | None, *, ndim: int) -> Array:
    """`x` as a real floating array of `ndim` dimensions, finite where that can be seen."""
    array = jnp.asarray(x)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions; got shape {array.shape}.")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be real floating point; got dtype {array.dtype}. "
            f"Convert it first, for example with {name}.astype(float)."
        )
    if is_concrete(array) and not np.all(np.isfinite(np.asarray(array))):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity.")
    return array


def scalar(
    name: str,
    x: ArrayLike,
    dtype: DTypeLike,
    *,
    minimum: float | None = None,
    positive: bool = False,
) -> Array:
    """`x` as a scalar of `dtype`; not NaN, and in range, where that can be seen."""
    value = jnp.asarray(x, dtype=dtype)
    if value.ndim != 0:
        raise ValueError(f"{name} must be a scalar; got shape {value.shape}.")
    if is_concrete(x):
        seen = float(np.asarray(x))
        if not np.isfinite(seen):
            raise ValueError(f"{name} must be a finite number; got {seen}.")
        if minimum is not None and seen < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {seen}.")
        if positive and seen <= 0:
            raise ValueError(f"{name} must be positive; got {seen}.")
    return value


def positive_int(name: str, x: object) -> int:
    """`x` as a Python integer of at least one."""
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)):
        raise ValueError(f"{name} must be a positive integer; got {x!r}.")
    if x < 1:
        raise ValueError(f"{name} must be a positive integer; got {x}.")
    return int(x)


def end_to_end(name: str, W: ArrayLike, rows: int) -> Array:
    """`W` as a real floating matrix with as many rows as the target has."""
    W = real_array(name, W, ndim=2)
    if W.shape[0] != rows:
        raise ValueError(f"{name} must have {rows} rows, as the target has; got shape {W.shape}.")
    return W


def traced_numbers(tree: Any, dtype: DTypeLike) -> Any:
    """The pytree with numbers of Python and numpy turned into arrays: new values, same program."""

    def as_array(x: Any) -> Any:
        if isinstance(x, (np.ndarray, np.generic, int, float)) and not isinstance(x, bool):
            return jnp.asarray(x, dtype if np.ndim(x) == 0 else None)
        return x

    return jax.tree.map(as_array, tree)
