"""What the doors do with their arguments: refuse by name, and turn numbers into arrays.

A refusal says which argument, what came and what was expected.

Values are looked at only when they are concrete; under a trace only shapes and dtypes are. They
are looked at with numpy, and put on the device as they are: inside `jax.jit` even an operation on
a concrete array would be traced, and outside it would be compiled before the next argument is seen.
"""

import inspect
import operator
import reprlib
from collections.abc import Collection, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, DTypeLike

_FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}
_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60


def is_concrete(x: object) -> bool:
    """Whether the value of `x` can be looked at now."""
    return not isinstance(x, Tracer)


def is_real(dtype: Any) -> bool:
    """Whether the dtype is one of integers or floating-point numbers."""
    return jnp.issubdtype(dtype, np.integer) or jnp.issubdtype(dtype, np.floating)


def shown(x: object) -> str:
    """`x` as a refusal shows it: one line, not long."""
    return " ".join(_SHORT.repr(x).split())


def seen(name: str, x: Any) -> Array | np.ndarray:
    """`x` as an array of jax, if it is one or holds traced numbers, else as one of numpy."""
    if isinstance(x, Array):
        return x
    try:
        try:
            array = np.asarray(x)
        except jax.errors.TracerArrayConversionError:
            array = jnp.asarray(x)
    except (TypeError, ValueError):
        array = None
    if array is None or array.dtype.kind not in "biufc" or isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name} must be made of numbers; got {shown(x)}.")
    return array


def real_floating(
    name: str, array: Array | np.ndarray, ndim: int | None = None
) -> Array | np.ndarray:
    """The array, refused if its dtype or number of dimensions is another."""
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions; got shape {array.shape}.")
    if array.dtype not in _FLOATS:
        raise ValueError(
            f"{name} must be real floating point, of 32 or 64 bits; got dtype {array.dtype}. "
            f"Convert it first, for example with jnp.asarray({name}, float)."
        )
    return array


def real_array(
    name: str, x: ArrayLike | None, *, ndim: int | None = None, finite: bool = True
) -> Array:
    """`x` as a real floating array of `ndim` dimensions, finite where that can be seen."""
    array = real_floating(name, seen(name, x), ndim)
    if isinstance(array, Array) and not (finite and is_concrete(array)):
        return array
    values = _cast(array, array.dtype)
    if finite and not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity.")
    return array if _stays(array, values) else jax.device_put(values)


def numbers(
    name: str,
    x: ArrayLike | Sequence[ArrayLike],
    dtype: DTypeLike,
    *,
    ndim: int | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    positive: bool = False,
    increasing: bool = False,
) -> Array | np.ndarray:
    """`x`, integers or floats, as an array of `dtype`; finite, and in range, where it is seen.

    It is one of numpy unless it came as one of jax: a kernel takes that sooner than it is placed.
    """
    array = seen(name, x)
    if not is_real(array.dtype):
        raise ValueError(f"{name} must be real; got {shown(x)} of dtype {array.dtype}.")
    if ndim is not None and array.ndim != ndim:
        kind = "a scalar" if ndim == 0 else f"a list of numbers, of {ndim} dimensions"
        raise ValueError(f"{name} must be {kind}; got shape {array.shape}.")
    if not is_concrete(array):
        return jnp.asarray(array, dtype)
    values = _cast(array, dtype)
    expected = None
    if not np.all(np.isfinite(values)):
        expected = "a finite number" if ndim == 0 else "finite"
    elif minimum is not None and np.any(values < minimum):
        expected = f"at least {minimum}"
    elif maximum is not None and np.any(values > maximum):
        expected = f"at most {maximum}"
    elif positive and np.any(values <= 0):
        expected = "positive"
    elif increasing and np.any(np.diff(values) <= 0):
        expected = "strictly increasing"
    if expected is not None:
        got = array if array.ndim else array[()]
        raise ValueError(f"{name} must be {expected}; got {got} (in {values.dtype}).")
    return array if _stays(array, values) else values


