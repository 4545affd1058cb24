"""Blocks of parameters that move one after another."""

import operator
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax

from bwflow import _checks
from bwflow._types import Grams, Params


class Block(eqx.Module):
    """A factorisation seen as one of a single block of its parameters, the others being fixed."""

    factorization: Any
    params: Params
    index: int = eqx.field(static=True)

    @property
    def views(self) -> tuple[str, ...]:
        return getattr(self.factorization, "views", ())

    def whole(self, block: Any) -> Params:
        """The parameters with this block in its place."""
        return eqx.tree_at(lambda params: params[self.index], self.params, block)

    def assemble(self, block: Any) -> Any:
        """End-to-end matrix of the parameters with this block."""
        return self.factorization.assemble(self.whole(block))

    def pullback(self, block: Any, G: Any) -> Any:
        """The block's part of the gradient."""
        return self.factorization.pullback(self.whole(block), G)[self.index]

    def grams(self, block: Any, *view: str) -> Grams:
        """Grams of the leaves of the block."""
        before = len(jax.tree.leaves(self.params[: self.index]))
        grams = self.factorization.grams(self.whole(block), *view)
        return grams[before : before + len(jax.tree.leaves(block))]


def checked_order(order: Sequence[int] | None, params: Params) -> tuple[int, ...] | None:
    """The order as a tuple, refused if it does not name every block of the parameters once."""
    if order is None:
        return None
    if not isinstance(params, (tuple, list)):
        raise ValueError(
            "order must be None for parameters without blocks, that is other than a tuple; "
            f"got {_checks.shown(order)} for {_checks.shown(params)}."
        )
    try:
        indices = tuple(operator.index(i) for i in order)
    except TypeError:
        indices = ()
    if sorted(indices) != list(range(len(params))):
        raise ValueError(
            f"order must name each of the {len(params)} blocks of the parameters once, from 0 on; "
            f"got {_checks.shown(order)}."
        )
    return indices
