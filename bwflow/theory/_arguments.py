"""What the bounds do with their arguments, and two small functions of targets and numbers."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike

from bwflow import _checks
from bwflow._types import Scalar
from bwflow.covariances import Target


def check_target(target: Target) -> None:
    _checks.instance("target", target, Target, "a bwflow.Target")


def rank_within(target: Target, rank: int | None) -> int:
    check_target(target)
    k = target.dim if rank is None else _checks.positive_int("rank", rank)
    if k > target.dim:
        raise ValueError(f"rank must be at most {target.dim}, the size of the target; got {k}.")
    return k


def numbers(dtype: DTypeLike, **given: ArrayLike) -> list:
    return [_checks.numbers(name, x, dtype, minimum=0.0) for name, x in given.items()]


def depth_number(depth: ArrayLike, dtype: DTypeLike) -> ArrayLike:
    return _checks.numbers("depth", depth, dtype, minimum=1.0)


def dtype_of(target: Target) -> DTypeLike:
    return target.eigenvalues.dtype


def floating_dtype_of(x: ArrayLike) -> DTypeLike:
    dtype = getattr(x, "dtype", None)
    return dtype if dtype in (np.float32, np.float64) else float


def eigenvalue(target: Target, k: int) -> Scalar:
    """`lambda_k` of all `n` eigenvalues, largest first."""
    lam = target.eigenvalues
    return lam[k - 1] if k <= lam.size else jnp.zeros((), lam.dtype)


def root(x: ArrayLike) -> Array:
    """Square root, 0 below 0, with slope 0 there."""
    x = jnp.asarray(x)
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
