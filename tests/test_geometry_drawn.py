"""Ten thousand drawn pairs of covariances of any rank and scale."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from helpers import EPS, X64, array
from hypothesis import HealthCheck, example, given, settings

import bwflow as bw
from bwflow import geometry
from bwflow.geometry import Factor

SIZE, EXAMPLES, SETS = 3, 100, 100
# Squares and their sums have to be in range.
MOST = 150 if X64 else 15
SPECTRA = ("drawn", "equal", "two equal", "spread", "tiny last")


@st.composite
def cases(draw):
    """Rank, spectrum and scale of three covariances; what they share; and a seed."""
    each = [
        (
            draw(st.integers(0, SIZE)),
            draw(st.sampled_from(SPECTRA)),
            draw(st.integers(-MOST, MOST)),
        )
        for _ in range(3)
    ]
    relation = draw(st.sampled_from(["none", "scale", "vectors", "near", "same"]))
    return each, relation, draw(st.integers(0, 2**32 - 1))


def spectrum(rng, kind, rank):
    values = {
        "drawn": rng.uniform(0.1, 1, (SETS, SIZE)),
        "equal": np.ones((SETS, SIZE)),
        "two equal": np.ones((SETS, SIZE)) * [1.0, 1.0, 0.3],
        "spread": 10.0 ** -rng.uniform(0, 16, (SETS, SIZE)),
        "tiny last": np.ones((SETS, SIZE)) * [1.0, 0.5, EPS],
    }[kind]
    return values * (np.arange(SIZE) < rank)


def drawn(case):
    """Three lists of factors, each list of one kind."""
    each, relation, seed = case
    rng = np.random.default_rng(seed)
    found = []
    for i, (rank, kind, scale) in enumerate(each):
        if i and relation != "none":
            scale = each[0][2]
        if i and relation in ("near", "same"):
            change = 10.0 ** -rng.uniform(1, 17, (SETS, 1, 1)) if relation == "near" else 0.0
            noise = rng.normal(size=(SETS, SIZE, SIZE)) * 10.0 ** (each[0][2] / 2)
            found.append(found[0] + change * noise)
            continue
        if not (i and relation == "vectors"):
            Q = np.linalg.qr(rng.normal(size=(SETS, SIZE, SIZE)))[0]
        roots = np.sqrt(spectrum(rng, kind, rank))
        found.append(Q * roots[:, None, :] * 10.0 ** (scale / 2))
    return found


def matrices(F):
    S = F @ np.swapaxes(F, 1, 2)
    return (S + np.swapaxes(S, 1, 2)) / 2


squared = jax.jit(bw.bures_wasserstein)


def triangle(A, B, C):
    """Squared distances there and back, onward, across, and to itself."""
    return [squared(*pair) for pair in ((A, B), (B, A), (B, C), (A, C), (A, A))]


@jax.jit
def gradients(A, B):
    return jax.grad(lambda A, B: jnp.sum(bw.bures_wasserstein(A, B)), argnums=(0, 1))(A, B)


def traces(*factors):
    return [np.sum(F**2, axis=(1, 2)) for F in factors]


def check(values, sizes, rounding):
    """Distances as they must be; `rounding` is the relative error of a root of a trace."""
    there, back, onward, across, own = (np.asarray(x, np.float64) for x in values)
    scale = sum(sizes)
    for value in (there, back, onward, across, own):
        assert np.all(np.isfinite(value))
        assert np.all(value >= 0)
    slack = rounding * np.sqrt(scale)
    assert np.all(np.abs(np.sqrt(there) - np.sqrt(back)) <= slack)
    assert np.all(np.sqrt(across) <= np.sqrt(there) + np.sqrt(onward) + slack)
    assert np.all(np.sqrt(own) <= slack)


drawn_settings = partial(
    settings,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
ZERO = ([(0, "equal", 0)] * 3, "none", 0)


@drawn_settings(max_examples=EXAMPLES)
@example(ZERO)
@given(cases())
def test_distances_of_drawn_matrices_are_distances(case):
    factors = drawn(case)
    covariances = [array(matrices(F)) for F in factors]
    # Eigenvalues below the rounding of the largest are lost: the distance is off by their roots.
    check(triangle(*covariances), traces(*factors), 10 * np.sqrt(SIZE * EPS))


@drawn_settings(max_examples=EXAMPLES)
@example(ZERO)
@given(cases())
def test_distances_of_drawn_factors_are_distances(case):
    factors = drawn(case)
    check(
        triangle(*(Factor(array(F)) for F in factors)), traces(*factors), 10 * np.sqrt(SIZE * EPS)
    )


@drawn_settings(max_examples=EXAMPLES // 4)
@example(ZERO)
@given(cases())
def test_gradients_of_drawn_matrices_are_finite(case):
    A, B, _ = (array(matrices(F)) for F in drawn(case))
    for gradient in gradients(A, B):
        assert np.all(np.isfinite(gradient))


@drawn_settings(max_examples=EXAMPLES // 4)
@example(ZERO)
@given(cases())
def test_doors_take_what_is_drawn(case):
    """No refusal, and what the doors say is what the program said."""
    A, B, _ = (array(matrices(F)) for F in drawn(case))
    found = bw.bures_wasserstein(A, B)
    assert np.all(np.isfinite(found))
    assert np.all(found >= 0)
    T = geometry.transport_map(A, B)
    assert np.all(np.isfinite(T))


def test_singular_matrices_that_nearly_coincide_are_at_a_number():
    """Their smallest eigenvalues are rounding, here negative, while Cholesky's pivots are not."""
    A = [
        [26.215795654606403, -32.02161572150652, -5.903658838929022],
        [-32.02161572150652, 41.86388772878777, -6.841018106482083],
        [-5.903658838929022, -6.841018106482083, 73.1160947508147],
    ]
    B = [
        [26.215795654606403, -32.021615721506514, -5.903658838929031],
        [-32.021615721506514, 41.86388772878776, -6.8410181064820845],
        [-5.903658838929031, -6.8410181064820845, 73.1160947508147],
    ]
    A, B = array(A), array(B)
    assert 0 <= bw.bures_wasserstein(A, B) <= 100 * EPS
    assert np.all(np.isfinite(geometry.transport_map(A, B)))
    for gradient in jax.grad(bw.bures_wasserstein, argnums=(0, 1))(A, B):
        assert np.all(np.isfinite(gradient))
