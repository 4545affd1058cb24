"""Preconditioners against their formulas in numpy, their invariance, and published behaviour."""

from functools import partial
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from helpers import assert_close, by_precision, gaussian_factors, random_target

import bwflow as bw
from bwflow import precondition
from bwflow.factors import Deep, Product, Rectangular, Symmetric

DTYPE = np.dtype(jnp.result_type(float))
TOL = by_precision(1e-11, 3e-4)
LAYERS = gaussian_factors(1, (3, 4, 3, 5))
PAIR = (*gaussian_factors(2, (3, 6)), *gaussian_factors(3, (3, 5)))
SQUARE = gaussian_factors(4, (3, 5))[0]
TARGET = random_target(0, 5, condition=5.0)
LOSS = bw.losses.Frobenius(TARGET)


class Sensing(eqx.Module):
    """`1/2 ||A vec(M) - y||^2` of `M = W W^T` or `L R^T`, with its gradient in `M`."""

    A: jax.Array
    y: jax.Array
    dense: bool = eqx.field(static=True, default=True)

    def residual(self, W):
        M = W.matrix() if isinstance(W, Product) else W @ W.T
        return self.A @ M.reshape(-1) - self.y

    def __call__(self, W):
        return jnp.sum(self.residual(W) ** 2) / 2

    def error_scale(self, W):
        return jnp.sqrt(self(W))

    def covariance_gradient(self, W):
        n = W.shape[0]
        G = (self.residual(W) @ self.A).reshape(n, -1)
        G = (G + G.T) / 2
        if self.dense:
            return lx.MatrixLinearOperator(G, lx.symmetric_tag)
        structure = jax.ShapeDtypeStruct((n,), W.dtype)
        return lx.FunctionLinearOperator(lambda v: G @ v, structure, lx.symmetric_tag)


def sensing(seed, n, m, dense=True):
    rng = np.random.default_rng(seed)
    A, y = rng.normal(size=(m, n * n)) / m**0.5, rng.normal(size=m)
    return Sensing(jnp.asarray(A, float), jnp.asarray(y, float), dense)


def chain(layers):
    """Numpy's product of layers; the first of them acts first."""
    W = np.eye(layers[0].shape[1]) if layers else None
    for layer in layers:
        W = layer @ W
    return W


def numpy_grams(factorization, params, view):
    """Left and right Grams of every leaf, from their definitions."""
    if isinstance(factorization, Symmetric):
        (X,) = params
        return [(None, X.T @ X if view == "covariance" else None)]
    if isinstance(factorization, Rectangular):
        L, R = params
        return [(None, R.T @ R), (None, L.T @ L)]
    W, grams = chain(params), []
    for j in range(len(params)):
        A = chain(params[j + 1 :]) if params[j + 1 :] else np.eye(params[-1].shape[0])
        B = chain(params[:j]) if j else np.eye(params[0].shape[1])
        last = j == len(params) - 1
        if view == "end_to_end":
            grams.append((A.T @ A, B @ B.T))
        else:
            grams.append((None if last else A.T @ A, B @ W.T @ W @ B.T))
    return grams


def numpy_scaled(gradients, grams, eta, inverse=np.linalg.inv):
    scaled = []
    for g, (left, right) in zip(gradients, grams, strict=True):
        g = g if left is None else inverse(left + eta * np.eye(len(left))) @ g
        scaled.append(g if right is None else g @ inverse(right + eta * np.eye(len(right))))
    return scaled


def in_float64(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def some_gradients(params, seed=9):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), float), params)


def scaled(transform, params, gradients, **extra):
    return transform.update(gradients, transform.init(params), params, **extra)[0]


CASES = [
    (Deep(), LAYERS, "covariance"),
    (Deep(), LAYERS, "end_to_end"),
    (Symmetric(), SQUARE, "covariance"),
    (Symmetric(), SQUARE, "end_to_end"),
    (Rectangular(), PAIR, "end_to_end"),
]
NAMES = [f"{type(network).__name__} {view}" for network, _, view in CASES]


