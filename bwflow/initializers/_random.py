"""Random layers, drawn one by one."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, PRNGKeyArray

from bwflow import _checks
from bwflow._types import Factors, Initializer, Widths

_by_variance = partial(jax.nn.initializers.variance_scaling, in_axis=-1, out_axis=-2)


def gaussian(std: ArrayLike | None = None, *, gamma: ArrayLike = 1.0) -> Initializer:
    """Independent entries `N(0, std^2)`; by default `std^2 = d_{j-1}^{-gamma}`, layer by layer.

    Any finite number may be `gamma`, and it counts only where `std` is not given. With 1 a layer
    keeps mean squares; a larger `gamma` makes wide networks start small.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> factors = bw.initializers.gaussian(0.1)(jax.random.key(0), (2, 3, 4))
    >>> [W.shape for W in factors]
    [(3, 2), (4, 3)]
    """
    if std is not None:
        return _independent(jax.nn.initializers.normal(magnitude("std", std)))
    _checks.scalar("gamma", gamma, float)

    def draw(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike) -> Array:
        variance = jnp.asarray(shape[1], dtype) ** -jnp.asarray(gamma, dtype)
        return jnp.sqrt(variance) * jax.random.normal(key, shape, dtype)

    return _independent(draw)


def uniform(bound: ArrayLike | None = None) -> Initializer:
    """Independent entries uniform on `(-bound, bound)`; by default `bound^2 = 3 / d_{j-1}`.

    The variance is `bound^2 / 3`, by default that of `gaussian`.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> (W,) = bw.initializers.uniform(0.5)(jax.random.key(0), (10, 10))
    >>> bool((abs(W) <= 0.5).all())
    True
    """
    if bound is None:
        return _independent(_by_variance(1.0, "fan_in", "uniform"))
    bound = magnitude("bound", bound)

    def draw(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike) -> Array:
        return jnp.asarray(bound, dtype) * jax.random.uniform(key, shape, dtype, -1.0, 1.0)

    return _independent(draw)


def xavier_normal(gain: ArrayLike = 1.0) -> Initializer:
    """Gaussian entries of variance `2 gain^2 / (d_{j-1} + d_j)` (Glorot and Bengio 2010).

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> (W,) = bw.initializers.xavier_normal()(jax.random.key(0), (300, 100))
    >>> print(round(float(W.var()), 3))
    0.005
    """
    return _independent(_by_variance(magnitude("gain", gain) ** 2, "fan_avg", "normal"))


def xavier_uniform(gain: ArrayLike = 1.0) -> Initializer:
    """Uniform on `(-b, b)` with `b^2 / 3 = 2 gain^2 / (d_{j-1} + d_j)`, the Xavier variance.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> (W,) = bw.initializers.xavier_uniform()(jax.random.key(0), (4, 2))
    >>> bool((abs(W) <= 1).all())
    True
    """
    return _independent(_by_variance(magnitude("gain", gain) ** 2, "fan_avg", "uniform"))


def kaiming_normal(gain: ArrayLike = 2**0.5) -> Initializer:
    """Gaussian entries of variance `gain^2 / d_{j-1}` (He et al., arXiv 1502.01852).

    Their gain is made for rectifiers; a linear network keeps mean squares with `gain = 1`.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> (W,) = bw.initializers.kaiming_normal()(jax.random.key(0), (200, 100))
    >>> print(round(float(W.var()), 2))
    0.01
    """
    return _independent(_by_variance(magnitude("gain", gain) ** 2, "fan_in", "normal"))


def kaiming_uniform(gain: ArrayLike = 2**0.5) -> Initializer:
    """Uniform on `(-b, b)` with `b^2 / 3 = gain^2 / d_{j-1}`, the Kaiming variance.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> (W,) = bw.initializers.kaiming_uniform()(jax.random.key(0), (6, 3))
    >>> bool((abs(W) <= 1).all())
    True
    """
    return _independent(_by_variance(magnitude("gain", gain) ** 2, "fan_in", "uniform"))


def orthogonal(scale: ArrayLike = 1.0) -> Initializer:
    """Layers `scale Q` with `Q` uniform among the matrices of orthonormal rows or columns.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> (W,) = bw.initializers.orthogonal(2.0)(jax.random.key(0), (5, 2))
    >>> abs(W @ W.T).round(4).tolist()
    [[4.0, 0.0], [0.0, 4.0]]
    """
    return _independent(jax.nn.initializers.orthogonal(magnitude("scale", scale)))


def identity(scale: ArrayLike = 1.0) -> Initializer:
    """Layers `scale I`, rectangular where the widths are; the key is not used.

    Examples
    --------
    >>> import jax, bwflow as bw
    >>> bw.initializers.identity(0.5)(jax.random.key(0), (2, 3))[0].tolist()
    [[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]
    """
    scale = magnitude("scale", scale)
    return _independent(
        lambda _, shape, dtype: jnp.asarray(scale, dtype) * jnp.eye(*shape, dtype=dtype)
    )


def magnitude(name: str, x: ArrayLike) -> ArrayLike:
    """`x` itself if it is a scalar and not negative; it is cast where it meets the layers."""
    _checks.scalar(name, x, float, minimum=0.0)
    return x


def layout(key: PRNGKeyArray, widths: Sequence[int], dtype: DTypeLike) -> tuple[Widths, DTypeLike]:
    """Widths as a tuple and the dtype that will be used, or a refusal."""
    _checks.random_key("key", key)
    return _checks.widths("widths", widths), _checks.floating_dtype("dtype", dtype)


def _independent(draw: Callable[..., Array]) -> Initializer:
    """Layers drawn one by one, each with a key of its own."""

    def initialize(
        key: PRNGKeyArray, widths: Sequence[int] = (), dtype: DTypeLike = float
    ) -> Factors:
        widths, dtype = layout(key, widths, dtype)
        keys = jax.random.split(key, len(widths) - 1)
        shapes = zip(widths[1:], widths, strict=False)
        return tuple(draw(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))

    return initialize
