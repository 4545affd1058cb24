"""Covariances as arguments: matrices, their factors or targets, one or a batch of each."""

import math
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from bwflow import _checks
from bwflow.covariances import Target
from bwflow.geometry._roots import narrowed, root
from bwflow.linalg import after, full_precision, settled

# About as many numbers of an operand as a core finds in its cache again, step after step.
_IN_A_CACHE = 2**16

Kind: TypeAlias = Literal["matrix", "factor"]


class Factor(eqx.Module):
    """A covariance `A = F F^T` given by its factor, for any function that takes covariances.

    Parameters
    ----------
    factor
        `F`, `... x n x k`, of any rank; leading dimensions are a batch.

    Raises
    ------
    ValueError
        If it is not real floating point, has fewer than two dimensions, or is seen not to be
        finite.

    Notes
    -----
    Functions of factors need no matrix of size `n x n`. The product `F F^T` rounds eigenvalues to
    `eps` times the largest: to a digit at a condition of 1e15, where factors have lost none.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> long = bw.geometry.Factor(jnp.array([[2.0], [0.0]]))
    >>> print(bw.bures_wasserstein(long, jnp.eye(2)))
    2.0
    """

    factor: Float[Array, "*batch n k"]

    def __init__(self, factor: ArrayLike):
        self.factor = batch("factor", factor, 2)

    @property
    def covariance(self) -> Float[Array, "*batch n n"]:
        """`F F^T`, formed when asked for."""
        with full_precision:
            return self.factor @ jnp.swapaxes(self.factor, -1, -2)


Covariance: TypeAlias = ArrayLike | Factor | Target
KINDS = (Factor, Target)


@dataclass(frozen=True)
class Operand:
    """An argument that has been looked at: its array, and what that is of the covariance."""

    name: str
    array: Array
    kind: Kind

    @property
    def dim(self) -> int:
        return self.array.shape[-2]


def matrices(name: str, x: Covariance) -> Float[Array, "*batch n n"]:
    """Covariances as matrices, whatever they came as.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import geometry
    >>> print(geometry.matrices("A", geometry.Factor(jnp.array([[2.0], [0.0]]))))
    [[4. 0.]
     [0. 0.]]
    """
    given = operand(name, x)
    return Factor(given.array).covariance if given.kind == "factor" else given.array


def operand(name: str, x: Covariance) -> Operand:
    """A covariance, refused where it is seen not to be one."""
    if isinstance(x, Factor | Target):
        return Operand(name, x.factor, "factor")
    return Operand(name, _checks.covariance_matrices(name, x), "matrix")


def operands(*, together: bool = True, **given: Covariance) -> list[Operand]:
    """Covariances of one size and dtype, whose batches go together."""
    found = [operand(name, x) for name, x in given.items()]
    first = found[0]
    for other in found[1:]:
        if other.dim != first.dim:
            raise ValueError(
                f"{first.name} and {other.name} must be of one size; got covariances "
                f"{first.dim} x {first.dim} and {other.dim} x {other.dim}."
            )
    if together:
        broadcast({x.name: x.array.shape[:-2] for x in found})
    dtype = jnp.result_type(*(x.array for x in found))
    if all(x.array.dtype == dtype for x in found):
        return found
    return [Operand(x.name, x.array.astype(dtype), x.kind) for x in found]


