"""Every public function under jit, vmap and both modes of differentiation, in both precisions."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import array, assert_close, by_precision, gaussian_factors, random_target

import bwflow as bw
from bwflow import geometry
from bwflow.geometry import Factor

TARGET = random_target(0, 3, condition=5.0)
W = gaussian_factors(0, (4, 3))[0]
S = TARGET.covariance
PAIR = gaussian_factors(1, (3, 4, 3))
NORMAL = np.random.default_rng(4).normal(size=27)

# Of the geometry: a second covariance, a second factor, and means to the last digit.
SECOND = 2 * S + jnp.eye(3)
OTHER = gaussian_factors(5, (2, 3))[0]
TO_ROUNDING = {"rtol": by_precision(1e-13, 1e-6), "max_steps": 100, "throw": False}


def described(mean):
    return mean.covariance, mean.objective


@jax.jit
def measured(A, W, y):
    """Losses, products with their gradients in the covariance, and the scale of an error."""
    losses = (
        bw.losses.Sensing(bw.operators.Dense(A), y),
        bw.losses.PhaseRetrieval(A[:, 0], y),
        bw.losses.Completion([0, 2, 1], [1, 1, 2], y, (3, 3)),
    )
    found = [(loss(W), loss.covariance_gradient(W).mv(W[:, 0])) for loss in losses]
    return found, losses[0].error_scale(W)


# name -> (function, arguments); every argument is differentiated.
TABLE = {
    "smoothed_bures": (lambda W, tau: bw.smoothed_bures(W, TARGET, tau=tau), (W, array(0.1))),
    "smoothed_bures of a factor": (
        lambda B: bw.smoothed_bures(W, bw.Target.from_factor(B, rank=3), tau=0.1),
        (W,),
    ),
    "smoothed_bures of a covariance": (
        lambda S: bw.smoothed_bures(W, bw.Target(S, rank=3), tau=0.1),
        (S,),
    ),
    "bures_wasserstein": (bw.bures_wasserstein, (S, 2 * S + jnp.eye(3))),
    "bures_wasserstein of factors": (
        lambda F, G: bw.bures_wasserstein(Factor(F), Factor(G)),
        (W[:, :2], OTHER),
    ),
    "bures_wasserstein_distance": (geometry.bures_wasserstein_distance, (S, SECOND)),
    "pairwise_distances": (
        lambda A, B: geometry.pairwise_distances(jnp.stack([A, B, A + B])),
        (S, SECOND),
    ),
    "gaussian_wasserstein": (geometry.gaussian_wasserstein, (W[:, 0], S, W[:, 1], SECOND)),
    "frechet_distance": (geometry.frechet_distance, (W.T, OTHER.T)),
    "transport_map": (geometry.transport_map, (S, SECOND)),
    "transport": (
        lambda F, G, X: geometry.transport(Factor(F), Factor(G), X),
        (W, OTHER, W.T),
    ),
    "optimal_coupling": (geometry.optimal_coupling, (S, SECOND)),
    "geodesic": (geometry.geodesic, (S, SECOND, array(0.3))),
    "interpolate": (
        lambda A, B, t: geometry.interpolate(jnp.stack([A, B, A + B]), jnp.arange(3.0), t),
        (S, SECOND, array(1.3)),
    ),
    "log": (geometry.log, (S, SECOND)),
    "log of factors": (lambda F, G: geometry.log(Factor(F), Factor(G)), (W[:, :2], OTHER)),
    "exp": (geometry.exp, (S, 0.1 * SECOND)),
    "norm": (geometry.norm, (S, SECOND)),
    "tangent_projection": (
        lambda F, V: geometry.tangent_projection(Factor(F), V),
        (W[:, :2], W[:, 2:]),
    ),
    "injectivity_radius": (geometry.injectivity_radius, (S,)),
    "parallel_transport": (
        lambda A, B, V: geometry.parallel_transport(A, B, V, num_steps=8),
        (S, SECOND, S @ S),
    ),
    "riemannian_gradient": (geometry.riemannian_gradient, (S, SECOND)),
    "riemannian_hessian": (geometry.riemannian_hessian, (S, SECOND, S @ S, SECOND)),
    "barycenter": (
        lambda A, B, w: described(
            geometry.barycenter(jnp.stack([A, B, A + B]), weights=w, **TO_ROUNDING)
        ),
        (S, SECOND, array([0.2, 0.3, 0.5])),
    ),
    "geometric_median": (
        lambda A, B, eps: described(
            geometry.geometric_median(jnp.stack([A, B, A + B]), smoothing=eps, **TO_ROUNDING)
        ),
        (S, SECOND, array(0.1)),
    ),
    "RunningBarycenter": (
        lambda A, B, weight: (
            geometry.RunningBarycenter(A, weight).update(jnp.stack([B, A + B])).covariance
        ),
        (S, SECOND, array(1.5)),
    ),
    "frobenius": (lambda W, tau: bw.frobenius(W, TARGET, tau=tau), (W, array(0.1))),
    "end_to_end": (bw.end_to_end, (PAIR,)),
    "imbalance": (bw.imbalance, (PAIR,)),
    "partial_products": (bw.factors.partial_products, (PAIR,)),
    "sample": (
        lambda factors, tau: bw.sample(factors, jax.random.key(0), 3, tau=tau),
        (PAIR, array(0.1)),
    ),
    "minimum": (lambda tau: bw.landscape.minimum(TARGET, 2, tau=tau), (array(0.01),)),
    "minimizer": (lambda tau: bw.landscape.minimizer(TARGET, 2, tau=tau), (array(0.01),)),
    "polar": (bw.linalg.polar, (W,)),
    "symmetric_sylvester": (bw.linalg.symmetric_sylvester, (S, S @ S)),
    "Target.from_samples": (lambda X: bw.Target.from_samples(X, rank=3).covariance, (W.T,)),
    "sampling_error": (bw.covariances.sampling_error, (W.T,)),
    "diagnostics": (
        lambda W: bw.diagnostics.record("loss", "gap", "gradient_norm", "distance_frobenius")(
            bw.losses.BuresWasserstein(TARGET, 0.1), (W,)
        ),
        (W,),
    ),
    "diagnostics of the spectrum": (
        lambda W: bw.diagnostics.record("effective_rank", "eigenvalue_errors", "residual")(
            bw.losses.BuresWasserstein(TARGET, 0.1), (W,)
        ),
        (W,),
    ),
    "frobenius_flow": (lambda W: bw.theory.frobenius_flow(W, S, 0.2), (W,)),
    "EndToEnd": (
        lambda W, G, N: bw.factors.EndToEnd(N).pullback(W, G),
        (W, gaussian_factors(2, (4, 3))[0], array(2.5)),
    ),
    "Covariance": (
        lambda S, G, N: bw.factors.Covariance(N).pullback(S, G),
        (S, gaussian_factors(2, (3, 3))[0] @ TARGET.factor.T, array(2.5)),
    ),
    "curvatures": (
        lambda W, tau: (
            bw.landscape.hessian_spectrum(bw.losses.BuresWasserstein(TARGET, tau), (W,)),
            bw.landscape.minimizer_spectrum(TARGET, 2, depth=2, tau=tau),
        ),
        (W, array(0.1)),
    ),
    "bounds": (
        lambda L0, tau, N: (
            bw.theory.trace_bound(TARGET, L0),
            bw.theory.published_rate(TARGET, L0, depth=N, tau=tau),
            bw.theory.sharp_rate(TARGET, L0, depth=N, tau=tau),
            bw.theory.sharp_rate(TARGET, L0, depth=N, tau=tau, loss="frobenius"),
            bw.theory.saddle_value(TARGET, 2, tau=tau),
            bw.theory.late_rate(TARGET, 2, depth=2, tau=tau),
        ),
        (array(0.01), array(0.02), array(2.5)),
    ),
    "step sizes": (
        lambda L0, tau, N: (
            *bw.theory.published_step_sizes(TARGET, L0, depth=N),
            bw.theory.practical_step_size(TARGET, L0, depth=N),
            bw.theory.stability_limit(TARGET, 2, depth=2, tau=tau),
            bw.theory.descent_factor(L0, bw.theory.margin(TARGET, L0, tau=tau), depth=N, tau=tau),
        ),
        (array(0.01), array(0.02), array(2.5)),
    ),
    "optimality_gap": (
        lambda W, tau: (
            bw.certificate.optimality_gap(
                bw.losses.BuresWasserstein(TARGET, tau), (W,), trace_bound=2.0
            ).bound
        ),
        (W, array(0.1)),
    ),
    "linear_flow": (lambda W: bw.theory.linear_flow(W, TARGET.factor, 0.2), (W,)),
    "scale_by_gram": (
        lambda factors, gradients, damping: [
            transform.update(gradients, transform.init(factors), factors)[0]
            for transform in (
                bw.precondition.scale_by_gram(damping, normalize=True),
                bw.precondition.scale_by_gram(damping, view="end_to_end", pseudo_inverse=True),
            )
        ],
        (PAIR, gaussian_factors(3, (3, 4, 3)), array(0.5)),
    ),
    "measured losses": (
        measured,
        (array(NORMAL).reshape(3, 3, 3), W, array(NORMAL[:3])),
    ),
    "FeedbackAlignment": (
        lambda layers, G, B: bw.factors.FeedbackAlignment(B).pullback(layers, G),
        (PAIR, gaussian_factors(6, (3, 3))[0], gaussian_factors(7, (4, 3))[0]),
    ),
    "FeedbackAlignmentStar": (
        lambda W, B, Y: bw.factors.FeedbackAlignmentStar(B, Y).assemble(W),
        (W[:2], W[:, :2], gaussian_factors(6, (4, 3))[0]),
    ),
    "feedback_imbalance": (
        lambda layers, B: bw.factors.feedback_imbalance(layers, (B,)),
        (PAIR, gaussian_factors(7, (4, 3))[0]),
    ),
    "sketch_limit": (bw.theory.sketch_limit, (W, W[:, :2])),
    "feedback quantities": (
        lambda layers, B: bw.diagnostics.record(
            "feedback_alignment", "direction_alignment", "sketch_distance"
        ).bind(bw.factors.FeedbackAlignment(B))(bw.losses.Approximation(S), layers),
        (PAIR, gaussian_factors(7, (4, 3))[0]),
    ),
    "representation_similarity": (bw.diagnostics.representation_similarity, (W, W[:2] + 1.0)),
    "Approximation": (
        lambda Y, L, R: bw.losses.Approximation(Y)(bw.factors.Product(L, R)),
        (W, W[:, :2], W[:2].T),
    ),
    "LowRankPlusSparse": (
        lambda L, R, S: jax.value_and_grad(bw.losses.Approximation(S @ S.T))(
            bw.factors.LowRankPlusSparse().assemble(((L, R), S))
        ),
        (W[:, :2], OTHER, SECOND),
    ),
    "double_threshold": (
        lambda S: bw.projections.double_threshold(S, bw.projections.Sparsity(5, 0.7, 0.7)),
        (W,),
    ),
    "clip_rows": (bw.projections.clip_rows, (W, array(0.9))),
    "row_bound": (bw.projections.row_bound, (W, array(2.0))),
    "weighted": (
        lambda W, y, w: bw.losses.weighted(
            bw.losses.Completion([0, 2, 1], [1, 1, 2], y, (3, 3)), w
        )(W),
        (W, array(NORMAL[:3]), array(NORMAL[:3] ** 2)),
    ),
    "starts from a matrix": (
        lambda W, std: (
            *bw.initializers.nystrom(W, std, True)(jax.random.key(0), (4, 2, 3)),
            *bw.initializers.nora(W, std, alpha=2.0 * std)(jax.random.key(0), (4, 2, 3)),
        ),
        (W, array(0.5)),
    ),
}


def tangents(arguments, seed):
    """A random direction, symmetric where the argument is."""
    leaves, structure = jax.tree.flatten(arguments)
    rng = np.random.default_rng(seed)
    directions = []
    for leaf in leaves:
        D = rng.normal(size=leaf.shape)
        if leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1] and bool(jnp.all(leaf == leaf.T)):
            D = (D + D.T) / 2
        directions.append(jnp.asarray(D, leaf.dtype))
    return jax.tree.unflatten(structure, directions)


def inner(a, b):
    return sum(np.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", TABLE)
def test_jit_and_vmap_agree_with_eager_evaluation(name):
    function, arguments = TABLE[name]
    eager = function(*arguments)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), arguments)
    for result in (
        jax.jit(function)(*arguments),
        jax.tree.map(lambda x: x[1], jax.jit(jax.vmap(function))(*batch)),
    ):
        for actual, expected in zip(jax.tree.leaves(result), jax.tree.leaves(eager), strict=True):
            assert_close(actual, expected, by_precision(1e-11, 2e-4))


@cache
def linearized(name):
    """A direction and its derivative, a cotangent and its pullback, in one program."""
    function, arguments = TABLE[name]
    direction, cotangent = tangents(arguments, 0), tangents(function(*arguments), 1)

    @jax.jit
    def both(arguments, direction, cotangent):
        forward = jax.jvp(function, arguments, direction)[1]
        return forward, jax.vjp(function, *arguments)[1](cotangent)

    forward, pulled = both(arguments, direction, cotangent)
    return direction, forward, cotangent, pulled


@pytest.mark.parametrize("name", TABLE)
def test_forward_and_reverse_modes_are_transposes(name):
    direction, forward, cotangent, pulled = linearized(name)
    expected = inner(pulled, direction)
    assert np.isfinite(expected)
    assert_close(inner(cotangent, forward), expected, by_precision(1e-10, 1e-3))


@pytest.mark.float64
@pytest.mark.parametrize("name", TABLE)
def test_forward_derivative_matches_differences(name):
    function, arguments = TABLE[name]
    direction, forward = linearized(name)[:2]
    h = 2e-6
    moved = lambda t: function(*jax.tree.map(lambda x, d: x + t * d, arguments, direction))
    slopes = jax.tree.map(lambda a, b: (a - b) / (2 * h), moved(h), moved(-h))
    for actual, expected in zip(jax.tree.leaves(forward), jax.tree.leaves(slopes), strict=True):
        assert_close(actual, expected, 1e-7)


@pytest.mark.once
@pytest.mark.parametrize("name", TABLE)
def test_single_precision_stays_single(name):
    function, arguments = TABLE[name]
    if name not in (
        "end_to_end",
        "imbalance",
        "partial_products",
        "polar",
        "bures_wasserstein",
        "bures_wasserstein of factors",
        "bures_wasserstein_distance",
        "pairwise_distances",
        "gaussian_wasserstein",
        "frechet_distance",
        "transport_map",
        "transport",
        "optimal_coupling",
        "geodesic",
        "interpolate",
        "log",
        "log of factors",
        "exp",
        "norm",
        "tangent_projection",
        "injectivity_radius",
        "parallel_transport",
        "riemannian_gradient",
        "riemannian_hessian",
        "barycenter",
        "geometric_median",
        "RunningBarycenter",
        "symmetric_sylvester",
        "Target.from_samples",
        "sampling_error",
        "sample",
        "EndToEnd",
        "Covariance",
        "measured losses",
        "FeedbackAlignment",
        "FeedbackAlignmentStar",
        "feedback_imbalance",
        "sketch_limit",
        "representation_similarity",
        "Approximation",
        "LowRankPlusSparse",
        "double_threshold",
        "clip_rows",
        "row_bound",
        "weighted",
    ):
        pytest.skip("closes over a target in the precision of the run")
    single = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(function, *single)))


@pytest.mark.once
def test_whole_runs_stay_in_the_precision_of_their_start():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (TARGET, PAIR))
    loss = bw.losses.BuresWasserstein(single[0], 0.1)

    def runs(start):
        flow = bw.gradient_flow(
            loss, start, times=[0.0, 0.1], rtol=1e-4, atol=1e-5, until=bw.until.gap(1e-3)
        )
        descent = bw.gradient_descent(
            loss, start, optax.adam(0.01), num_steps=2, until=bw.until.gradient_norm(1e-3)
        )
        return [(run.probes, run.factors) for run in (flow, descent)]

    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(runs, single[1])))
