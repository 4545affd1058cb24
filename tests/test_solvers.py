"""Runge-Kutta-Chebyshev: its stability polynomial, order, step sizes, transforms and flows."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optimistix as optx
import pytest
from helpers import EPS, X64, assert_close, by_precision, first, gaussian_factors, random_target

import bwflow as bw
from bwflow.solvers import RKC, _chebyshev

END_OF_INTERVAL = 0.653  # times s^2 - 1


def stability_polynomial(s, z):
    """`1 - b T_s(w0) + b T_s(w0 + w1 z)`, in forty digits."""
    with mpmath.workdps(40):
        w0 = 1 + mpmath.mpf(2) / 13 / s**2
        T = partial(mpmath.chebyt, s)
        first, second = mpmath.diff(T, w0), mpmath.diff(T, w0, 2)
        b = second / first**2
        return float(1 - b * T(w0) + b * T(w0 + first / second * z))


@jax.jit
def one_step(s, z):
    """The factor of one step of `s` stages of `y' = z y`."""
    return _chebyshev(lambda t, y: z * y, 0.0, jnp.ones(()), jnp.ones(1), z[None], s, 64)[0]


@pytest.mark.parametrize("s", [2, 3, 5, 16, 60])
def test_a_step_is_the_damped_chebyshev_polynomial(s):
    ends = -END_OF_INTERVAL * (s**2 - 1) * np.linspace(0.0, 1.0, 24)
    found = jax.vmap(partial(one_step, jnp.int32(s)))(jnp.asarray(ends, dtype=float))
    expected = [stability_polynomial(s, float(np.asarray(z, found.dtype))) for z in ends]
    assert_close(found, expected, 32 * EPS * s**2)


@pytest.mark.parametrize("s", [2, 3, 5, 16, 60])
def test_the_stability_interval_is_as_stated(s):
    """No growth anywhere within, and growth a third beyond."""
    within = -END_OF_INTERVAL * (s**2 - 1) * jnp.linspace(0.0, 1.0, 2001)
    factors = jax.vmap(partial(one_step, jnp.int32(s)))(within)
    assert np.max(np.abs(factors)) <= 1 + 32 * EPS * s**2
    assert abs(one_step(jnp.int32(s), 4 / 3 * within[-1])) > 1


def reference(t, y, _):
    """Not autonomous, of two components, with `y = (1 / (1 + sin t), t^2 / 2 + 1 / 2)`."""
    return jnp.stack([-(y[0] ** 2) * jnp.cos(t), t + 0 * y[1]])


def solve(field, y0, t1, solver=None, *, steps=None, rtol=1e-3, atol=1e-6, **options):
    controller = diffrax.ConstantStepSize()
    if steps is None:
        controller = diffrax.PIDController(rtol, atol, norm=optx.max_norm)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        RKC() if solver is None else solver,
        0.0,
        t1,
        None if steps is None else t1 / steps,
        y0,
        stepsize_controller=controller,
        max_steps=20_000,
        throw=False,
        **options,
    )


def test_errors_are_of_second_order():
    counts = np.array([8, 16, 32])
    start, exact = jnp.array([1.0, 0.5]), np.array([1 / (1 + np.sin(1.0)), 1.0])
    ends = [solve(reference, start, 1.0, steps=n).ys[-1] for n in counts]
    first = np.array([abs(float(y[0]) - exact[0]) for y in ends])
    orders = np.log2(first[:-1] / first[1:])
    assert np.all(np.abs(orders - 2) < by_precision(0.1, 0.2)), orders
    # What is quadratic in time is exact, if stages stand at their times.
    assert_close(jnp.stack(ends)[:, 1], np.full(3, 1.0), by_precision(1e-13, 1e-5))


def test_dense_output_is_of_the_order_of_a_step():
    """Between steps, where the interpolant and not the method is at work."""
    times = jnp.linspace(0.0, 1.0, 14)
    save = diffrax.SaveAt(ts=times)
    run = solve(reference, jnp.array([1.0, 0.5]), 1.0, steps=20, saveat=save)
    assert_close(run.ys[:, 0], 1 / (1 + np.sin(np.asarray(times))), 5e-4)
    assert_close(run.ys[:, 1], np.asarray(times) ** 2 / 2 + 0.5, by_precision(1e-12, 1e-5))


def stiff(rates):
    """`y' = -rates (y - cos t) - sin t`, solved by `cos t` from 1."""
    return lambda t, y, _: -rates * (y - jnp.cos(t)) - jnp.sin(t)


@pytest.mark.parametrize("stiffness", [1e2, 1e4, pytest.param(1e5, marks=pytest.mark.float64)])
def test_stiffness_does_not_decide_the_number_of_steps(stiffness):
    rates = stiffness * jnp.linspace(0.0, 1.0, 7)
    run = solve(stiff(rates), jnp.ones(7), 2.0, rtol=1e-3, atol=1e-4)
    assert run.result == diffrax.RESULTS.successful
    assert int(run.stats["num_steps"]) < 60
    assert_close(run.ys[-1], np.full(7, np.cos(2.0)), 2e-3)


def test_too_few_stages_make_smaller_steps():
    rates = 1e3 * jnp.linspace(0.0, 1.0, 7)
    run = solve(stiff(rates), jnp.ones(7), 1.0, RKC(max_stages=4))
    # No step may be longer than the interval of four stages, by the exact radius.
    assert int(run.stats["num_accepted_steps"]) >= 1e3 / (END_OF_INTERVAL * 15)
    assert run.result == diffrax.RESULTS.successful
    assert_close(run.ys[-1], np.full(7, np.cos(1.0)), 2e-3)


def test_a_field_that_is_not_finite_fails_and_leaves_the_batch_alone():
    def end(y0):
        run = solve(lambda t, y, _: -jnp.log(y), y0, 0.5)
        return run.ys[-1], run.result == diffrax.RESULTS.successful

    starts = jnp.array([[2.0], [-1.0], [1.5]])
    ends, fine = jax.jit(jax.vmap(end))(starts)
    assert fine.tolist() == [True, False, True]
    alone, _ = jax.jit(jax.vmap(end))(starts.at[1].set(2.0))
    assert np.array_equal(ends[::2], alone[::2])


def test_derivatives_in_both_modes():
    """Of `y0 / (1 + y0 t)`, the solution of `y' = -y^2`."""

    def end(y0, adjoint):
        run = solve(lambda t, y, _: -(y**2), y0, 1.0, rtol=1e-4, atol=1e-6, adjoint=adjoint)
        return run.ys[-1]

    y0 = jnp.array([1.0, 2.0])
    exact = np.diag(1 / (1 + np.asarray(y0)) ** 2)
    forward = jax.jacfwd(partial(end, adjoint=diffrax.ForwardMode()))(y0)
    backward = jax.jacrev(partial(end, adjoint=diffrax.RecursiveCheckpointAdjoint()))(y0)
    assert_close(forward, exact, 1e-3)
    assert_close(backward, forward, by_precision(1e-12, 1e-5))


@pytest.mark.parametrize("depth", first(1, [2, 1, 3]))
def test_follows_the_gradient_flow(depth):
    """As the default solver does, at tight tolerances."""
    target = random_target(1, 4, condition=by_precision(1e4, 1e2))
    loss = bw.losses.BuresWasserstein(target, 0.0)
    layers = gaussian_factors(3, (4,) * (depth + 1))
    times = jnp.array([0.0, 0.3, 2.0])
    go = partial(bw.gradient_flow, loss, layers, times=times)
    accuracy = by_precision(1e-5, 1e-4)
    run = go(RKC(), rtol=accuracy, atol=accuracy / 10)
    expected = go(rtol=by_precision(1e-9, 1e-6), atol=by_precision(1e-11, 1e-7))
    assert_close(run.probes["loss"], expected.probes["loss"], 20 * accuracy)
    for found, layer in zip(run.factors, expected.factors, strict=True):
        assert_close(found, layer, 50 * accuracy)


def test_converges_where_explicit_solvers_cannot():
    """To the optimum of a target of condition 1e4, in steps much longer than stability allows."""
    target = random_target(2, 4, condition=1e4)
    loss = bw.losses.BuresWasserstein(target, 0.0)
    layers = bw.initializers.orthogonal(0.5)(jax.random.key(3), (4, 4, 4), dtype=float)
    options = {"times": jnp.array([0.0, 400.0]), "rtol": 1e-3, "atol": 1e-5, "throw": False}
    run = bw.gradient_flow(loss, layers, RKC(), **options)
    # Near the optimum the largest decay rate of two balanced layers is 4 sigma_1 = 4.
    assert int(run.num_steps) < 400 * 4 / 3.3 / 4
    assert run.result == bw.RESULTS.successful
    assert run.probes["loss"][-1] < by_precision(1e-9, 1e-6)


@pytest.mark.parametrize("count", [0, 1, -3, 2.5, "many"])
def test_refuses_other_numbers_of_stages(count, as_installed):
    with pytest.raises(ValueError, match=r"max_stages must be .*; got "):
        RKC(max_stages=count)


def test_rounding_of_the_precision():
    """Without stiffness every precision gives what its rounding allows."""
    run = solve(lambda t, y, _: -y, jnp.ones(3), 1.0, steps=400)
    assert_close(run.ys[-1], np.full(3, np.exp(-1.0)), 2e-6 if X64 else 5e-6)