def scalar(
    name: str,
    x: ArrayLike,
    dtype: DTypeLike,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    positive: bool = False,
) -> Array | np.ndarray:
    """`x` as a scalar of `dtype`; not NaN, and in range, where that can be seen."""
    return numbers(name, x, dtype, ndim=0, minimum=minimum, maximum=maximum, positive=positive)


def integer(name: str, x: object, *, minimum: int) -> int:
    """`x` as a Python integer of at least `minimum`."""
    try:
        number = minimum - 1 if isinstance(x, (bool, np.bool_)) else operator.index(x)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = minimum - 1
    if number < minimum:
        kind = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
        raise ValueError(f"{name} must be {kind}; got {shown(x)}.")
    return number


def positive_int(name: str, x: object) -> int:
    """`x` as a Python integer of at least one."""
    return integer(name, x, minimum=1)


def pair(name: str, x: object) -> tuple[int, int]:
    """`x` as a pair of positive integers, the shape of a matrix."""
    if not isinstance(x, (tuple, list)) or len(x) != 2:
        raise ValueError(f"{name} must be a pair (n, p) of positive integers; got {shown(x)}.")
    n, p = (positive_int(f"{name}[{i}]", d) for i, d in enumerate(x))
    return n, p


def widths(name: str, x: Sequence[int]) -> tuple[int, ...]:
    """`x` as a tuple of two or more Python integers of at least one."""
    listed = isinstance(x, Sequence) or (isinstance(x, (np.ndarray, Array)) and x.ndim > 0)
    if not listed or len(x) < 2:
        raise ValueError(
            f"{name} must have at least two entries (d_0, ..., d_N), which are positive integers; "
            f"got {shown(x)}."
        )
    return tuple(positive_int(f"{name}[{j}]", d) for j, d in enumerate(x))


def end_to_end(name: str, W: ArrayLike, rows: int) -> Array:
    """`W` as a real floating matrix with as many rows as the target has."""
    W = real_array(name, W, ndim=2)
    if W.shape[0] != rows:
        raise ValueError(f"{name} must have {rows} rows, as the target has; got shape {W.shape}.")
    return W


def covariance_matrix(name: str, Sigma: ArrayLike | None) -> Array:
    """`Sigma`, symmetric to rounding; refused where it is seen not to be a covariance."""
    return covariance_matrices(name, real_array(name, Sigma, ndim=2))


def covariance_matrices(name: str, Sigma: ArrayLike | None) -> Array:
    """One or a batch of covariances, each symmetric to rounding; refused as one would be."""
    Sigma = symmetric_matrices(name, Sigma)
    if not is_concrete(Sigma) or Sigma.size == 0:
        return Sigma
    seen, rounding, largest = _magnitudes(Sigma)
    shift = rounding / 2 * np.eye(Sigma.shape[-1])
    try:  # a fifth of the time of eigenvalues
        np.linalg.cholesky(seen / np.where(largest > 0, largest, 1) + shift)
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(seen)
        least, most = values[..., 0].ravel(), values[..., -1].ravel()
        if np.any(least < -rounding * np.abs(most)):
            worst = np.argmin(least + rounding * np.abs(most))
            raise ValueError(
                f"{name} must be positive semi-definite; its smallest eigenvalue is "
                f"{least[worst]:.6g} (largest {most[worst]:.6g})."
            ) from None
    return Sigma


def symmetric_matrices(name: str, Sigma: ArrayLike | None) -> Array:
    """One or a batch of matrices, each symmetric to rounding."""
    Sigma = real_array(name, Sigma)
    if Sigma.ndim < 2 or Sigma.shape[-2] != Sigma.shape[-1] or Sigma.shape[-1] == 0:
        raise ValueError(f"{name} must be square and not empty; got shape {Sigma.shape}.")
    if not is_concrete(Sigma) or Sigma.size == 0:
        return Sigma
    seen, rounding, largest = _magnitudes(Sigma)
    asymmetries = np.max(np.abs(seen - np.swapaxes(seen, -2, -1)), axis=(-2, -1), keepdims=True)
    if np.any(asymmetries > rounding * largest):
        worst = np.unravel_index(np.argmax(asymmetries - rounding * largest), largest.shape)
        raise ValueError(
            f"{name} must be symmetric; its entries differ from those of its transpose "
            f"by up to {asymmetries[worst]:.3g}. Use ({name} + {name}.T) / 2 if that is rounding."
        )
    return Sigma


