"""The vocabulary of the library: what the words in the signatures stand for."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Scalar: TypeAlias = Float[Array, ""]
Factors: TypeAlias = tuple[Float[Array, "_ _"], ...]  # (W_1, ..., W_N), W = W_N ... W_1
Widths: TypeAlias = tuple[int, ...]  # (d_0, ..., d_N); layer j maps d_{j-1} to d_j
Params: TypeAlias = PyTree[Float[Array, "..."]]  # what a factorization assembles into W
Grams: TypeAlias = tuple[tuple[Array | None, Array | None], ...]  # per leaf: left, right; None is I
Loss: TypeAlias = Callable[[Float[Array, "n p"]], Scalar]  # of the end-to-end matrix; a pytree
Initializer: TypeAlias = Callable[..., Factors]  # (key, widths, dtype=...) -> factors
Probe: TypeAlias = Callable[[Any, Any], Mapping[str, Array]]  # (loss, params) -> named arrays

__all__ = [
    "Factors",
    "Grams",
    "Initializer",
    "Loss",
    "PRNGKeyArray",
    "Params",
    "Probe",
    "Scalar",
    "Widths",
]
