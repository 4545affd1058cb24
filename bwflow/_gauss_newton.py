"""Damped Gauss-Newton steps of all layers of a deep network at once, by conjugate gradients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bwflow._types import Factors
from bwflow.factors import partial_products
from bwflow.linalg import after, full_precision, positive_power, range_mask

Sides: TypeAlias = list[Array | None]  # `None` is an identity


class _Basis(NamedTuple):
    """Eigenvectors and square roots of eigenvalues of a Gram; no vectors for an identity."""

    vectors: Array | None
    roots: Array


class Model(NamedTuple):
    """How a network answers to small steps of its layers, in eigenbases of their Grams.

    Steps `D_j` change what the loss sees, `W` or `W W^T`, by `J D = sum_j A_j D_j C_j^T`, the
    latter by that and its transpose: `A_j = W_{>j}`, and `C_j = W_{<j}^T` or `W W_{<j}^T`. Lists
    of layers in the bases hold `U_j^T D_j V_j`.
    """

    factors: Factors
    covariance: bool
    left: list[_Basis]
    right: list[_Basis]
    outward: Sides  # A_j U_j
    inward: Sides  # C_j V_j

    @property
    def shared_by(self) -> int:
        """How many layers share a mode of what the loss sees."""
        return len(self.factors) * (2 if self.covariance else 1)

    @full_precision
    def rotated(self, layers: Factors) -> list[Array]:
        """Layers in the bases, without the modes at the rounding of the largest."""
        return [
            jnp.where(p > 0, _between(D, left.vectors, right.vectors), 0)
            for D, left, right, p in zip(layers, self.left, self.right, self._scales, strict=True)
        ]

    @full_precision
    def restored(self, cores: list[Array]) -> list[Array]:
        """The layers themselves."""
        sides = zip(cores, self.left, self.right, strict=True)
        return [_around(x, left.vectors, right.vectors) for x, left, right in sides]

    @full_precision
    def pulled_back(self, E: Array) -> list[Array]:
        """`J^T E` in the bases."""
        E = E + E.T if self.covariance else E
        sides = zip(self.outward, self.inward, self._scales, strict=True)
        return [jnp.where(p > 0, _between(E, A, C), 0) for A, C, p in sides]

    @full_precision
    def changed(self, cores: list[Array]) -> Array:
        """`J D` of layers in the bases."""
        sides = zip(cores, self.outward, self.inward, strict=True)
        E = jnp.sum(jnp.stack([_around(x, A, C) for x, A, C in sides]), axis=0)
        return E + E.T if self.covariance else E

    def solution(self, found: list[Array], dampings: Array, iterations: int) -> list[Array]:
        """About the `D` of `(J^T J + d_j |A_j| (x) |C_j|) D = found`, in the bases.

        `|A| = (A^T A)^{1/2}`. Conjugate gradients, preconditioned by the same with all modes shared
        by all layers and no coupling of layers.
        """
        scales, equal = self._scales, self.shared_by

        def product(cores: list[Array]) -> list[Array]:
            whole = self.pulled_back(self.changed(cores))
            return [
                y + d * p * x for x, y, p, d in zip(cores, whole, scales, dampings, strict=True)
            ]

        def divided(cores: list[Array]) -> list[Array]:
            return [
                jnp.where(p > 0, x / jnp.where(p > 0, p * (equal * p + d), 1), 0)
                for x, p, d in zip(cores, scales, dampings, strict=True)
            ]

        # Not jax's, which begins with a product with zero: products are what this costs.
        x, r = [jnp.zeros_like(b) for b in found], found
        p = z = divided(r)
        rz = inner(r, z)
        for i in range(iterations):
            Kp = product(p)
            curvature = inner(p, Kp)
            sound = curvature > 0
            step = jnp.where(sound, rz / jnp.where(sound, curvature, 1), 0)
            x = [a + step * b for a, b in zip(x, p, strict=True)]
            if i == iterations - 1:
                break
            r = [a - step * b for a, b in zip(r, Kp, strict=True)]
            z = divided(r)
            before, rz = rz, inner(r, z)
            turn = jnp.where(before > 0, rz / jnp.where(before > 0, before, 1), 0)
            p = [a + turn * b for a, b in zip(z, p, strict=True)]
        return x

    @full_precision
    def gradient(self, found: Factors) -> Array:
        """The gradient in `W` on the range of what is below the last layer, from those of layers.

        Of `g_N = G W_{<N}^T` it is `g_N V c^{-2} V^T W_{<N}`, for the modes whose `c` is far above
        rounding. A function of `W W^T` has no other gradient.
        """
        (V, roots), inward = self.right[-1], self.inward[-1]
        if V is None or inward is None:
            return found[-1]
        seen = roots > 10 * jnp.finfo(roots.dtype).eps ** 0.5 * jnp.max(roots)
        core = found[-1] @ V / jnp.where(seen, roots, jnp.inf)[None, :] ** 2
        return core @ inward.T

    @property
    def _scales(self) -> list[Array]:
        """Outer products of roots: by what a mode of a layer reaches what the loss sees."""
        sides = zip(self.left, self.right, strict=True)
        return [left.roots[:, None] * right.roots[None, :] for left, right in sides]


@full_precision
def model(factors: Factors, covariance: bool) -> Model:
    """The model at given layers.

    Cost: `2 (N - 1)` eigendecompositions of Grams (one more for a covariance), those of one shape
    in one batch. For networks deeper than five layers and in single precision they are singular
    value decompositions of products, for Grams have half the digits.
    """
    above, below = partial_products(factors)
    W = factors[-1] @ below[-1]
    A: Sides = [*above[:-1], None]
    C: Sides = [None, *(B.T for B in below[1:])]
    if covariance:
        C = [W @ B.T for B in below]
    by_svd = len(factors) > 5 or W.dtype == jnp.float32
    left, right = _paired(A, C, _by_svd if by_svd else _by_gram, factors)
    return Model(factors, covariance, left, right, _turned(A, left), _turned(C, right))


def _turned(products: Sides, bases: list[_Basis]) -> Sides:
    pairs = zip(products, bases, strict=True)
    return [None if M is None else _between(M, None, basis.vectors) for M, basis in pairs]


@full_precision
def inner(x: Sequence[Array], y: Sequence[Array]) -> Array:
    return jnp.sum(jnp.stack([jnp.vdot(a, b) for a, b in zip(x, y, strict=True)]))


def _between(X: Array, left: Array | None, right: Array | None) -> Array:
    """`left^T X right`; `None` is an identity."""
    X = X if left is None else left.T @ X
    return X if right is None else X @ right


def _around(X: Array, left: Array | None, right: Array | None) -> Array:
    """`left X right^T`."""
    X = X if left is None else left @ X
    return X if right is None else X @ right.T


def _paired(
    left: Sides,
    right: Sides,
    decompose: Callable[[Array], tuple[Array, Array]],
    factors: Factors,
) -> tuple[list[_Basis], list[_Basis]]:
    """Bases of `M^T M` of all products, those of one shape in one batch, one batch after another.

    See `linalg.after` for why they wait for each other.
    """
    products = [*left, *right]
    sides = [W.shape[i] for i in (0, 1) for W in factors]
    bases = [_Basis(None, jnp.ones(side, factors[0].dtype)) for side in sides]
    last = None
    for shape in sorted({M.shape for M in products if M is not None}):
        alike = {i: M for i, M in enumerate(products) if M is not None and M.shape == shape}
        stack = jnp.stack(list(alike.values()))
        if last is not None:
            stack = after(stack, last)
        vectors, roots = decompose(stack)
        last = roots
        for i, V, s in zip(alike, vectors, roots, strict=True):
            bases[i] = _Basis(V, s)
    return bases[: len(left)], bases[len(left) :]


def _by_gram(products: Float[Array, "b n k"]) -> tuple[Array, Array]:
    """Eigenvectors and roots, zero at the level of rounding; roots have half the digits."""
    values, vectors = jnp.linalg.eigh(jnp.swapaxes(products, -1, -2) @ products)
    return vectors, jnp.where(_kept(values, 100), positive_power(values, 0.5), 0)


def _by_svd(products: Float[Array, "b n k"]) -> tuple[Array, Array]:
    """The same with all digits."""
    k = products.shape[-1]
    _, roots, Vt = jnp.linalg.svd(products, full_matrices=products.shape[-2] < k)
    roots = jnp.where(_kept(roots, 10), roots, 0)
    return jnp.swapaxes(Vt, -1, -2), jnp.pad(roots, ((0, 0), (0, k - roots.shape[-1])))


_kept = jax.vmap(range_mask, in_axes=(0, None))
