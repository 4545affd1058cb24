"""Linear measurements of matrices: `operator(L, R)` is the vector of `<A_i, L R^T>`.

Operators have `shape` (`n`, `p`), `num_measurements` (`m`), `norms` (the `||A_i||`; in `Gaussian`
what they are near) and `adjoint(v)`, the matrix `sum_i v_i A_i` as a lineax operator. None but
`Dense` stores the `A_i`. `Gaussian` and `Cosine` are scaled such that `||A(M)||^2` is about
`||M||^2`. All are differentiable in the factors.

`Dense` and `Entries` take a matrix by its entries, too: `operator.of_matrix(M)`. For others that is
`operator(M, I)`.

`Dense`, `Entries` and `Cosine` have `squared_norm`, the largest eigenvalue of `A A^*`; the others
have none, since it would cost more than many gradients.

Raises
------
ValueError
    By constructors, if an argument has the wrong shape, is not finite, or an index is out of range.
    By calls, if the factors do not fit `shape` or each other, or `v` does not have `m` entries.
"""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from bwflow import _checks
from bwflow.linalg import full_precision

_CHUNK = 2**20  # entries made or gathered at a time


class Dense(eqx.Module):
    """Stored matrices `A_i`, the rows of an array `m x n x p`.

    Cost: two products with the array per gradient, and its memory.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Dense(jnp.eye(4).reshape(4, 2, 2))
    >>> operator(jnp.ones((2, 1)), 2.0 * jnp.ones((2, 1))).tolist()
    [2.0, 2.0, 2.0, 2.0]
    """

    matrices: Float[Array, "m n p"]

    def __init__(self, matrices: ArrayLike):
        self.matrices = _checks.real_array("matrices", matrices, ndim=3)
        if 0 in self.matrices.shape:
            raise ValueError(f"matrices must not be empty; got shape {self.matrices.shape}.")

    @property
    def shape(self) -> tuple[int, int]:
        _, n, p = self.matrices.shape
        return n, p

    @property
    def num_measurements(self) -> int:
        return self.matrices.shape[0]

    @property
    def norms(self) -> Float[Array, " m"]:
        return jnp.linalg.norm(self._flat, axis=1)

    @full_precision
    def __call__(self, left: Array, right: Array) -> Float[Array, " m"]:
        left, right = _factors(self, left, right)
        return self.of_matrix(left @ right.T)

    @full_precision
    def of_matrix(self, M: Float[Array, "n p"]) -> Float[Array, " m"]:
        """Measurements of a matrix that is given by its entries."""
        return self._flat @ _matrix(self, M).ravel()

    @full_precision
    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        return lx.MatrixLinearOperator((_vector(self, v) @ self._flat).reshape(self.shape))

    @property
    @full_precision
    def squared_norm(self) -> Float[Array, ""]:
        """`||A||^2`, from the smaller one of the two Grams: `min(m, n p)^2 max(m, n p)`."""
        A = self._flat if self.num_measurements <= math.prod(self.shape) else self._flat.T
        return jnp.linalg.eigvalsh(A @ A.T)[-1]

    @property
    def _flat(self) -> Array:
        # A matrix, so that many starts at once are one product of matrices.
        return self.matrices.reshape(self.num_measurements, -1)


