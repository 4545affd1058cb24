"""Covariances for tests, and what is to be said of them in 60 digits, by other formulas."""

import mpmath
import numpy as np
from helpers import X64

DIGITS = 60


def in_digits(function):
    """A function that computes in 60 digits."""

    def run(*args, **options):
        with mpmath.workdps(DIGITS):
            return function(*args, **options)

    return run


def exact(X):
    """A matrix of floating-point numbers as it is."""
    if isinstance(X, mpmath.matrix):
        return X
    return mpmath.matrix(np.asarray(X, np.float64).tolist())


def rounded(X):
    """A matrix of mpmath as one of numpy."""
    return np.array(X.tolist(), dtype=np.float64)


@in_digits
def residual(A, B, T):
    """`B - T A T`."""
    return rounded(exact(B) - exact(T) * exact(A) * exact(T))


def trace(X):
    return sum(X[i, i] for i in range(X.rows))


def power(A, exponent):
    """`A^exponent` of a covariance, and of a singular one that of its range."""
    values, Q = mpmath.eigsy((A + A.T) / 2)
    floor = max(values) * mpmath.mpf(10) ** (10 - DIGITS)
    return Q * mpmath.diag([x**exponent if x > floor else 0 for x in values]) * Q.T


def root(A):
    return power(A, mpmath.mpf(1) / 2)


@in_digits
def squared_distance(A, B):
    """`tr A + tr B - 2 tr (A^{1/2} B A^{1/2})^{1/2}`."""
    A, B = exact(A), exact(B)
    R = root(A)
    return trace(A) + trace(B) - 2 * trace(root(R * B * R))


@in_digits
def transport_map(A, B):
    """`A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2}`."""
    A, B = exact(A), exact(B)
    R = root(A)
    inverse = power(A, -mpmath.mpf(1) / 2)
    return inverse * root(R * B * R) * inverse


@in_digits
def deviation(A, B):
    """`T - I`, which loses no digits to the difference if rounded after it."""
    T = transport_map(A, B)
    return T - mpmath.eye(T.rows)


@in_digits
def polar(Y):
    """`Y (Y^T Y)^{-1/2}`, from the smaller of the two Grams."""
    Y = exact(Y)
    if Y.rows < Y.cols:
        return polar(Y.T).T
    return Y * power(Y.T * Y, -mpmath.mpf(1) / 2)


@in_digits
def squared_distance_of_factors(F, G):
    """`||F||^2 + ||G||^2 - 2 <P, G^T F>`."""
    F, G = exact(F), exact(G)
    Y = G.T * F
    overlap = trace(polar(Y).T * Y)
    return trace(F.T * F) + trace(G.T * G) - 2 * overlap


@in_digits
def factor_gradient(F, G):
    """`2 (F - G P)`, of the squared distance in `F`."""
    F, G = exact(F), exact(G)
    return 2 * (F - G * polar(G.T * F))


@in_digits
def sylvester(A, V):
    """The `S` with `S A + A S = V`."""
    A, V = exact(A), exact(V)
    values, Q = mpmath.eigsy(A)
    W, n = Q.T * V * Q, A.rows
    S = mpmath.matrix(n, n)
    for i in range(n):
        for j in range(n):
            S[i, j] = W[i, j] / (values[i] + values[j])
    return Q * S * Q.T


@in_digits
def barycenter(covariances, weights):
    """The fixed point of `S <- S^{-1/2} (sum w (S^{1/2} A S^{1/2})^{1/2})^2 S^{-1/2}`."""
    covariances = [exact(A) for A in covariances]
    weights = [mpmath.mpf(float(w)) for w in weights]
    weights = [w / sum(weights) for w in weights]
    S = combination(weights, covariances)
    for _ in range(2000):
        R, inverse = root(S), power(S, -mpmath.mpf(1) / 2)
        mean = combination(weights, [root(R * A * R) for A in covariances])
        moved = inverse * mean * mean * inverse
        change, S = mpmath.norm(moved - S), moved
        if change < mpmath.mpf(10) ** -25 * mpmath.norm(S):
            return S
    raise AssertionError("the oracle has not converged")


def combination(weights, matrices):
    total = 0 * matrices[0]
    for w, A in zip(weights, matrices, strict=True):
        total += w * A
    return total


@in_digits
def mean_objective(S, covariances, weights):
    """`sum w BW^2(S, A)`, weights divided by their sum."""
    total = mpmath.fsum(mpmath.mpf(float(w)) for w in weights)
    distances = [squared_distance(S, A) for A in covariances]
    return (
        mpmath.fsum(mpmath.mpf(float(w)) * d for w, d in zip(weights, distances, strict=True))
        / total
    )


def in_run_precision(X):
    """Numbers that the precision of the run holds, as doubles."""
    return np.asarray(X, np.float64 if X64 else np.float32).astype(np.float64)


def orthogonal(seed, n):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def covariance(seed, n, condition=10.0):
    """Random, with eigenvalues from 1 down to `1 / condition`."""
    Q = orthogonal(seed, n)
    S = in_run_precision((Q * np.geomspace(1, 1 / condition, n)) @ Q.T)
    return (S + S.T) / 2


def symmetric(seed, n):
    """A random symmetric matrix of norm 1."""
    D = np.random.default_rng(seed).normal(size=(n, n))
    return (D + D.T) / np.linalg.norm(D + D.T)


def factor(seed, n, k):
    return in_run_precision(np.random.default_rng(seed).normal(size=(n, k)))


def relative_error(actual, expected):
    """Of a number or, in the Frobenius norm, of a matrix, against mpmath or numpy."""
    if isinstance(expected, mpmath.mpf):
        with mpmath.workdps(DIGITS):
            return float(abs(mpmath.mpf(float(actual)) / expected - 1))
    if isinstance(expected, mpmath.matrix):
        expected = rounded(expected)
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def assert_accurate(actual, expected, tolerance):
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.3g} > {tolerance:.3g}"