@pytest.mark.parametrize(("network", "params", "view"), CASES, ids=NAMES)
def test_gradients_are_divided_by_the_damped_grams(network, params, view):
    gradients = some_gradients(params)
    transform = precondition.scale_by_gram(0.3, view=view, scale=0.5)
    found = scaled(transform, params, gradients, factorization=network)
    grams = numpy_grams(network, in_float64(params), view)
    expected = numpy_scaled(in_float64(gradients), grams, 0.15)
    for x, y in zip(jax.tree.leaves(found), expected, strict=True):
        assert_close(x, y, TOL * max(1.0, np.abs(y).max()))
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_the_default_view_is_the_covariance_where_there_is_one():
    for network, params, view in (CASES[0], CASES[2], CASES[4]):
        gradients = some_gradients(params)
        default, named = (
            scaled(
                precondition.scale_by_gram(0.1, view=v), params, gradients, factorization=network
            )
            for v in (None, view)
        )
        assert all(map(np.array_equal, jax.tree.leaves(default), jax.tree.leaves(named)))


def test_normalised_inverses_have_norm_one():
    gradients = some_gradients(PAIR)
    transform = precondition.scale_by_gram(0.3, normalize=True)
    found = scaled(transform, PAIR, gradients, factorization=Rectangular())

    def unit_inverse(gram):
        inverse = np.linalg.inv(gram)
        return inverse / np.sqrt(np.sum(inverse**2))

    grams = numpy_grams(Rectangular(), in_float64(PAIR), None)
    for x, y in zip(
        found, numpy_scaled(in_float64(gradients), grams, 0.3, unit_inverse), strict=True
    ):
        assert_close(x, y, TOL)


def test_pseudo_inverses_leave_out_what_a_lower_rank_lacks():
    """Two of three columns: the Gram has rank 2, and its pseudo-inverse is numpy's."""
    mix = jnp.asarray(np.random.default_rng(5).normal(size=(2, 3)), float)
    params = tuple(F[:, :2] @ mix for F in PAIR)
    gradients = some_gradients(params)
    transform = precondition.scale_by_gram(pseudo_inverse=True)
    found = scaled(transform, params, gradients, factorization=Rectangular())
    grams = numpy_grams(Rectangular(), in_float64(params), None)
    inverse = partial(np.linalg.pinv, rcond=1e-5)
    for x, y in zip(found, numpy_scaled(in_float64(gradients), grams, 0.0, inverse), strict=True):
        assert_close(x, y, by_precision(1e-9, 1e-2) * np.abs(y).max())


@pytest.mark.parametrize("dense", [True, False])
def test_named_dampings_are_their_formulas(dense):
    loss, X = sensing(0, 5, 12, dense), SQUARE
    A, y, W = (np.asarray(x, np.float64) for x in (loss.A, loss.y, X))
    residual = A @ (W @ W.T).reshape(-1) - y
    value = residual @ residual / 2
    G = (residual @ A).reshape(5, 5)
    expected = {
        "error_scale": value**0.5,
        "value": abs(value - 1.5 * value) ** 0.5,
        "gradient_norm": np.sqrt(np.sum(((G + G.T) / 2) ** 2)),
    }
    gradients = some_gradients((X,))
    for rule, eta in expected.items():
        transform = precondition.scale_by_gram(rule, scale=2.0, noise_energy=float(1.5 * value))
        found = scaled(transform, (X,), gradients, loss=loss, value=loss(X))
        wanted = numpy_scaled(in_float64(gradients), [(None, W.T @ W)], 2 * eta)
        assert_close(found[0], wanted[0], TOL)


