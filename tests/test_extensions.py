"""What users add works as what the library has, under vmap and grad too, in few lines."""

import ast
import inspect

import diffrax
import extensions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import bwflow as bw


def test_a_flow_and_a_descent_of_ones_own_loss_arrive():
    flow, descent = extensions.study()
    for run, tolerance in ((flow, 1e-4), (descent, 1e-3)):
        gap = np.asarray(run.probes["gap"])
        assert gap.shape == (11,)
        assert gap[-1] < tolerance * gap[0]
        assert_close(run.probes["largest"][-1], 1.0, 0.05)


def test_ones_own_solver_has_the_order_that_it_says():
    """Twice as many steps of the midpoint rule, a quarter of the error."""

    def error(steps):
        field = diffrax.ODETerm(lambda t, y, args: -y)
        end = diffrax.diffeqsolve(field, extensions.Leapfrog(), 0.0, 1.0, 1 / steps, jnp.ones(()))
        return abs(float(end.ys[-1]) - np.exp(-1.0))

    assert 3.5 < error(20) / error(40) < 4.5


def test_ones_own_loss_is_mapped_over_its_numbers_and_swept():
    def experiment(*, width, seed):
        loss = extensions.Huber(jnp.eye(2), width)
        layers = extensions.hadamard()(jax.random.key(seed), (2, 2))
        return bw.gradient_descent(
            loss, layers, extensions.sign_descent(0.01), num_steps=300, save_every=300
        )

    ds = bw.sweep(
        experiment,
        traced={"width": jnp.array([0.1, 1.0]), "seed": jnp.arange(3)},
        progress=False,
    )
    assert (ds["gap"].isel(save=-1) < 1e-2).all()


@pytest.mark.parametrize("name", ["Huber", "hadamard", "Leapfrog", "probe"])
def test_each_takes_less_than_thirty_lines(name):
    source = inspect.getsource(getattr(extensions, name))
    assert len(source.splitlines()) < 30
    assert ast.parse(source)
