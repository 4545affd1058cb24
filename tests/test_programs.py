"""Compiled programs of the geometry: what runs side by side, and what runs where it is needed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covariance_oracles import covariance, factor
from helpers import array, assert_close, first
from programs import computations, unordered_decompositions

import bwflow as bw
from bwflow import geometry, linalg
from bwflow.geometry import Factor
from bwflow.geometry._operands import cached
from bwflow.geometry._roots import root

pytestmark = pytest.mark.once

BATCH = 4


def matrices(seed, n):
    return array(np.stack([covariance(BATCH * seed + i, n) for i in range(BATCH)]))


def factors(seed, n, k):
    return array(np.stack([factor(BATCH * seed + i, n, k) for i in range(BATCH)]))


A, B, V = (matrices(seed, 6) for seed in range(3))
LARGE = matrices(0, 40), matrices(1, 40)
F, G = factors(0, 6, 3), factors(1, 6, 3)
MANY_COLUMNS = factors(0, 40, 34), factors(1, 40, 34)


def distance(form):
    return lambda A, B: bw.bures_wasserstein(A, B, form=form)


def mean(A, **options):
    return geometry.barycenter(A, throw=False, **options).covariance


def median(A):
    return geometry.geometric_median(A, smoothing=0.1, throw=False).covariance


def running(start):
    return geometry.RunningBarycenter(start, 1.0)


def of_factors(function):
    return lambda *given: function(*map(Factor, given))


FUNCTIONS = {
    "distance": (distance("residual"), LARGE),
    "distance by traces": (distance("trace"), LARGE),
    "pairwise distances": (geometry.pairwise_distances, (A,)),
    "geodesic": (lambda A, B: geometry.geodesic(A, B, 0.3), (A, B)),
    "log": (geometry.log, (A, B)),
    "exp": (geometry.exp, (A, V)),
    "inner product": (geometry.inner_product, (A, B, V)),
    "parallel transport": (
        lambda A, B, V: geometry.parallel_transport(A, B, V, num_steps=2),
        (A, B, V),
    ),
    "coupling": (geometry.optimal_coupling, (A, B)),
    "barycenter": (mean, (A,)),
    "median": (median, (A,)),
    "distance of factors": (of_factors(distance("residual")), MANY_COLUMNS),
    "distance of factors by traces": (of_factors(distance("trace")), MANY_COLUMNS),
    "geodesic of factors": (of_factors(lambda A, B: geometry.geodesic(A, B, 0.3)), (F, G)),
    "log of factors": (of_factors(geometry.log), (F, G)),
    "barycenter of factors": (of_factors(mean), (F,)),
    "entropic barycenter": (lambda A: mean(A, entropy=0.1), (A,)),
}
VALUES = FUNCTIONS | {
    "barycenter from a start": (lambda S, A: mean(A, start=S), (B[0], A)),
    "running barycenter": (lambda S, A, B: running(S).update(A).update(B).covariance, (A[0], A, B)),
    "map": (geometry.transport_map, (A, B)),
    "map of factors": (of_factors(geometry.transport_map), (F, G)),
}


@pytest.mark.parametrize("name", first(5, VALUES))
def test_no_two_decompositions_of_a_value_are_computed_side_by_side(name):
    function, given = VALUES[name]
    assert unordered_decompositions(function, *given) == []


@pytest.mark.parametrize("name", first(5, FUNCTIONS))
def test_no_two_decompositions_of_a_gradient_are_computed_side_by_side(name):
    function, given = FUNCTIONS[name]
    assert unordered_decompositions(gradient(function, len(given)), *given) == []


@pytest.mark.parametrize("name", first(1, ["distance", "geodesic", "barycenter", "log of factors"]))
def test_no_two_decompositions_of_a_second_derivative_are_computed_side_by_side(name):
    function, given = FUNCTIONS[name]

    def along(*given):
        return jax.jvp(gradient(function, len(given)), given, given)[1]

    assert unordered_decompositions(along, *given) == []


def gradient(function, count):
    """Of the squares of what a function of so many arrays returns, in all of them."""

    def size(*given):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(function(*given)))

    return jax.grad(size, argnums=tuple(range(count)))


def test_decompositions_side_by_side_are_found():
    assert len(unordered_decompositions(both, A, B)) == 1
    assert unordered_decompositions(one_after_the_other, A, B) == []


def both(A, B):
    return jnp.linalg.cholesky(A), jnp.linalg.cholesky(B)


def one_after_the_other(A, B):
    L = jnp.linalg.cholesky(A)
    return L, jnp.linalg.cholesky(linalg.after(B, L))


def test_decompositions_in_two_loops_side_by_side_are_found():
    loops = lambda A, B: (jax.lax.map(jnp.linalg.cholesky, A), jax.lax.map(jnp.linalg.cholesky, B))
    assert len(unordered_decompositions(loops, A, B)) == 1


def test_what_is_computed_after_something_has_its_value():
    for L, M in zip(both(A, B), one_after_the_other(A, B), strict=True):
        assert np.array_equal(L, M)
    spoilt = jnp.full(3, jnp.nan)
    assert np.array_equal(linalg.after(A, spoilt), A)


# --- where it is needed --------------------------------------------------------------------------


def reached(parts, name):
    """Computations that run whenever one does: those it calls, but for the bodies of loops."""
    called = set()
    for _, line in parts[name]:
        if " while(" not in line:
            called |= {x for x in re.findall(r"%([\w.\-]+)", line) if x in parts}
    return {name}.union(*(reached(parts, x) for x in called))


def holders(function, *given):
    """The entry of a program, its computations, and those that hold an eigendecomposition."""
    text = jax.jit(function).lower(*given).compile().as_text()
    parts = computations(text)
    entry = re.search(r"^ENTRY %([\w.\-]+)", text, re.MULTILINE).group(1)
    held = {x for x, lines in parts.items() if any("syevd" in line for _, line in lines)}
    return entry, parts, held


@pytest.mark.parametrize("function", [root, jax.vmap(root)], ids=["one", "batch"])
def test_a_root_decomposes_spectrally_in_a_loop_alone(function):
    given = A[0] if function is root else A
    entry, parts, held = holders(function, given)
    assert held
    assert not held & reached(parts, entry)
    bodies = {
        body
        for lines in parts.values()
        for _, line in lines
        for body in re.findall(r"body=%([\w.\-]+)", line)
    }
    assert any(held & reached(parts, body) for body in bodies)


@pytest.mark.parametrize("needed", [[False] * 4, [False, True, False, True], [True] * 4], ids=str)
def test_what_no_one_needs_is_not_computed_and_others_keep_what_they_have(needed):
    seen = []

    def function(x):
        jax.debug.callback(seen.append, x)
        return x**2

    def one(needed, x):
        return linalg.where_needed(needed, function, (x,), -x)

    needed, x = jnp.array(needed), jnp.arange(4.0) + 2
    found = jax.block_until_ready(jax.jit(jax.vmap(one))(needed, x))
    jax.effects_barrier()
    assert np.array_equal(found, np.where(needed, x**2, -x))
    assert bool(seen) == any(needed)


def test_roots_of_a_mixed_batch_are_those_of_each():
    L = factor(3, 6, 2)
    mixed = jnp.stack(
        [A[0], array(L @ L.T), A[1], jnp.zeros((6, 6)), array(np.diag([1.0] + 5 * [0]))]
    )
    found = jax.vmap(root)(mixed)
    assert_close(found @ jnp.swapaxes(found, 1, 2), mixed, 1e-14)
    for i in (0, 2):
        assert_close(found[i], np.linalg.cholesky(mixed[i]), 1e-14)
    assert np.linalg.matrix_rank(found[1]) == 2
    assert not np.any(found[3])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("n", [6, 150])
def test_programs_for_accelerators_call_neither_the_host_nor_its_libraries(platform, n):
    given = jnp.broadcast_to(jnp.eye(n), (BATCH, n, n))

    def everything(A):
        distance = jax.value_and_grad(lambda A: jnp.sum(bw.bures_wasserstein(A, A[::-1])))
        return distance(A), geometry.geodesic(A, A[::-1], 0.3), mean(A)

    text = jax.jit(everything).trace(given).lower(lowering_platforms=(platform,)).as_text()
    assert "lapack" not in text
    assert "callback" not in text


def test_a_large_batch_is_cut_into_pieces_on_a_cpu_alone():
    n = 16
    size = 2 * cached() // n**2
    given = jnp.broadcast_to(jnp.eye(n), (size, n, n))
    traced = jax.jit(bw.bures_wasserstein).trace(given, given)

    def decomposed(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return set(re.findall(r"(?:cholesky|potrf).*?tensor<(\d+)x16x16x", text))

    assert decomposed("cpu") == {str(size // 2)}
    assert decomposed("tpu") == {str(size)}
