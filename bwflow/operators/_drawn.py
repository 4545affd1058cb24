"""Measurements that are drawn from a key."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bwflow import _checks
from bwflow.linalg import full_precision
from bwflow.operators import _arguments


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
        left, right = _arguments.factors(self, left, right)
        M = (left @ right.T).ravel()
        found = self._over_blocks(lambda A, _: (None, A @ M), M.dtype)[1]
        return found.ravel()[: self.num_measurements]

    @full_precision
    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v = _arguments.vector(self, v)
        blocks, size = self._blocks
        weights = jnp.pad(v, (0, blocks * size - v.size)).reshape(blocks, size)
        start = jnp.zeros(math.prod(self.shape), v.dtype)
        total, _ = self._over_blocks(lambda A, s, w: (s + w @ A, None), v.dtype, start, weights)
        return lx.MatrixLinearOperator(total.reshape(self.shape))

    @property
    def _blocks(self) -> tuple[int, int]:
        size = max(1, min(self.num_measurements, _arguments.CHUNK // math.prod(self.shape)))
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
        left, right = _arguments.factors(self, left, right)
        M = self.signs.astype(left.dtype) * (left @ right.T)
        return self._scale * jax.scipy.fft.dctn(M, norm="ortho").ravel()[self.drawn]

    def adjoint(self, v: Float[Array, " m"]) -> lx.AbstractLinearOperator:
        v = _arguments.vector(self, v)
        placed = jnp.zeros(self.signs.size, v.dtype).at[self.drawn].set(v).reshape(self.shape)
        found = jax.scipy.fft.idctn(placed, norm="ortho")
        return lx.MatrixLinearOperator(self._scale * self.signs.astype(v.dtype) * found)

    @property
    def _scale(self) -> float:
        return math.sqrt(self.squared_norm)