def _magnitudes(Sigma: Array) -> tuple[np.ndarray, float, np.ndarray]:
    """The matrices, what rounding may do to their entries, relatively, and the largest of these."""
    seen = np.asarray(Sigma)
    rounding = 10 * seen.shape[-1] * float(jnp.finfo(Sigma.dtype).eps)
    return seen, rounding, np.max(np.abs(seen), axis=(-2, -1), keepdims=True)


def parameters(name: str, tree: Any) -> Any:
    """The pytree with real floating arrays of one dtype for leaves, finite where they are seen."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    arrays = [real_array(name + jax.tree_util.keystr(path), x) for path, x in leaves]
    found = sorted({str(array.dtype) for array in arrays})
    if len(found) != 1:
        got = " and ".join(found) or f"no array in {shown(tree)}"
        raise ValueError(f"{name} must hold arrays of one dtype; got {got}.")
    return jax.tree.unflatten(structure, arrays)


def floating_dtype(name: str, dtype: DTypeLike) -> np.dtype:
    """The dtype to compute in: `float` is jax's default one, others have to be meant."""
    if dtype is float:
        return np.dtype(jnp.result_type(float))
    try:
        asked = None if dtype is None else np.dtype(dtype)
    except TypeError:
        asked = None
    if asked is None or asked not in _FLOATS:
        raise ValueError(
            f"{name} must be float32, float64 or float, the default of jax; got {shown(dtype)}."
        )
    if jax.dtypes.canonicalize_dtype(asked) != asked:
        raise ValueError(
            f"{name} must be float32 or float, because jax runs without 64-bit types; got float64. "
            'Set JAX_ENABLE_X64=1 or call jax.config.update("jax_enable_x64", True) first.'
        )
    return asked


def random_key(name: str, x: object) -> None:
    """Refuse what is not one random key, typed or raw."""
    typed = isinstance(x, Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and x.ndim == 0
    raw = isinstance(x, (Array, np.ndarray)) and x.dtype == np.uint32 and x.ndim == 1
    if not (typed or raw):
        raise ValueError(
            f"{name} must be one random key, such as jax.random.key(0); got {shown(x)}."
        )


def choice(name: str, x: object, choices: Collection[str]) -> None:
    """Refuse a name that is not among the choices."""
    if not isinstance(x, str) or x not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {shown(x)}.")


def instance(name: str, x: object, kind: Any, expected: str) -> None:
    """Refuse an object of another kind; the class itself is one."""
    if not isinstance(x, kind):
        raise ValueError(f"{name} must be {expected}; got {shown(x)}.")


def function(name: str, f: object, expected: str) -> None:
    """Refuse what cannot be called; a class is taken for a slip."""
    if not callable(f) or isinstance(f, type):
        raise ValueError(f"{name} must be a function of {expected}; got {shown(f)}.")


def takes(name: str, f: Any, expected: str, /, *arguments: Any, **keywords: Any) -> None:
    """Refuse a function that does not take such arguments, without a call."""
    try:
        signature = inspect.signature(f)
    except ValueError:  # some of those written in C do not tell
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a function of {expected}; {shown(f)} takes {signature}: {error}."
        ) from None


def traced_numbers(tree: Any, dtype: DTypeLike) -> Any:
    """The pytree with numbers of Python and numpy turned into arrays: new values, same program."""

    def as_array(x: Any) -> Any:
        if isinstance(x, (np.ndarray, np.generic, int, float)) and not isinstance(x, bool):
            return jax.device_put(np.asarray(x, dtype if np.ndim(x) == 0 else None))
        return x

    return jax.tree.map(as_array, tree)


def _cast(array: Array | np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """The values in a dtype; too large ones become infinite, and are refused as that."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(jax.dtypes.canonicalize_dtype(dtype), copy=False)


def _stays(array: Array | np.ndarray, values: np.ndarray) -> TypeGuard[Array]:
    """Whether the array is one of jax already, and of the dtype and strength of the values."""
    return isinstance(array, Array) and array.dtype == values.dtype and not array.weak_type
