"""The libraries that compute Bures-Wasserstein distances too, and formulas one would write.

Every side is a function that takes arrays of numpy and returns a call without arguments, which
computes, waits and returns. What a user would do once, moving arrays and compiling, is done before.
A library that is not installed has no sides.
"""

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import bwflow as bw

try:
    import ot
except ImportError:
    ot = None
try:
    import pyriemann.geometry.distance as pyriemann_distance
    import pyriemann.geometry.mean as pyriemann_mean
except ImportError:
    pyriemann_distance = pyriemann_mean = None
try:
    import ott
    from ott.geometry import costs
except ImportError:
    ott = costs = None
try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_num_threads(1)

Call = Callable[[], object]
Side = Callable[..., Call]
LIBRARIES = ("bwflow", "jax", "numpy", "scipy", "POT", "pyriemann", "ott-jax", "torch")


def versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# Squared distances of one pair, n x n, or of as many pairs as there are.


def by_cholesky(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    L = np.linalg.cholesky(A)
    values = np.linalg.eigvalsh(np.swapaxes(L, -1, -2) @ B @ L)
    cross = np.sum(np.sqrt(np.maximum(values, 0)), axis=-1)
    return np.trace(A, axis1=-2, axis2=-1) + np.trace(B, axis1=-2, axis2=-1) - 2 * cross


def by_eigenpairs(A, B):
    """In jax, of one pair."""
    values, Q = jnp.linalg.eigh(B)
    root = (Q * jnp.sqrt(jnp.maximum(values, 0))) @ Q.T
    cross = jnp.linalg.eigvalsh(root @ A @ root)
    return jnp.trace(A) + jnp.trace(B) - 2 * jnp.sum(jnp.sqrt(jnp.maximum(cross, 0)))


def compiled(function: Callable, *arrays: np.ndarray) -> Call:
    """A function of one pair, compiled and mapped over what more dimensions there are."""
    return _compiled(_program(function, arrays[0].ndim - 2), *arrays)


def compiled_as_it_is(function: Callable, *arrays: np.ndarray) -> Call:
    """A function of pairs in batches."""
    return _compiled(_program(function), *arrays)


@functools.cache
def _program(function: Callable, dimensions: int = 0) -> Callable:
    for _ in range(dimensions):
        function = jax.vmap(function)
    return jax.jit(function)


def _compiled(program: Callable, *arrays: np.ndarray) -> Call:
    given = tuple(map(jnp.asarray, arrays))
    jax.block_until_ready(program(*given))
    return lambda: jax.block_until_ready(program(*given))


def eager(function: Callable, *arrays: np.ndarray) -> Call:
    given = tuple(map(jnp.asarray, arrays))
    jax.block_until_ready(function(*given))
    return lambda: jax.block_until_ready(function(*given))


def in_numpy(function: Callable, *arrays: np.ndarray) -> Call:
    return lambda: function(*arrays)


def in_torch(function: Callable, *arrays: np.ndarray) -> Call:
    given = tuple(map(torch.tensor, arrays))

    def call():
        with torch.no_grad():
            return function(*given)

    return call


def pot_squared(A, B):
    return ot.gaussian.bures_distance(A, B, paired=A.ndim > 2) ** 2


def pyriemann_squared(A, B):
    return pyriemann_distance.distance_wasserstein(A, B, squared=True)


def ott_squared(A, B):
    n = len(A)
    mean = jnp.zeros(n, A.dtype)
    x, y = (costs.mean_and_cov_to_x(mean, C, n) for C in (A, B))
    return costs.Bures(n)(x, y)


def distances() -> dict[str, Side]:
    residual = bw.bures_wasserstein
    trace = partial(bw.bures_wasserstein, form="trace")
    sides = {
        "bwflow, residual": partial(compiled_as_it_is, residual),
        "bwflow, trace": partial(compiled_as_it_is, trace),
        "bwflow, residual, not compiled in": partial(eager, residual),
        "bwflow, trace, not compiled in": partial(eager, trace),
        "numpy by hand": partial(in_numpy, by_cholesky),
        "jax by hand": partial(compiled, by_eigenpairs),
    }
    if ot is not None:
        sides["POT, numpy"] = partial(in_numpy, pot_squared)
        sides["POT, jax"] = partial(compiled, pot_squared)
        if torch is not None:
            sides["POT, torch"] = partial(in_torch, pot_squared)
    if pyriemann_distance is not None:
        sides["pyRiemann, numpy"] = partial(in_numpy, pyriemann_squared)
        if torch is not None:
            sides["pyRiemann, torch"] = partial(in_torch, pyriemann_squared)
    if ott is not None:
        sides["ott"] = partial(compiled, ott_squared)
    return sides


# Values and gradients in the first matrix.


def gradient_by_hand(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`I - T` with the map `T = L^{-T} (L^T B L)^{1/2} L^{-1}`."""
    L = np.linalg.cholesky(A)
    values, Q = np.linalg.eigh(np.swapaxes(L, -1, -2) @ B @ L)
    roots = np.sqrt(np.maximum(values, 0))
    K = np.linalg.solve(np.swapaxes(L, -1, -2), Q)
    traces = np.trace(A, axis1=-2, axis2=-1) + np.trace(B, axis1=-2, axis2=-1)
    return traces - 2 * np.sum(roots, axis=-1), np.eye(A.shape[-1]) - (
        K * roots[..., None, :]
    ) @ np.swapaxes(K, -1, -2)


def differentiated(function: Callable, *arrays: np.ndarray) -> Call:
    return compiled(_slope(function), *arrays)


@functools.cache
def _slope(function: Callable) -> Callable:
    return jax.value_and_grad(function)


def differentiated_as_it_is(function: Callable, *arrays: np.ndarray) -> Call:
    return compiled_as_it_is(_slope_of_sum(function), *arrays)


@functools.cache
def _slope_of_sum(function: Callable) -> Callable:
    """Values and gradients of a function of pairs in batches."""

    def total(*arrays):
        values = function(*arrays)
        return jnp.sum(values), values

    slope = jax.grad(total, has_aux=True)
    return lambda *arrays: slope(*arrays)[::-1]


def torch_differentiated(function: Callable, *arrays: np.ndarray) -> Call:
    first, *others = map(torch.tensor, arrays)
    first.requires_grad_(True)

    def call():
        value = function(first, *others)
        return value.detach(), torch.autograd.grad(value.sum(), first)[0]

    return call


def gradients() -> dict[str, Side]:
    trace = partial(bw.bures_wasserstein, form="trace")
    sides = {
        "bwflow, residual": partial(differentiated_as_it_is, bw.bures_wasserstein),
        "bwflow, trace": partial(differentiated_as_it_is, trace),
        "numpy by hand": partial(in_numpy, gradient_by_hand),
        "jax by hand": partial(differentiated, by_eigenpairs),
    }
    if ot is not None:
        sides["POT, jax"] = partial(differentiated, pot_squared)
        if torch is not None:
            sides["POT, torch"] = partial(torch_differentiated, pot_squared)
    if pyriemann_distance is not None and torch is not None:
        sides["pyRiemann, torch"] = partial(torch_differentiated, pyriemann_squared)
    if ott is not None:
        sides["ott"] = partial(differentiated, ott_squared)
    return sides


def factor_gradients() -> dict[str, Side]:
    """In `W`, of the squared distance of `W W^T`."""
    sides = {}
    for name, squared in (
        ("bwflow, residual", bw.bures_wasserstein),
        ("bwflow, trace", partial(bw.bures_wasserstein, form="trace")),
        ("jax by hand", by_eigenpairs),
        ("POT, jax", pot_squared if ot is not None else None),
        ("ott", ott_squared if ott is not None else None),
    ):
        if squared is not None:
            sides[name] = partial(differentiated, partial(_of_factor, squared))
    sides["bwflow, Factor"] = partial(
        differentiated, lambda W, B: bw.bures_wasserstein(bw.geometry.Factor(W), B)
    )
    if torch is not None and ot is not None:
        sides["POT, torch"] = partial(torch_differentiated, partial(_of_factor, pot_squared))
    if torch is not None and pyriemann_distance is not None:
        squared = partial(_of_factor, pyriemann_squared)
        sides["pyRiemann, torch"] = partial(torch_differentiated, squared)
    return sides


def _of_factor(squared: Callable, W, B):
    return squared(W @ W.T, B)


# Barycenters, of N x n x n. Every side takes a setting too, and lists those to try, loosest first.


def mean_by_hand(C: np.ndarray, tol: float, most: int = 500) -> np.ndarray:
    """Alvarez-Esteban's fixed point, until the step is below `tol` of the mean."""
    S = np.mean(C, axis=0)
    for _ in range(most):
        values, Q = np.linalg.eigh(S)
        root, inverse = ((Q * d) @ Q.T for d in (np.sqrt(values), 1 / np.sqrt(values)))
        values, Q = np.linalg.eigh(root @ C @ root)
        T = np.mean((Q * np.sqrt(np.maximum(values, 0))[:, None, :]) @ np.swapaxes(Q, 1, 2), axis=0)
        TK = T @ inverse
        new = TK.T @ TK
        change = np.linalg.norm(new - S)
        S = new
        if change <= tol * np.linalg.norm(S):
            break
    return S


def bwflow_mean(C: np.ndarray, rtol: float) -> Call:
    given = jnp.asarray(C)
    return lambda: jax.block_until_ready(_bwflow_mean(given, rtol))


@jax.jit
def _bwflow_mean(C: jax.Array, rtol: float) -> jax.Array:
    return bw.geometry.barycenter(C, rtol=rtol, max_steps=300, throw=False).covariance


def bwflow_mean_eager(C: np.ndarray, rtol: float) -> Call:
    given = jnp.asarray(C)
    return lambda: jax.block_until_ready(
        bw.geometry.barycenter(given, rtol=rtol, max_steps=300, throw=False).covariance
    )


def pot_mean(C: np.ndarray, eps: float) -> Call:
    zeros = np.zeros(C.shape[:2])
    return lambda: ot.gaussian.bures_wasserstein_barycenter(
        zeros, C, num_iter=500, eps=eps, method="fixed_point"
    )[1]


def pyriemann_mean_of(C: np.ndarray, tol: float) -> Call:
    return lambda: pyriemann_mean.mean_wasserstein(C, tol=tol, maxiter=500)


def ott_mean(C: np.ndarray, steps: int) -> Call:
    N, n = C.shape[:2]
    given = jnp.asarray(C)

    @jax.jit
    def program(C):
        x = jax.vmap(lambda C: costs.mean_and_cov_to_x(jnp.zeros(n, C.dtype), C, n))(C)
        found, _ = costs.Bures(n).barycenter(
            jnp.full(N, 1 / N),
            x,
            tolerance=0.0,
            sqrtm_kw={"threshold": 1e-14},
            min_iterations=steps,
            max_iterations=steps,
        )
        return costs.x_to_means_and_covs(found, n)[1]

    return lambda: jax.block_until_ready(program(given))


def barycenters() -> dict[str, tuple[Callable, tuple]]:
    tolerances = tuple(10.0**-k for k in range(5, 15))
    sides = {
        "bwflow": (bwflow_mean, tolerances),
        "bwflow, not compiled in": (bwflow_mean_eager, tolerances),
        "numpy by hand": (lambda C, tol: partial(mean_by_hand, C, tol), tolerances),
    }
    if ot is not None:
        sides["POT, numpy"] = (pot_mean, tolerances)
    if pyriemann_mean is not None:
        sides["pyRiemann, numpy"] = (pyriemann_mean_of, tolerances)
    if ott is not None:
        sides["ott"] = (ott_mean, (10, 15, 20, 30, 40, 60, 80))
    return sides


# Frechet distances of samples in rows, covariances divided by the number of samples less one.


def fitted(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = np.mean(X, axis=0)
    return mean, (X - mean) / np.sqrt(len(X) - 1)


def frechet_by_gram(X: np.ndarray, Y: np.ndarray) -> float:
    """Eigenvalues of a matrix of the size of the samples."""
    (a, F), (b, G) = map(fitted, (X, Y))
    M = G @ F.T
    cross = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(M @ M.T), 0)))
    return np.sum((a - b) ** 2) + np.sum(F**2) + np.sum(G**2) - 2 * cross