class Gaussian(eqx.Module):
    """Independent entries `N(0, 1/m)`, drawn again whenever they are needed and never stored.

    `E ||A(M)||^2 = ||M||^2`. Each precision has numbers of its own. Cost: `m n p` random numbers
    per value and as many more per gradient; memory `n p` and a block of them.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Gaussian(jax.random.key(0), 500, (3, 3))
    >>> y = operator(jnp.eye(3), jnp.eye(3))
    >>> y.shape, bool(abs(jnp.sum(y**2) / 3 - 1) < 0.3)
    ((500,), True)
    """

    key: PRNGKeyArray
    num_measurements: int = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, num_measurements: int, shape: tuple[int, int]):
        _checks.random_key("key", key)
        self.key = key
        self.num_measurements = _checks.positive_int("num_measurements", num_measurements)
        self.shape = _checks.pair("shape", shape)

    @property
    def norms(self) -> Float[Array, " m"]:
        return jnp.full(
            self.num_measurements, math.sqrt(math.prod(self.shape) / self.num_measurements)
        )

    @full_precision
    def __call__(self, left: Array, right: Array) -> Float[Array, " m"]:
        left, right = _factors(self, left, right)
        M = (left @ right.T).ravel()
        found = self._over_blocks(lambda A, _: (None, A @ M), M.dtype)[1]
        return found.ravel()[: self.num_measurements]

    @full_precision
    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v = _vector(self, v)
        blocks, size = self._blocks
        weights = jnp.pad(v, (0, blocks * size - v.size)).reshape(blocks, size)
        start = jnp.zeros(math.prod(self.shape), v.dtype)
        total, _ = self._over_blocks(lambda A, s, w: (s + w @ A, None), v.dtype, start, weights)
        return lx.MatrixLinearOperator(total.reshape(self.shape))

    @property
    def _blocks(self) -> tuple[int, int]:
        size = max(1, min(self.num_measurements, _CHUNK // math.prod(self.shape)))
        return -(-self.num_measurements // size), size

    def _over_blocks(self, use: Any, dtype: Any, start: Any = None, weights: Any = None) -> Any:
        """A scan over blocks of rows, which are drawn again on the way back."""
        blocks, size = self._blocks

        @jax.checkpoint
        def step(carry: Any, inputs: tuple) -> Any:
            i, *rest = inputs
            A = jax.random.normal(
                jax.random.fold_in(self.key, i), (size, math.prod(self.shape)), dtype
            )
            return use(A / self.num_measurements**0.5, carry, *rest)

        inputs = (jnp.arange(blocks), *(() if weights is None else (weights,)))
        return lax.scan(step, start, inputs)


class RankOne(eqx.Module):
    """`A_i = u_i v_i^T`, with `u_i` and `v_i` the rows of two matrices; `v_i = u_i` by default.

    Cost: `m (n + p) r`; no `n x p` matrix is formed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.RankOne(jnp.array([[1.0, 2.0]]))
    >>> operator(jnp.eye(2), jnp.eye(2)).tolist()
    [5.0]
    """

    left: Float[Array, "m n"]
    right: Float[Array, "m p"]

    def __init__(self, left: ArrayLike, right: ArrayLike | None = None):
        self.left = _checks.real_array("left", left, ndim=2)
        self.right = self.left if right is None else _checks.real_array("right", right, ndim=2)
        if 0 in self.left.shape or self.left.shape[0] != self.right.shape[0]:
            raise ValueError(
                "left and right must be non-empty matrices with as many rows; "
                f"got shapes {self.left.shape} and {self.right.shape}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[1], self.right.shape[1]

    @property
    def num_measurements(self) -> int:
        return self.left.shape[0]

    @property
    def norms(self) -> Float[Array, " m"]:
        return jnp.linalg.norm(self.left, axis=1) * jnp.linalg.norm(self.right, axis=1)

    @full_precision
    def __call__(self, left: Array, right: Array) -> Float[Array, " m"]:
        left, right = _factors(self, left, right)
        # Transposed: XLA's CPU backend (jaxlib 0.10.2) sums `vectors @ constant` wrongly.
        return jnp.sum((left.T @ self.left.T) * (right.T @ self.right.T), axis=0)

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v = _vector(self, v)

        @full_precision
        def product(x: Array) -> Array:
            return self.left.T @ (v * (self.right @ x))

        return lx.FunctionLinearOperator(product, jax.ShapeDtypeStruct((self.shape[1],), v.dtype))


class Entries(eqx.Module):
    """Observed entries: `<A_i, M> = M[rows[i], columns[i]]`.

    Cost: `m r`; memory `(n + p) r + m` beside a block of gathered rows, also for gradients and for
    products of `adjoint(v)` with many vectors at once.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Entries([0, 1], [1, 1], (2, 2))
    >>> operator(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0]])).tolist()
    [4.0, 8.0]
    """

    rows: Int[Array, " m"]
    columns: Int[Array, " m"]
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        rows: ArrayLike | Sequence[int],
        columns: ArrayLike | Sequence[int],
        shape: tuple[int, int],
    ):
        self.shape = _checks.pair("shape", shape)
        self.rows = _indices("rows", rows, self.shape[0])
        self.columns = _indices("columns", columns, self.shape[1])
        if self.rows.shape != self.columns.shape:
            raise ValueError(
                "rows and columns must have as many entries; "
                f"got {self.rows.size} and {self.columns.size}."
            )

    @property
    def num_measurements(self) -> int:
        return self.rows.size

    @property
    def norms(self) -> Float[Array, " m"]:
        return jnp.ones(self.num_measurements)

    @property
    def squared_norm(self) -> Int[Array, ""]:
        """`||A||^2`: how often the entry observed most often is observed; 1 without repetition."""
        order = jnp.lexsort((self.columns, self.rows))
        i, j = self.rows[order], self.columns[order]
        first = jnp.append(True, (i[1:] != i[:-1]) | (j[1:] != j[:-1]))
        return jnp.max(jnp.zeros_like(i).at[jnp.cumsum(first) - 1].add(1))

    def __call__(self, left: Array, right: Array) -> Float[Array, " m"]:
        left, right = _factors(self, left, right)
        padded = self._in_blocks(_CHUNK // max(1, left.shape[1]), self.rows, self.columns)

        @jax.checkpoint
        def step(_: None, block: list[Array]) -> tuple[None, Array]:
            i, j = block
            return None, jnp.sum(left[i] * right[j], axis=1)

        return lax.scan(step, None, padded)[1].ravel()[: self.rows.size]

    def of_matrix(self, M: Float[Array, "n p"]) -> Float[Array, " m"]:
        """Entries of a matrix that is given by them."""
        return _matrix(self, M)[self.rows, self.columns]

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v, (n, p) = _vector(self, v), self.shape
        # A product is made of many vectors at once where it is mapped, hence of fewer entries.
        padded = self._in_blocks(_CHUNK // 64, self.rows, self.columns, v)

        def product(x: Array) -> Array:
            def step(total: Array, block: list[Array]) -> tuple[Array, None]:
                i, j, w = block
                return total.at[i].add(w * x[j]), None

            return lax.scan(step, jnp.zeros(n, v.dtype), padded)[0]

        return lx.FunctionLinearOperator(product, jax.ShapeDtypeStruct((p,), v.dtype))

    def _in_blocks(self, size: int, *arrays: Array) -> list[Array]:
        """What belongs to the entries, `size` of them in a row, and zeros at the end."""
        size = max(1, min(self.rows.size, size))
        blocks = -(-self.rows.size // size)
        return [jnp.pad(x, (0, blocks * size - x.size)).reshape(blocks, size) for x in arrays]


class Cosine(eqx.Module):
    """Entries, drawn without repetition, of the cosine transform of `M` with random signs.

    `A(M) = sqrt(n p / m) (C (D * M) C'^T)[drawn]` with orthonormal `C`, `C'` and signs `D`, so that
    `E ||A(M)||^2 = ||M||^2`. Cost: a fast transform, `n p log(n p)`, and `n p` memory.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> operator = bw.operators.Cosine(jax.random.key(0), 9, (3, 3))
    >>> y = operator(jnp.eye(3), jnp.eye(3))
    >>> round(float(jnp.sum(y**2)), 4)
    3.0
    """

    signs: Float[Array, "n p"]
    drawn: Int[Array, " m"]

    def __init__(self, key: PRNGKeyArray, num_measurements: int, shape: tuple[int, int]):
        _checks.random_key("key", key)
        n, p = _checks.pair("shape", shape)
        m = _checks.positive_int("num_measurements", num_measurements)
        if m > n * p:
            raise ValueError(f"num_measurements must be at most n p = {n * p}; got {m}.")
        one, two = jax.random.split(key)
        self.signs = jax.random.rademacher(one, (n, p), jnp.result_type(float))
        self.drawn = jax.random.choice(two, n * p, (m,), replace=False)

    @property
    def shape(self) -> tuple[int, int]:
        n, p = self.signs.shape
        return n, p

    @property
    def num_measurements(self) -> int:
        return self.drawn.size

    @property
    def norms(self) -> Float[Array, " m"]:
        return jnp.full(self.num_measurements, self._scale)

    @property
    def squared_norm(self) -> float:
        """`||A||^2 = n p / m`: the measurements are orthogonal."""
        return self.signs.size / self.num_measurements

    @full_precision
    def __call__(self, left: Array, right: Array) -> Float[Array, " m"]:
        left, right = _factors(self, left, right)
        M = self.signs.astype(left.dtype) * (left @ right.T)
        return self._scale * jax.scipy.fft.dctn(M, norm="ortho").ravel()[self.drawn]

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v = _vector(self, v)
        placed = jnp.zeros(self.signs.size, v.dtype).at[self.drawn].set(v).reshape(self.shape)
        found = jax.scipy.fft.idctn(placed, norm="ortho")
        return lx.MatrixLinearOperator(self._scale * self.signs.astype(v.dtype) * found)

    @property
    def _scale(self) -> float:
        return math.sqrt(self.squared_norm)


def _indices(name: str, x: ArrayLike | Sequence[int], size: int) -> Array:
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


def _factors(operator: Any, left: Array, right: Array) -> tuple[Array, Array]:
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


def _matrix(operator: Any, M: ArrayLike) -> Array:
    M = _checks.real_array("M", M, ndim=2, finite=False)
    if M.shape != operator.shape:
        raise ValueError(f"M must have shape {operator.shape}, as the operator has; got {M.shape}.")
    return M


def _vector(operator: Any, v: ArrayLike) -> Array:
    v = _checks.real_array("v", v, ndim=1, finite=False)
    if v.size != operator.num_measurements:
        raise ValueError(
            f"v must have {operator.num_measurements} entries, one for each measurement; "
            f"got {v.size}."
        )
    return v
