"""Initial factors: factories of functions `init(key, widths, dtype=float) -> (W_1, ..., W_N)`.

The layers have shapes `(d_j, d_{j-1})` for `widths = (d_0, ..., d_N)`. Keys and scales may be
traced, widths and ranks may not. Everything is drawn in the dtype asked for, so that for a given
one the numbers are the same whether or not 64-bit types are enabled.

Raises
------
ValueError
    By every factory, if a scale is negative or not finite, or a rank is not a positive integer.
    By every `init`, if the widths are not at least two positive integers, or not what the rank or
    the target of its factory needs, or if the dtype is none of `float`, float32 and float64, or is
    float64 while jax runs without 64-bit types.
"""

from collections.abc import Callable

from bwflow._types import Initializer
from bwflow.initializers._random import gaussian as gaussian
from bwflow.initializers._random import identity as identity
from bwflow.initializers._random import kaiming_normal as kaiming_normal
from bwflow.initializers._random import kaiming_uniform as kaiming_uniform
from bwflow.initializers._random import orthogonal as orthogonal
from bwflow.initializers._random import uniform as uniform
from bwflow.initializers._random import xavier_normal as xavier_normal
from bwflow.initializers._random import xavier_uniform as xavier_uniform
from bwflow.initializers._robust import low_rank_plus_sparse as low_rank_plus_sparse
from bwflow.initializers._spectral import nora as nora
from bwflow.initializers._spectral import nystrom as nystrom
from bwflow.initializers._spectral import spectral as spectral
from bwflow.initializers._split import balanced as balanced
from bwflow.initializers._split import low_rank as low_rank
from bwflow.initializers._split import near_target as near_target
from bwflow.initializers._split import rebalanced as rebalanced
from bwflow.initializers._split import split_evenly as split_evenly

__all__ = [
    "balanced",
    "gaussian",
    "identity",
    "kaiming_normal",
    "kaiming_uniform",
    "low_rank",
    "low_rank_plus_sparse",
    "near_target",
    "nora",
    "nystrom",
    "orthogonal",
    "rebalanced",
    "spectral",
    "split_evenly",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
]

# What a specification may name: the factories that can be called without arguments.
_ENTRYWISE = (gaussian, uniform, xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform)
INITIALIZERS: dict[str, Callable[..., Initializer]] = {
    f.__name__: f for f in (*_ENTRYWISE, orthogonal, identity, balanced, rebalanced)
}