def frechet_by_singular_values(X: np.ndarray, Y: np.ndarray) -> float:
    (a, F), (b, G) = map(fitted, (X, Y))
    cross = np.sum(np.linalg.svd(G @ F.T, compute_uv=False))
    return np.sum((a - b) ** 2) + np.sum(F**2) + np.sum(G**2) - 2 * cross


def frechet_by_sqrtm(X: np.ndarray, Y: np.ndarray) -> float:
    import scipy.linalg

    (a, F), (b, G) = map(fitted, (X, Y))
    A, B = F.T @ F, G.T @ G
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cross = np.real(np.trace(scipy.linalg.sqrtm(A @ B)))
    return np.sum((a - b) ** 2) + np.trace(A) + np.trace(B) - 2 * cross


def frechet_by_eigenvalues(X: np.ndarray, Y: np.ndarray) -> float:
    """As torch-fidelity and torchmetrics do."""
    (a, F), (b, G) = map(fitted, (X, Y))
    A, B = F.T @ F, G.T @ G
    cross = np.sum(np.real(np.sqrt(np.linalg.eigvals(A @ B).astype(complex))))
    return np.sum((a - b) ** 2) + np.trace(A) + np.trace(B) - 2 * cross


def frechets(dense: bool) -> dict[str, Side]:
    """With those whose matrices are of the size of the features, if they are wanted."""
    distance = partial(bw.geometry.frechet_distance, ddof=1)
    sides = {
        "bwflow": partial(compiled, distance),
        "bwflow, not compiled in": partial(eager, distance),
        "numpy, eigenvalues of the Gram matrix": partial(in_numpy, frechet_by_gram),
        "numpy, singular values": partial(in_numpy, frechet_by_singular_values),
    }
    if dense:
        sides["numpy, eigenvalues of A B"] = partial(in_numpy, frechet_by_eigenvalues)
        sides["scipy, sqrtm"] = partial(in_numpy, frechet_by_sqrtm)
    return sides
