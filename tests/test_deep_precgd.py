"""Preconditioned descent of deep networks: its step, its refusals, its counts, where it is slow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dynamics import bures, gradients, power, product
from helpers import array, assert_close, by_precision, first, gaussian_factors, random_target
from scipy.linalg import block_diag

import bwflow as bw
from bwflow.precondition import deep_precgd

RULE = deep_precgd()
TARGET = random_target(0, 6, condition=1e3)
LOSS = bw.losses.BuresWasserstein(TARGET, 0.0)


def written_out(layers, g, value, view, curvature):
    """The step of all layers from the formula, dense: best of three Krylov vectors, or of one."""
    N = len(layers)
    shared = 2 * N if view == "covariance" else N
    z = np.sqrt(2 * value / curvature)  # the distance, if the loss is half of its square times that
    sizes = np.array([np.linalg.norm(W) / np.sqrt(min(W.shape)) for W in layers])
    d = 0.3 * z ** (1 - 1 / shared) * np.prod(sizes) ** (1 / N) / sizes
    W = product(layers)
    n, jacobian, roots, equal = len(W), [], [], []
    for j in range(N):
        A = product(layers[j + 1 :]) if j + 1 < N else np.eye(n)
        B = product(layers[:j]) if j else np.eye(W.shape[1])
        C = W @ B.T if view == "covariance" else B.T
        # vec by rows: A X C^T is kron(A, C) vec(X); the transpose permutes what comes out.
        change = np.kron(A, C)
        if view == "covariance":
            change = change + change.reshape(n, n, -1).swapaxes(0, 1).reshape(n * n, -1)
        jacobian.append(change)
        root = np.kron(power(A.T @ A, 0.5), power(C.T @ C, 0.5))
        roots.append(d[j] * root)
        equal.append(shared * root @ root + d[j] * root)
    J, K0, P = np.hstack(jacobian), block_diag(*roots), np.linalg.inv(block_diag(*equal))
    K = J.T @ J + K0
    b = -np.concatenate([x.ravel() for x in g]) / curvature
    krylov = [P @ b]
    for _ in range(2 if N <= 10 else 0):
        krylov.append(P @ K @ krylov[-1])
    V = np.linalg.qr(np.stack(krylov, axis=1))[0]
    D = V @ np.linalg.solve(V.T @ K @ V, V.T @ b)
    ends = np.cumsum([W.size for W in layers])[:-1]
    return [x.reshape(W.shape) for x, W in zip(np.split(D, ends), layers, strict=True)]


@pytest.mark.parametrize(
    ("widths", "view"),
    [
        ((4, 3, 3), "end_to_end"),
        ((3,) * 7, "end_to_end"),
        ((2,) * 12, "end_to_end"),
        ((3, 3, 3), "covariance"),
    ],
)
def test_first_step_is_the_damped_gauss_newton_step(widths, view):
    target = random_target(1, widths[-1])
    start = gaussian_factors(2, widths, 0.8)
    layers = [np.asarray(W, np.float64) for W in start]
    covariance = np.asarray(target.covariance, np.float64)
    if view == "covariance":
        loss, curvature = bw.losses.Frobenius(target), 1.0
        value, g = gradients(layers, covariance, 0.0, "frobenius")
    else:
        loss, curvature = bw.losses.BuresWasserstein(target), 2.0
        value, g = gradients(layers, covariance, 0.0)
    # A rate so small that every step is taken: the loss is nearly linear along it.
    moved = bw.gradient_descent(loss, start, deep_precgd(0.05, view=view), num_steps=1).factors
    steps = written_out(layers, g, value, view, curvature)
    # The powers of Grams in the formula lose digits that the products of six layers have.
    rtol = by_precision(1e-9 if len(widths) == 3 else 1e-6, 2e-3)
    for new, old, step in zip(moved, layers, steps, strict=True):
        assert np.linalg.norm(new - old) > 0
        assert_close(new, old + 0.05 * step, rtol * np.linalg.norm(step))


def test_a_step_that_would_raise_the_loss_is_refused_and_damped():
    start = gaussian_factors(0, (3, 3, 3))
    loss = bw.losses.BuresWasserstein(random_target(1, 3))
    wild = deep_precgd(1e3)
    state = wild.init(start)
    value_fn = lambda factors: loss(bw.end_to_end(factors))
    value, grad = jax.value_and_grad(value_fn)(start)
    updates, state = wild.update(grad, state, start, value=value, value_fn=value_fn)
    assert all(not np.any(u) for u in updates)
    assert float(state.damping) == 4.0
    assert_close(state.value, value, 0.0)
    for kept, g in zip(state.grad, grad, strict=True):
        assert_close(kept, g, 0.0)


def test_loss_never_rises_and_what_is_remembered_is_right():
    start = gaussian_factors(3, (6,) * 4)
    run = bw.gradient_descent(LOSS, start, RULE, num_steps=12, throw=False)
    losses = np.asarray(run.probes["loss"])
    assert np.all(np.diff(losses) <= 0)
    # The same loop without the descent's reuse: gradients are evaluated at every step.
    params, state = start, RULE.init(start)
    value_fn = lambda factors: LOSS(bw.end_to_end(factors))

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = RULE.update(grad, state, params, value=value, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    for _ in range(4):
        params, state = step(params, state)
    assert_close(value_fn(params), losses[4], by_precision(1e-9, 1e-3) * losses[0])


# n = 6; kinds of start by the factor on layers of standard deviation n^{-1/2}.
CASES = {
    "Gaussian, N = 2": (2, 1.0, 10),
    "Gaussian, N = 5": (5, 1.0, 20),
    "small, N = 3": (3, 0.1, 20),
}


@pytest.mark.float64
@pytest.mark.parametrize("case", first(1, CASES))
def test_gap_of_1e_10_within_few_steps_from_every_start(case):
    depth, scale, most = CASES[case]
    init = bw.initializers.gaussian(scale * 6**-0.5)

    def arrival(key):
        return bw.gradient_descent(
            LOSS,
            init(key, (6,) * (depth + 1)),
            RULE,
            num_steps=30,
            save_every=30,
            until=bw.until.gap(1e-10),
            throw=False,
        )

    run = jax.jit(jax.vmap(arrival))(jax.random.split(jax.random.key(0), 50))
    assert np.max(run.hit) <= most
    # By the textbook formula, not by the run's own word.
    W = np.stack([product([np.asarray(F[i]) for F in run.factors]) for i in range(50)])
    found = bures(W, np.asarray(TARGET.covariance), 0.0)[0]
    assert np.all(np.abs(found) <= 1e-6)


@pytest.mark.float64
def test_starts_where_gradients_vanish_or_layers_lack_a_mode_arrive():
    start = list(gaussian_factors(5, (6,) * 4))
    starts = {
        "zero": [0 * W for W in start],
        "one zero layer": [start[0], 0 * start[1], start[2]],
        "a unit without weights": [start[0], start[1].at[:, 0].set(0.0), start[2]],
    }
    stacked = tuple(jnp.stack(layers) for layers in zip(*starts.values(), strict=True))

    def run(optimizer):
        return lambda factors: bw.gradient_descent(
            LOSS, factors, optimizer, num_steps=30, save_every=30, until=bw.until.gap(1e-10)
        )

    assert np.all(jax.jit(jax.vmap(run(RULE)))(stacked).hit <= 20)
    # Plain descent stays at zero for ever, which is critical.
    assert not np.isfinite(run(optax.sgd(0.01))(tuple(starts["zero"])).hit)


@pytest.mark.float64
def test_rank_deficient_targets_are_reached_through_a_bottleneck_of_their_rank_or_more():
    rng = np.random.default_rng(0)
    loss = bw.losses.BuresWasserstein(bw.Target.from_factor(array(rng.normal(size=(6, 2)))))
    start = gaussian_factors(6, (3, 3, 6))
    run = bw.gradient_descent(loss, start, RULE, num_steps=40, until=bw.until.gap(1e-10))
    assert run.hit <= 30


@pytest.mark.float64
def test_a_bottleneck_below_the_rank_of_the_target_is_left_quickly():
    """Half a step of subspace iteration would take 90 to a gap of 1e-10, for one layer turns it."""
    target = bw.Target(jnp.diag(jnp.geomspace(1.0, 0.1, 6)))
    loss = bw.losses.BuresWasserstein(target)

    def arrival(key):
        start = bw.initializers.gaussian()(key, (6, 4, 2, 6))
        return bw.gradient_descent(
            loss, start, RULE, num_steps=30, save_every=30, until=bw.until.gap(1e-10), throw=False
        )

    run = jax.jit(jax.vmap(arrival))(jax.random.split(jax.random.key(0), 50))
    assert np.max(run.hit) <= 25
    W = np.stack([product([np.asarray(F[i]) for F in run.factors]) for i in range(50)])
    lam = np.geomspace(1, 0.1, 6)
    nuclear = np.linalg.svd(np.sqrt(lam)[:, None] * W, compute_uv=False).sum(-1)
    # What is lost is the tail of the spectrum.
    lost = np.sum(W**2, (1, 2)) + lam.sum() - 2 * nuclear
    assert np.all(np.abs(lost - lam[2:].sum()) <= 1e-8)


@pytest.mark.float64
@pytest.mark.parametrize("tau", [0.01, pytest.param(0.1, marks=pytest.mark.slow)])
def test_smoothing_of_the_size_of_eigenvalues_is_answered_by_memory(tau):
    loss = bw.losses.BuresWasserstein(TARGET, tau)

    def arrival(key):
        return bw.gradient_descent(
            loss,
            bw.initializers.gaussian()(key, (6,) * 4),
            RULE,
            num_steps=60,
            save_every=60,
            until=bw.until.gap(1e-10),
            throw=False,
        )

    assert np.max(jax.jit(jax.vmap(arrival))(jax.random.split(jax.random.key(0), 20)).hit) <= 50


@pytest.mark.slow
@pytest.mark.float64
def test_deep_sensing_arrives_whatever_the_conditioning_where_plain_steps_do_not():
    """Over-parametrised: n = 12, rank 2, three layers of width 5, 300 measurements."""

    problems = [
        bw.problems.sensing(
            jax.random.key(3), 12, rank=2, num_measurements=300, condition=condition
        )
        for condition in (1.0, 100.0)
    ]
    operator = problems[0].loss.operator  # the same for both
    y = jnp.stack([loss.y for loss, _ in problems])
    truths = jnp.stack([truth @ truth.T for _, truth in problems])

    def least_error(optimizer, num_steps, y, M, key):
        def probe(_, factors):
            W = factors[2] @ factors[1] @ factors[0]
            return {"error": jnp.linalg.norm(W @ W.T - M) / jnp.linalg.norm(M)}

        run = bw.gradient_descent(
            bw.losses.Sensing(operator, y),
            bw.initializers.gaussian(0.3)(key, (5, 5, 5, 12)),
            optimizer,
            num_steps=num_steps,
            save_every=num_steps // 5,
            probe=probe,
            throw=False,
        )
        return jnp.nanmin(run.probes["error"])

    keys = jax.random.split(jax.random.key(0), 5)

    def errors(make, num_steps, rates):
        """The least of every run, by rate, problem and key."""
        run = lambda rate, y, M, key: least_error(make(rate), num_steps, y, M, key)
        run = jax.vmap(run, (None, None, None, 0))
        run = jax.vmap(jax.vmap(run, (None, 0, 0, None)), (0, None, None, None))
        return jax.jit(run)(jnp.array(rates), y, truths, keys)

    quick = errors(lambda rate: deep_precgd(rate, view="covariance"), 40, [1.0])
    assert np.max(quick) <= 1e-10
    slow = [
        errors(optax.sgd, 500, [0.01, 0.03, 0.1, 0.2]),
        errors(optax.adam, 500, [0.003, 0.01, 0.03, 0.1]),
    ]
    assert all(np.min(np.median(found, axis=-1)) > 1e-6 for found in slow)


@pytest.mark.float64
@pytest.mark.parametrize(("widths", "most"), [((6, 6, 6), 1), ((6, 2, 6), 2)])
def test_a_step_takes_one_value_and_gradient_and_two_at_a_bottleneck(widths, most):
    calls = []

    def value_fn(factors):
        calls.append(None)
        return jnp.sum((bw.end_to_end(factors) - 1) ** 2)

    start = gaussian_factors(0, widths)
    value, grad = jax.value_and_grad(value_fn)(start)
    calls.clear()
    with jax.disable_jit():
        RULE.update(grad, RULE.init(start), start, value=value, value_fn=value_fn)
    assert len(calls) == most


def test_lowers_to_products_and_decompositions_without_callbacks():
    start = gaussian_factors(0, (3,) * 4)
    many = tuple(jnp.broadcast_to(W, (5, *W.shape)) for W in start)

    def run(factors):
        return bw.gradient_descent(LOSS3, factors, RULE, num_steps=3, throw=False).factors

    for platform in ("cuda", "tpu"):
        text = jax.jit(jax.vmap(run)).trace(many).lower(lowering_platforms=(platform,)).as_text()
        assert "callback" not in text
        assert "dot_general" in text


LOSS3 = bw.losses.BuresWasserstein(random_target(1, 3))


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
def test_layers_may_be_a_list():
    start = gaussian_factors(0, (3, 3, 3))
    ends = [
        bw.gradient_descent(LOSS3, layers, RULE, num_steps=2).factors
        for layers in (tuple(start), list(start))
    ]
    for one, other in zip(*ends, strict=True):
        assert_close(one, other, 0.0)


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
def test_a_single_matrix_is_refused():
    with pytest.raises(ValueError, match="factorization must be"):
        bw.gradient_descent(
            bw.losses.Frobenius(random_target(1, 3)),
            jnp.eye(3),
            RULE,
            num_steps=1,
            factorization=bw.factors.Symmetric(),
        )


REFUSED = {
    "no params": ({"params": None}, "params must be given to the update of deep_precgd; got None"),
    "no value": ({"value": None}, "value must be given to the update"),
    "no function": ({"value_fn": None}, "value_fn must be given to the update"),
    "not the layers": (
        {"factorization": bw.factors.EndToEnd(2)},
        r"factorization must be bwflow.factors.Deep\(\) for deep_precgd; got",
    ),
}


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("case", REFUSED)
def test_updates_without_what_they_need_are_refused(case):
    change, message = REFUSED[case]
    params = gaussian_factors(0, (3, 3, 3))
    given = {"params": params, "value": jnp.ones(()), "value_fn": lambda _: jnp.ones(())} | change
    with pytest.raises(ValueError, match=message):
        RULE.update(params, RULE.init(params), given.pop("params"), **given)


@pytest.mark.once
@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), "fast", None])
def test_learning_rates_that_are_not_positive_numbers_are_refused(rate):
    with pytest.raises(ValueError, match="learning_rate must be"):
        deep_precgd(rate)
