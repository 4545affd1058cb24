"""At n = 100,000 nothing of the loss is n x n, and memory is that of its inputs."""

import jax
import jax.numpy as jnp
import pytest

import bwflow as bw

N, RANK, COLUMNS = 100_000, 200, 32
INPUTS = N * (RANK + COLUMNS)
DTYPE = jnp.zeros(()).dtype
TAUS = {"zero": 0.0, "positive": 0.01}


def structure(*shape):
    return jax.ShapeDtypeStruct(shape, DTYPE)


def target():
    """The shapes of a target of that size, without its numbers."""
    parts = (structure(N, RANK), structure(RANK), structure(N, RANK))
    return jax.tree.unflatten(jax.tree.structure(bw.Target(jnp.eye(1))), parts)


def value_and_gradient(tau):
    return lambda W, target: jax.value_and_grad(bw.smoothed_bures)(W, target, tau=tau)


@pytest.mark.parametrize("tau", TAUS)
def test_memory_of_loss_and_gradient_is_that_of_the_inputs(tau):
    """Target (a factor and its eigenvectors), `W`, gradient and temporaries: below 3 `(W, B)`."""
    program = jax.jit(value_and_gradient(TAUS[tau])).lower(structure(N, COLUMNS), target())
    found = program.compile().memory_analysis()
    made = found.output_size_in_bytes + found.temp_size_in_bytes
    assert found.argument_size_in_bytes + made < 3 * INPUTS * DTYPE.itemsize
    assert made < 0.3 * INPUTS * DTYPE.itemsize


@pytest.mark.parametrize("tau", [*TAUS, "traced"])
def test_no_array_of_loss_gradient_and_hessian_is_n_by_n(tau):
    def derivatives(W, D, target, tau):
        gradient = lambda W: jax.grad(bw.smoothed_bures)(W, target, tau=tau)
        return bw.smoothed_bures(W, target, tau=tau), jax.jvp(gradient, (W,), (D,))

    arguments = (structure(N, COLUMNS), structure(N, COLUMNS), target())
    if tau == "traced":
        shown = str(jax.make_jaxpr(derivatives)(*arguments, structure()))
    else:
        shown = str(jax.make_jaxpr(lambda *x: derivatives(*x, TAUS[tau]))(*arguments))
    assert f"[{N},{COLUMNS}]" in shown
    assert f"{N},{N}" not in shown


SPIKED = bw.covariances.Spiked


def spiked_structure():
    return jax.tree.unflatten(
        jax.tree.structure(SPIKED(jnp.ones((1, 1)), 0.1)), (*jax.tree.leaves(target()), structure())
    )


@pytest.mark.parametrize("tau", TAUS)
def test_spiked_targets_are_never_n_by_n_and_take_little_more_memory(tau):
    arguments = (structure(N, COLUMNS), spiked_structure())
    loss = value_and_gradient(TAUS[tau])
    assert f"{N},{N}" not in str(jax.make_jaxpr(loss)(*arguments))
    found = jax.jit(loss).lower(*arguments).compile().memory_analysis()
    made = found.output_size_in_bytes + found.temp_size_in_bytes
    assert found.argument_size_in_bytes + made < 3 * INPUTS * DTYPE.itemsize
    assert made < INPUTS * DTYPE.itemsize