def test_a_schedule_damps_by_the_step():
    transform = precondition.scale_by_gram(optax.exponential_decay(1.0, 1, 0.5))
    gradients, state = some_gradients((SQUARE,)), transform.init((SQUARE,))
    (W,) = in_float64(SQUARE)
    for step in range(3):
        (found,), state = transform.update(gradients, state, (SQUARE,))
        expected = numpy_scaled(in_float64(gradients), [(None, W.T @ W)], 0.5**step)
        assert_close(found, expected[0], TOL)


def test_scaled_descent_does_not_see_a_change_of_basis():
    """`L -> L Q, R -> R Q^{-T}` leaves every `L R^T` as it was; gradient descent differs."""
    Q = np.array([[2.0, 1.0, 0.0], [0.0, 0.5, 0.3], [0.2, 0.0, 3.0]])
    moved = tuple(
        jnp.asarray(np.asarray(F, np.float64) @ P, float)
        for F, P in zip(PAIR, (Q, np.linalg.inv(Q).T), strict=True)
    )
    rng = np.random.default_rng(6)
    A, truth = rng.normal(size=(60, 30)) / 60**0.5, rng.normal(size=(6, 5))
    loss = Sensing(jnp.asarray(A, float), jnp.asarray(A @ truth.reshape(-1), float))
    ends = {}
    for name, optimizer in (("scaled", precondition.scaledgd(0.2)), ("plain", optax.sgd(0.01))):
        for start in (PAIR, moved):
            run = bw.gradient_descent(
                loss, start, optimizer, num_steps=10, factorization=Rectangular()
            )
            ends.setdefault(name, []).append(np.asarray(Product(*run.factors).matrix()))
    assert_close(*ends["scaled"], by_precision(1e-11, 1e-3))
    assert np.abs(ends["plain"][0] - ends["plain"][1]).max() > 0.05


def test_a_gradient_of_zero_stays_zero_where_the_gram_or_the_loss_is():
    """At the truth, at zero, and beside a zero factor; in the derivative of the run too."""
    root = jnp.asarray(np.linalg.cholesky(np.diag([2.0, 1.0, 0.5])), float)
    exact = bw.Target.from_factor(root)
    assert float(bw.losses.Frobenius(exact)(root)) == 0.0
    for damping, X in product(("value", "error_scale"), (root, jnp.zeros_like(root))):
        optimizer = precondition.precgd(0.1, damping)
        run = lambda s, X=X, optimizer=optimizer: bw.gradient_descent(
            bw.losses.Frobenius(exact), (s * X,), optimizer, num_steps=3
        ).factors[0]
        one = jnp.ones((), DTYPE)
        end, slope = jax.jvp(run, (one,), (one,))
        assert_close(end, X, 0.0)
        assert np.all(np.isfinite(slope))
    L, R = PAIR[0], jnp.zeros_like(PAIR[1])
    gradients = (jnp.zeros_like(L), some_gradients(R))
    for options in ({}, {"pseudo_inverse": True}, {"normalize": True}):
        transform = precondition.scale_by_gram(**options)
        found = scaled(transform, (L, R), gradients, factorization=Rectangular())
        assert not np.any(np.asarray(found[0]))
        assert np.all(np.isfinite(found[1]))


def test_singular_grams_are_floored_in_either_precision():
    X = jnp.concatenate([SQUARE, SQUARE, 1e-3 * SQUARE], axis=1)
    G = some_gradients(X)
    for floor, least in ((None, 36 * float(jnp.finfo(DTYPE).eps)), (1e-2, 1e-2)):
        found = scaled(precondition.scale_by_gram(floor=floor), (X,), (G,))[0]
        (W,) = in_float64(X)
        bound = np.linalg.norm(G) / (least * np.trace(W.T @ W))
        assert found.dtype == DTYPE
        assert np.linalg.norm(np.asarray(found, np.float64)) <= 2 * bound
    expected = np.asarray(G, np.float64) @ np.linalg.inv(
        W.T @ W + 1e-2 * np.trace(W.T @ W) * np.eye(9)
    )
    assert_close(found, expected, TOL * np.abs(expected).max())


