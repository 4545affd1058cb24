"""What the estimators compute: numpy in and out, in the precision of the data.

Sizes are rounded up, and what is added are identities that count for nothing.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning

from bwflow import _checks, geometry
from bwflow._process import in_precision

# Parts of a covariance below that many roundings of its trace are rounding.
_ROUNDINGS = 100


def in_one_precision(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays in the lowest of their precisions: there all are semi-definite to rounding."""
    dtype = min((x.dtype for x in arrays), key=lambda dtype: dtype.itemsize)
    return tuple(x.astype(dtype, copy=False) for x in arrays)


def distances(
    X: Float[np.ndarray, "N n n"], S: Float[np.ndarray, "k n n"], *, squared: bool = False
) -> Float[np.ndarray, "N k"]:
    """Of every matrix to every one of `S`."""
    X, S = in_one_precision(X, S)
    with in_precision(str(X.dtype)):
        # One program for both.
        found = geometry.pairwise_distances(_grown(X, _rounded(len(X))), S, squared=True)
    squares = np.array(found)[: len(X)]
    return squares if squared else np.sqrt(squares)


def barycenters(
    X: Float[np.ndarray, "N n n"],
    groups: Int[np.ndarray, " N"],
    w: Float[np.ndarray, " N"],
    *,
    rank: int | None = None,
    rtol: float,
    max_steps: int,
) -> Float[np.ndarray, "k n n"]:
    """Barycenters of all groups in one call; each has some weight.

    Warns
    -----
    ConvergenceWarning
        If one of them was not found to its tolerance.
    """
    sets, set_weights = _stacked(X, groups, w)
    with in_precision(str(X.dtype)):
        reachable = 100 * float(np.finfo(X.dtype).eps)
        rtol = max(float(_checks.scalar("rtol", rtol, X.dtype, minimum=0.0)), reachable)
        mean = geometry.barycenter(
            sets, weights=set_weights, rank=rank, rtol=rtol, max_steps=max_steps, throw=False
        )
        failed = np.ravel(np.array(mean.result != geometry.RESULTS.successful))
        sentences = [geometry.RESULTS[_entry(mean.result, int(i))] for i in np.flatnonzero(failed)]
        S = symmetric(np.array(mean.covariance))
    if sentences:
        warnings.warn(
            f"{len(sentences)} of {len(S)} barycenters: {sentences[0]}",
            ConvergenceWarning,
            stacklevel=3,
        )
    return S


def _entry(result: geometry.RESULTS, i: int) -> geometry.RESULTS:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[i]), result)


def _stacked(
    X: np.ndarray, groups: np.ndarray, w: np.ndarray
) -> tuple[Float[np.ndarray, "k M n n"], Float[np.ndarray, "k M"]]:
    """One set for each group, filled up with what has no weight."""
    count, size = int(np.max(groups)) + 1, np.bincount(groups)
    M = max(8, 1 << (int(np.max(size)) - 1).bit_length())
    order = np.argsort(groups, kind="stable")
    rows = groups[order]
    columns = np.arange(len(X)) - (np.cumsum(size) - size)[rows]
    most = np.zeros(count)
    np.maximum.at(most, groups, w)
    sets = np.empty((count, M, *X.shape[1:]), X.dtype)
    sets[:] = np.eye(X.shape[1], dtype=X.dtype)
    sets[rows, columns] = X[order]
    set_weights = np.zeros((count, M), X.dtype)
    set_weights[rows, columns] = (w / most[groups])[order]
    return sets, set_weights


def lifts(
    F: Float[np.ndarray, "N n n"], X: Float[np.ndarray, "N n n"]
) -> Float[np.ndarray, "N n n"]:
    """Tangent vectors `Z` at factors; `(F + Z) (F + Z)^T` is what of `X` a map reaches."""
    size = _rounded(len(X))
    with in_precision(str(X.dtype)):
        return np.array(geometry.log(geometry.Factor(_grown(F, size)), _grown(X, size)))[: len(X)]


def maps(A: Float[np.ndarray, "k n n"], B: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "k n n"]:
    """Optimal maps to one matrix."""
    size = _rounded(len(A))
    with in_precision(str(A.dtype)):
        return np.array(geometry.transport_map(_grown(A, size), B))[: len(A)]


def eigenpairs(
    S: Float[np.ndarray, "*k n n"],
) -> tuple[Float[np.ndarray, "*k n"], Float[np.ndarray, "*k n n"]]:
    """Eigenvalues, with zeros for those that are rounding, and eigenvectors."""
    values, vectors = np.linalg.eigh(S)
    smallest = S.shape[-1] * np.finfo(S.dtype).eps * values[..., -1:]
    return np.where(values > smallest, values, 0), vectors


def stepped(
    S: Float[np.ndarray, "k n n"],
    totals: Float[np.ndarray, " k"],
    X: Float[np.ndarray, "N n n"],
    groups: Int[np.ndarray, " N"],
    w: Float[np.ndarray, " N"],
    *,
    growing: bool = True,
) -> tuple[Float[np.ndarray, "k n n"], Float[np.ndarray, " k"]]:
    """Running means after one more batch, and the weights they stand for.

    `F <- F + sum_i s_i Z_i` on factors of the means, with the shares `s_i` of the new weights in
    the total. What of `X_i` no map from the mean reaches comes in as an independent part, if ranks
    may grow; with a batch of one this is the geodesic at `s_1`.
    """
    S, X = in_one_precision(S, X)
    values, vectors = eigenpairs(S)
    F = vectors * np.sqrt(values)[:, None, :]
    totals = totals + np.bincount(groups, w, minlength=len(S))
    shares = (w / totals[groups]).astype(X.dtype)[:, None, None]
    Z = lifts(F[groups], X)
    reached = F[groups] + Z
    left = X - reached @ reached.swapaxes(1, 2)
    traces, most = (np.trace(x, axis1=1, axis2=2) for x in (left, X))
    real = (traces > _ROUNDINGS * np.finfo(X.dtype).eps * most) & growing
    rest = np.zeros_like(S)
    np.add.at(rest, groups[real], (shares**2 * left)[real])
    np.add.at(F, groups, shares * Z)
    moved = symmetric(F @ F.swapaxes(1, 2) + rest)
    seen = np.bincount(groups, minlength=len(S)) > 0
    return np.where(seen[:, None, None], moved, S), totals


def symmetric(A: Float[np.ndarray, "*k n n"]) -> Float[np.ndarray, "*k n n"]:
    """The symmetric part."""
    return (A + A.swapaxes(-1, -2)) / 2


def _rounded(count: int) -> int:
    """A size at least as large, one of four in an octave."""
    unit = max(8, 1 << max(count.bit_length() - 3, 0))
    return -(-count // unit) * unit


def _grown(X: np.ndarray, size: int) -> np.ndarray:
    """With identities after the last."""
    eye = np.eye(X.shape[1], dtype=X.dtype)
    return np.concatenate([X, np.broadcast_to(eye, (size - len(X), *eye.shape))])
