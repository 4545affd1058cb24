"""Measurements that are kept: matrices, pairs of vectors, indices."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from bwflow import _checks
from bwflow.linalg import full_precision
from bwflow.operators import _arguments


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
        left, right = _arguments.factors(self, left, right)
        return self.of_matrix(left @ right.T)

    @full_precision
    def of_matrix(self, M: Float[Array, "n p"]) -> Float[Array, " m"]:
        """Measurements of a matrix that is given by its entries."""
        return self._flat @ _arguments.matrix(self, M).ravel()

    @full_precision
    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        return lx.MatrixLinearOperator(
            (_arguments.vector(self, v) @ self._flat).reshape(self.shape)
        )

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
        left, right = _arguments.factors(self, left, right)
        # Transposed: XLA's CPU backend (jaxlib 0.10.2) sums `vectors @ constant` wrongly.
        return jnp.sum((left.T @ self.left.T) * (right.T @ self.right.T), axis=0)

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v = _arguments.vector(self, v)

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
        self.rows = _arguments.indices("rows", rows, self.shape[0])
        self.columns = _arguments.indices("columns", columns, self.shape[1])
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
        left, right = _arguments.factors(self, left, right)
        padded = self._in_blocks(_arguments.CHUNK // max(1, left.shape[1]), self.rows, self.columns)

        @jax.checkpoint
        def step(_: None, block: list[Array]) -> tuple[None, Array]:
            i, j = block
            return None, jnp.sum(left[i] * right[j], axis=1)

        return lax.scan(step, None, padded)[1].ravel()[: self.rows.size]

    def of_matrix(self, M: Float[Array, "n p"]) -> Float[Array, " m"]:
        """Entries of a matrix that is given by them."""
        return _arguments.matrix(self, M)[self.rows, self.columns]

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v, (n, p) = _arguments.vector(self, v), self.shape
        # A product is made of many vectors at once where it is mapped, hence of fewer entries.
        padded = self._in_blocks(_arguments.CHUNK // 64, self.rows, self.columns, v)

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