def test_polyak_steps_are_those_of_scaled_subgradients():
    """Step `(value - minimum) / <grad, u>` over both factors, behind `scale_by_gram`."""
    rng = np.random.default_rng(7)
    A, y = rng.normal(size=(40, 30)), rng.normal(size=40)
    loss = lambda E: jnp.sum(
        jnp.abs(jnp.asarray(A, float) @ E.matrix().reshape(-1) - jnp.asarray(y, float))
    )
    optimizer = optax.chain(
        precondition.scale_by_gram(), precondition.scale_by_polyak(2.0), optax.scale(-1.0)
    )
    run = bw.gradient_descent(loss, PAIR, optimizer, num_steps=3, factorization=Rectangular())
    L, R = in_float64(PAIR)
    for _ in range(3):
        residual = A @ (L @ R.T).reshape(-1) - y
        Z = (np.sign(residual) @ A).reshape(6, 5)
        slopes = Z @ R, Z.T @ L
        moves = slopes[0] @ np.linalg.inv(R.T @ R), slopes[1] @ np.linalg.inv(L.T @ L)
        step = (np.abs(residual).sum() - 2.0) / sum(map(np.vdot, slopes, moves))
        L, R = L - step * moves[0], R - step * moves[1]
    for F, expected in zip(run.factors, (L, R), strict=True):
        assert_close(F, expected, by_precision(1e-10, 1e-3))
    below = precondition.scale_by_polyak(1.0)
    (still,), _ = below.update((SQUARE,), (), value=jnp.zeros((), DTYPE), grad=(SQUARE,))
    assert not np.any(np.asarray(still))


def test_lora_rules_are_their_formulas():
    """`riemannian_lora` divides by `B^T B + eta I`; `noraplus` feeds unit inverses to Adam."""
    gradients = some_gradients(PAIR)
    B, At = in_float64(PAIR)
    grams = At.T @ At + 1e-6 * np.eye(3), B.T @ B + 1e-6 * np.eye(3)
    optimizer = precondition.riemannian_lora(0.1)
    found = scaled(optimizer, PAIR, gradients, factorization=Rectangular())
    for x, g, gram in zip(found, in_float64(gradients), grams, strict=True):
        assert_close(x, -0.1 * g @ np.linalg.inv(gram), TOL)
    optimizer = precondition.noraplus(0.1, b1=0.5, b2=0.25, eps=1e-8)
    state = optimizer.init(PAIR)
    m, v = [0.0, 0.0], [0.0, 0.0]
    for t in (1, 2):
        gradients = some_gradients(PAIR, seed=t)
        with jax.numpy_dtype_promotion("standard"):
            found, state = optimizer.update(gradients, state, PAIR, factorization=Rectangular())
        for i, (g, gram) in enumerate(zip(in_float64(gradients), grams, strict=True)):
            P = np.linalg.inv(gram)
            g = g @ P / np.linalg.norm(P)
            m[i], v[i] = 0.5 * m[i] + 0.5 * g, 0.25 * v[i] + 0.75 * g**2
            adam = (m[i] / (1 - 0.5**t)) / (np.sqrt(v[i] / (1 - 0.25**t)) + 1e-8)
            assert_close(found[i], -0.1 * adam, by_precision(1e-9, 1e-3))


def test_a_loop_of_ones_own_with_clipping_momentum_and_a_schedule_is_the_descent():
    """Layers by jax.grad and optax alone, extra arguments by name."""
    layers = LAYERS[1:]
    optimizer = optax.chain(
        precondition.scale_by_gram("value", noise_energy=0.1),
        optax.clip_by_global_norm(1.0),
        optax.trace(0.9),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.02, 5)),
    )
    run = bw.gradient_descent(LOSS, layers, optimizer, num_steps=5)

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(lambda p: LOSS(bw.end_to_end(p)))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(
                gradients, state, params, value=value, grad=gradients, loss=LOSS
            )
        return optax.apply_updates(params, updates), state

    params, state = layers, optimizer.init(layers)
    for _ in range(5):
        params, state = step(params, state)
    for W, expected in zip(run.factors, params, strict=True):
        assert_close(W, expected, by_precision(1e-12, 1e-5))


