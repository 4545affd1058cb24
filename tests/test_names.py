"""The names that a spec may use, held against what they stand for."""

import inspect
from typing import get_args

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bwflow as bw
from bwflow import _names, covariances, diagnostics, initializers
from bwflow._types import Initializer
from bwflow.experiment import TargetSpec
from bwflow.study import optimizer_of, solver_of

pytestmark = pytest.mark.once

SOLVERS = get_args(_names.Solver)
OPTIMIZERS = get_args(_names.Optimizer)
# Those that need a loss or a matrix are beyond what a spec can say.
STARTS_BY_NAME = ("bwflow.initializers._random", "bwflow.initializers._split")


def test_starts_are_what_the_initializers_offer():
    """Every public factory of initial factors, and of those that need no argument the draws."""
    factories = {
        name
        for name, value in vars(initializers).items()
        if inspect.isfunction(value)
        and value.__module__ in STARTS_BY_NAME
        and not name.startswith("_")
        and inspect.signature(value).return_annotation is Initializer
    }
    starts, draws = get_args(_names.Start), get_args(_names.Draw)
    assert set(starts) == factories
    assert len(set(starts)) == len(starts)
    assert set(draws) == set(initializers.INITIALIZERS) - {"balanced", "rebalanced"}
    assert set(starts) - set(draws) == {"balanced", "rebalanced", "near_target", "low_rank"}


def test_quantities_are_those_of_the_diagnostics():
    assert get_args(_names.Quantity) == tuple(diagnostics.QUANTITIES)


def test_distributions_are_those_of_the_covariances():
    hint = TargetSpec.__dataclass_fields__["distribution"].type
    assert get_args(hint) == covariances.DISTRIBUTIONS


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_have_an_error_estimate(name):
    assert isinstance(solver_of(name), diffrax.AbstractAdaptiveSolver)
    assert SOLVERS.count(name) == 1


def problem(loss=bw.losses.BuresWasserstein):
    """Two positive numbers to be doubled: a diagonal target and a diagonal start."""
    target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    return loss(target, 0.0), (jnp.diag(jnp.array([1.0, 0.5])),)


IMPLICIT = ("ImplicitEuler", "Kvaerno3", "Kvaerno4", "Kvaerno5")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in IMPLICIT)) for name in SOLVERS],
)
def test_solvers_run_a_flow(name):
    """One layer: each singular value obeys `s' = -2 (s - sqrt(lambda))`."""
    loss, start = problem()
    times = jnp.array([0.0, 0.5])
    run = bw.gradient_flow(loss, start, solver_of(name), times=times, rtol=1e-4, atol=1e-6)
    accuracy = 5e-3 if name == "ImplicitEuler" else 1e-3  # of first order
    assert abs(float(run.probes["loss"][-1]) - 1.25 * np.exp(-2.0)) < accuracy


def test_optimizers_lower_the_loss():
    """All of them in one program, at a rate that suits both signs and gradients."""
    loss, start = problem(bw.losses.Frobenius)

    @jax.jit
    def losses():
        return {
            name: bw.gradient_descent(
                loss, start, optimizer_of(name)(0.01), num_steps=4, save_every=4
            ).probes["loss"]
            for name in OPTIMIZERS
        }

    found = losses()
    assert set(found) == set(OPTIMIZERS)
    assert len(OPTIMIZERS) == len(found)
    for name, (before, after) in found.items():
        assert before == pytest.approx(3.0**2 + 0.75**2, abs=1e-4), name
        assert after < before, name