def broadcast(shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse leading dimensions that do not go together."""
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        shown = " and ".join(f"{shape} of {name}" for name, shape in shapes.items())
        raise ValueError(f"batches must broadcast; got leading dimensions {shown}.") from None


def batch(name: str, x: ArrayLike, ndim: int) -> Array:
    """Real floating arrays of `ndim` dimensions each."""
    array = _checks.real_array(name, x)
    if array.ndim < ndim:
        kind = {1: "a vector", 2: "a matrix"}[ndim]
        raise ValueError(f"{name} must be {kind} or a batch of them; got shape {array.shape}.")
    return array


def vector(name: str, x: ArrayLike, of: Operand) -> Array:
    """One or a batch of vectors of the size and the dtype of a covariance."""
    array = batch(name, x, 1)
    if array.shape[-1] != of.dim:
        raise ValueError(
            f"{name} must have {of.dim} entries, as {of.name} has rows; got shape {array.shape}."
        )
    return array.astype(of.array.dtype)


def number(name: str, x: ArrayLike, given: list[Operand], **bounds: Any) -> Array:
    """Numbers in range, whose dimensions go together with the batches."""
    array = jnp.asarray(_checks.numbers(name, x, given[0].array.dtype, **bounds))
    broadcast({x.name: x.array.shape[:-2] for x in given} | {name: array.shape})
    return array


def as_root(array: Array, kind: Kind) -> Array:
    """A factor of one covariance, with no more columns than rows."""
    return root(array) if kind == "matrix" else narrowed(array)


def as_roots(kinds: tuple[Kind, ...], A: Array, B: Array) -> tuple[Array, Array]:
    """Those of two, one after the other."""
    F = as_root(A, kinds[0])
    return F, as_root(after(B, F), kinds[1])


def mapped(
    kernel: Callable[..., Any],
    given: list[Operand],
    extra: list[tuple[Array, str]],
    out: str,
    **options: Hashable,
) -> Any:
    """A kernel of single covariances over batches of them, as one program.

    `kernel(kinds, *arrays, **options)` gets the operands and further arrays, whose dimensions are
    written as `jnp.vectorize` wants them: `n` for those of the operands. It has to be a function of
    a module, lest every call compile it anew.
    """
    letters = iter("klpq")
    cores = ["(n,n)" if x.kind == "matrix" else f"(n,{next(letters)})" for x in given]
    cores += [core for _, core in extra]
    arrays = [*(x.array for x in given), *(x for x, _ in extra)]
    leading = [
        x.ndim - core.count(",") - (core != "()") for x, core in zip(arrays, cores, strict=True)
    ]
    arrays = [
        x if own == max(leading) else x.reshape((1,) * (max(leading) - own) + x.shape)
        for x, own in zip(arrays, leading, strict=True)
    ]
    kinds = tuple(x.kind for x in given)
    signature = ",".join(cores) + "->" + out
    return settled(_mapped(kernel, kinds, signature, tuple(options.items()), *arrays))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@full_precision
def _mapped(
    kernel: Callable[..., Any],
    kinds: tuple[Kind, ...],
    signature: str,
    options: tuple[tuple[str, Hashable], ...],
    *arrays: Array,
) -> Any:
    whole = jnp.vectorize(partial(kernel, kinds, **dict(options)), signature=signature)
    operands = arrays[: len(kinds)]
    batch = np.broadcast_shapes(*(x.shape[:-2] for x in operands))
    row = math.prod(batch[1:]) * max(x.shape[-2] * x.shape[-1] for x in operands)
    size = max(1, cached() // max(row, 1))
    if not batch or batch[0] <= size:
        return whole(*arrays)
    return lax.platform_dependent(*arrays, cpu=partial(in_pieces, whole, size), default=whole)


def cached() -> int:
    """How many numbers the caches of all cores hold of an operand."""
    if hasattr(os, "sched_getaffinity"):
        return _IN_A_CACHE * len(os.sched_getaffinity(0))
    return _IN_A_CACHE * (os.cpu_count() or 1)


def in_pieces(function: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """The function over pieces of the first dimension, about as large as wanted and all alike."""
    rows = max(map(len, arrays))
    count = -(-rows // size)
    size = -(-rows // count)
    cut = [len(x) == rows for x in arrays]

    def piece(some: list[Array]) -> Array:
        pieces = iter(some)
        return function(*(next(pieces) if of else x for x, of in zip(arrays, cut, strict=True)))

    filled = [jnp.concatenate([x, x[: count * size - rows]]) for x in compress(arrays, cut)]
    found = lax.map(piece, [x.reshape(count, size, *x.shape[1:]) for x in filled])
    return found.reshape(count * size, *found.shape[2:])[:rows]