# Recovery of 30 x 30 matrices of rank 2 from 600 measurements; one operator, a truth per seed.
N, RANK, M = 30, 2, 600
OPERATOR = np.random.default_rng(0).normal(size=(M, N * N)) / M**0.5


def recovery(optimizer, condition, r, num_steps, seed, *, disturbance=None, save_every=1):
    """Relative errors of a descent from the spectral start, or from one of rank 2 disturbed."""
    U = jax.random.orthogonal(jax.random.key(seed), N)[:, :RANK]
    U = U * jnp.sqrt(jnp.linspace(1.0, 1 / condition, RANK))[None, :]
    truth = U @ U.T
    A = jnp.asarray(OPERATOR, float)
    loss = Sensing(A, A @ truth.reshape(-1))
    k = r if disturbance is None else RANK
    (X,) = bw.initializers.spectral(loss, scale=1.0)(jax.random.key(0), (k, N))
    if disturbance is not None:
        noise = jax.random.normal(jax.random.key(seed + 100), (N, r - k))
        X = jnp.concatenate([X, disturbance * noise], axis=1)
    error = lambda loss, params: {
        "error": jnp.linalg.norm(params[0] @ params[0].T - truth) / jnp.linalg.norm(truth)
    }
    run = bw.gradient_descent(
        loss, (X,), optimizer, num_steps=num_steps, save_every=save_every, probe=error, throw=False
    )
    return run.probes["error"]


def errors(optimizer, condition, r, num_steps, seeds, **options):
    run = partial(recovery, optimizer, condition, r, num_steps, **options)
    return np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(seeds)))


def arrivals(errors, tolerance=1e-10):
    met = errors <= tolerance
    return np.where(met.any(1), met.argmax(1), np.inf)


# Iterations to 1e-10 with mu = 0.4: condition, r, PrecGD, ScaledGD where it was counted.
COUNTS = [(1.0, 2, 96, 94), (10.0, 2, 99, 94), (100.0, 2, 99, 93), (10.0, 5, 183, 152)]
MORE = [(10.0, 10, 351, 237), (100.0, 5, 191, 138)]


@pytest.mark.float64
@pytest.mark.parametrize(
    ("condition", "r", "damped", "scaled"),
    [COUNTS[3], *(pytest.param(*c, marks=pytest.mark.slow) for c in COUNTS[:3] + MORE)],
)
def test_precgd_takes_as_many_steps_as_counted_whatever_the_condition_and_the_width(
    condition, r, damped, scaled
):
    """Medians over seeds within 1.3 of single runs of another implementation."""
    for optimizer, count in (
        (precondition.precgd(0.2), damped),
        (precondition.scaledgd(0.2), scaled),
    ):
        steps = arrivals(errors(optimizer, condition, r, 500, range(20)))
        assert count / 1.3 <= np.median(steps) <= count * 1.3


@pytest.mark.slow
@pytest.mark.float64
@pytest.mark.parametrize(("condition", "r"), [(10.0, 5), (10.0, 10), (100.0, 5)])
def test_plain_descent_with_too_many_columns_is_sublinear(condition, r):
    """Errors like `1/t` (so losses like `1/t^2`), and no arrival in 20000 steps."""
    found = errors(optax.sgd(0.2), condition, r, 20000, range(4), save_every=100)
    assert np.all(np.isinf(arrivals(found)))
    times = 100 * np.arange(found.shape[1])
    late = slice(10, None)
    slopes = [np.polyfit(np.log(times[late]), np.log(e[late]), 1)[0] for e in found]
    assert np.all(np.abs(np.array(slopes) + 1) < 0.25)


@pytest.mark.slow
@pytest.mark.float64
@pytest.mark.parametrize(("condition", "count"), [(1.0, 94), (10.0, 852), (100.0, 7823)])
def test_plain_descent_of_the_right_width_slows_down_with_the_condition(condition, count):
    """Within 1.3 of single runs of another implementation, as the counts of PrecGD are."""
    every = max(1, count // 100)
    found = errors(optax.sgd(0.2), condition, 2, int(1.4 * count), range(5), save_every=every)
    assert count / 1.3 <= every * np.median(arrivals(found)) <= count * 1.3


def drawn(make, optimizer, r, num_steps, *, seeds=5, save_every=1):
    """Relative errors of descents from the spectral starts of problems, one for each seed."""
    made = [make(key) for key in jax.random.split(jax.random.key(5), seeds)]
    starts = [
        bw.initializers.spectral(loss)(jax.random.key(0), (r, len(truth)))[0]
        for loss, truth in made
    ]

    def run(loss, truth, X):
        M = truth @ truth.T
        error = lambda loss, params: {
            "error": jnp.linalg.norm(params[0] @ params[0].T - M) / jnp.linalg.norm(M)
        }
        return bw.gradient_descent(
            loss, (X,), optimizer, num_steps=num_steps, save_every=save_every, probe=error
        ).probes["error"]

    (losses, truths), X = jax.tree.map(lambda *x: jnp.stack(x), *made), jnp.stack(starts)
    return np.asarray(jax.jit(jax.vmap(run))(losses, truths, X))


def one_bit(key):
    return bw.problems.one_bit(
        key, 20, rank=2, num_measurements=2000, condition=10.0, sampled=False
    )


def phase_retrieval(key):
    return bw.problems.phase_retrieval(key, 20, num_measurements=600)


# Single runs of another implementation: problem, step, r, and iterations to 1e-10 by rule.
OTHERS = {
    "one-bit": (one_bit, 0.45, 2, {"sgd": 1008, "precgd": 128, "scaledgd": 128}),
    "one-bit, too wide": (one_bit, 0.45, 4, {"precgd": 154, "scaledgd": 153}),
    "phase": (phase_retrieval, 0.05, 1, {"sgd": 160, "precgd": 164, "scaledgd": 159}),
    "phase, too wide": (phase_retrieval, 0.05, 3, {"precgd": 379, "scaledgd": 176}),
}


@pytest.mark.slow
@pytest.mark.float64
@pytest.mark.parametrize("case", OTHERS)
def test_one_bit_sensing_and_phase_retrieval_take_as_many_steps_as_counted(case):
    make, step, r, counts = OTHERS[case]
    rules = {
        "sgd": optax.sgd(step),
        "precgd": precondition.precgd(step, "gradient_norm"),
        "scaledgd": precondition.scaledgd(step),
    }
    for name, count in counts.items():
        steps = arrivals(drawn(make, rules[name], r, int(1.4 * count)))
        assert count / 1.3 <= np.median(steps) <= count * 1.3, name
    if "sgd" not in counts:
        late = drawn(make, rules["sgd"], r, 2000, seeds=1, save_every=100)
        assert late[0, -1] > 1e-4


@pytest.mark.slow
@pytest.mark.float64
def test_with_noise_damped_descent_is_at_its_floor_long_before_plain_descent_and_overfits_later():
    """Taking the noise out of the damping changes little."""
    noise = 1e-4

    def make(key):
        return bw.problems.sensing(
            key, 30, rank=2, num_measurements=600, condition=10.0, noise=noise
        )

    plain = drawn(make, optax.sgd(0.2), 5, 2500, seeds=3, save_every=10)
    damped = drawn(make, precondition.precgd(0.2, "value"), 5, 300, seeds=3)
    rule = precondition.precgd(0.2, "value", noise_energy=600 * noise**2 / 2)
    corrected = drawn(make, rule, 5, 300, seeds=3)
    best = damped.min(1)

    def near(found):
        return np.median((found <= 2 * best[:, None]).argmax(1))

    assert 10 * near(plain) > 30 * near(damped) > 0
    assert abs(near(corrected) - near(damped)) <= 0.2 * near(damped)
    assert np.all(np.abs(corrected.min(1) / best - 1) < 0.1)
    assert np.all(damped[:, -1] > 1.02 * best)
    assert np.median(damped[:, -1] / best) > 1.1


@pytest.mark.slow
@pytest.mark.float64
def test_a_fixed_damping_leaves_a_slow_tail_of_its_size():
    """Columns to spare grow to the damping's size and then leave as `1/t`; PrecGD has no tail."""
    tails = []
    for damping in (5e-3, 5e-4):
        optimizer = precondition.scaledgd_lambda(0.2, damping)
        tails.append(errors(optimizer, 10.0, 5, 3000, range(4), save_every=100))
    large, small = tails
    assert np.all(np.isinf(arrivals(small)))
    ratio = np.median(large, axis=0)[5:] / np.median(small, axis=0)[5:]
    assert np.all((ratio > 5) & (ratio < 20))
    times = 100 * np.arange(large.shape[1])[10:]
    slopes = [np.polyfit(np.log(times), np.log(e[10:]), 1)[0] for e in (*large, *small)]
    assert np.all(np.abs(np.array(slopes) + 1) < 0.25)


@pytest.mark.slow
@pytest.mark.float64
def test_of_a_matrix_seen_whole_a_fixed_damping_leaves_what_a_small_start_put_beside_it():
    """Of the order of the start's square, as long as one waits; PrecGD loses that too."""
    U = jax.random.orthogonal(jax.random.key(0), N)[:, :RANK]
    loss = bw.losses.Frobenius(bw.Target.from_factor(U * jnp.sqrt(jnp.array([[1.0, 0.1]]))))
    norm = float(jnp.linalg.norm(loss.target.covariance))
    drawn = jax.random.normal(jax.random.key(1), (N, 5))

    def left(optimizer):
        def run(size):
            return bw.gradient_descent(
                loss, (size * drawn,), optimizer, num_steps=3000, save_every=100
            ).probes["loss"]

        return np.sqrt(jax.jit(jax.vmap(run))(jnp.array([1e-3, 1e-5]))) / norm

    # The gradient is 4 (X X^T - M*) X: a step of 0.1 is `mu = 0.4`.
    floors = left(precondition.scaledgd_lambda(0.1, 5e-3))
    assert np.all(floors[:, -1] > 0.1 * floors[:, 5])
    assert np.all(floors[:, -1] / np.array([1e-6, 1e-10]) > 0.1)
    assert np.all(floors[:, -1] / np.array([1e-6, 1e-10]) < 100.0)
    assert np.all(left(precondition.precgd(0.1))[:, -1] < 1e-12)


@pytest.mark.float64
def test_near_a_lower_rank_undamped_scaling_leaps_and_damping_by_the_error_does_not():
    """Extra columns of size `eps`: ScaledGD is thrown the further the smaller they are."""
    sizes = jnp.array([1e-1, 1e-2, 1e-3, 1e-6])
    found = {}
    for name in ("scaledgd", "precgd"):
        optimizer = getattr(precondition, name)(0.2)
        run = lambda size, optimizer=optimizer: recovery(
            optimizer, 10.0, 5, 300, 0, disturbance=size
        )
        found[name] = np.asarray(jax.jit(jax.vmap(run))(sizes))
    worst = np.nan_to_num(found["scaledgd"], nan=np.inf).max(1) / found["scaledgd"][:, 0]
    assert np.all(worst[1:] > [1.05, 100.0, 1e6])
    assert np.isinf(arrivals(found["scaledgd"])[-1])
    assert np.all(found["precgd"].max(1) <= found["precgd"][:, 0])
    assert np.all(np.abs(arrivals(found["precgd"]) - [179, 167, 162, 128]) < 0.3 * 150)


GRAMS = precondition.scale_by_gram()


class Bare:
    """A loss that offers nothing."""

    def __call__(self, W):
        return jnp.sum(W**2)


class Still:
    """A factorisation without Grams."""

    def assemble(self, params):
        return params[0]


def update_with(transform, params=(SQUARE,), **extra):
    return transform.update((SQUARE,), transform.init((SQUARE,)), params, **extra)


REFUSED = {
    "negative damping": (lambda: precondition.precgd(0.1, -1.0), "damping must be at least 0"),
    "damping": (lambda: precondition.precgd(0.1, "loss"), "damping must be one of error_scale"),
    "no number": (lambda: precondition.scale_by_gram(None), "damping must be made of numbers"),
    "lambda": (
        lambda: precondition.scaledgd_lambda(0.1, "value"),
        "damping must be a number or a function of the step; got 'value'",
    ),
    "view": (lambda: precondition.scaledgd(0.1, view="left"), "view must be one of end_to_end"),
    "floor": (lambda: precondition.agn(0.1, floor=-1.0), "floor must be at least 0"),
    "scale": (lambda: precondition.scale_by_gram(scale=-1.0), "scale must be at least 0"),
    "noise": (
        lambda: precondition.precgd(0.1, "value", noise_energy=-1.0),
        "noise_energy must be at least 0",
    ),
    "rate": (lambda: precondition.scaledgd("fast"), "learning_rate must be made of numbers"),
    "rate of NoRA+": (lambda: precondition.noraplus(None), "learning_rate must be made of numb"),
    "minimum": (lambda: precondition.scale_by_polyak(np.inf), "minimum must be a finite number"),
    "no parameters": (
        lambda: update_with(precondition.scale_by_gram(), None),
        "params must be given to the update",
    ),
    "no loss": (
        lambda: update_with(precondition.scale_by_gram("error_scale")),
        'loss must offer `error_scale` for damping="error_scale"; NoneType does not',
    ),
    "bare loss": (
        lambda: update_with(precondition.scale_by_gram("gradient_norm"), loss=Bare()),
        "loss must offer `covariance_gradient` .* Bare does not",
    ),
    "no value": (
        lambda: update_with(precondition.scale_by_gram("value")),
        "value must be given to the update",
    ),
    "no Grams": (
        lambda: update_with(precondition.scale_by_gram(), factorization=Still()),
        r"factorization must offer `grams\(params, view\)`",
    ),
    "absent view": (
        lambda: precondition.scale_by_gram(view="covariance").update(
            PAIR, GRAMS.init(()), PAIR, factorization=Rectangular()
        ),
        "view must be one of end_to_end; got 'covariance'",
    ),
    "other leaves": (
        lambda: precondition.scale_by_gram().update(PAIR, GRAMS.init(()), (SQUARE,)),
        "updates must have a leaf for each Gram .* got 2 for 1",
    ),
    "no value for Polyak": (
        lambda: update_with(precondition.scale_by_polyak()),
        "value and grad must be given",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("as_installed")
def test_bad_input_is_refused_by_name(name):
    call, refusal = REFUSED[name]
    with pytest.raises(ValueError, match=refusal):
        call()


@pytest.mark.usefixtures("as_installed")
def test_a_descent_says_what_its_loss_lacks():
    with pytest.raises(ValueError, match="loss must offer `error_scale`"):
        bw.gradient_descent(
            jax.tree_util.Partial(Bare()), (SQUARE,), precondition.precgd(0.1), num_steps=1
        )
