"""What users add, as the documentation shows it: a loss, an initialiser, a solver, a quantity."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import bwflow as bw


# --- a loss
class Huber(eqx.Module):
    """Sum of Huber's function of the entries of `W - Y`, which outliers move little."""

    Y: jax.Array
    width: jax.Array | float = 1.0

    def __call__(self, W):
        return jnp.sum(optax.losses.huber_loss(W, self.Y, delta=self.width))

    def minimum(self, rank):
        """Known where the rank of the network is not below that of `Y`."""
        del rank
        return jnp.zeros((), self.Y.dtype)


# --- an initialiser
def hadamard(scale=1.0):
    """Layers with entries of one size and random signs."""

    def init(key, widths, dtype=float):
        keys = jax.random.split(key, len(widths) - 1)
        shapes = zip(widths[1:], widths[:-1], strict=True)
        return tuple(
            scale / columns**0.5 * jax.random.rademacher(k, (rows, columns), dtype)
            for k, (rows, columns) in zip(keys, shapes, strict=True)
        )

    return init


# --- a solver
class Leapfrog(diffrax.AbstractERK):
    """The midpoint rule, by its tableau."""

    tableau = diffrax.Midpoint.tableau
    interpolation_cls = diffrax.Midpoint.interpolation_cls

    def order(self, terms):
        del terms
        return 2


def sign_descent(learning_rate):
    """Steps of one size in each entry: any chain of optax is an optimiser."""
    return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(learning_rate))


# --- a quantity
def probe(loss, layers):
    """What is recorded along a run: arrays of any shape, by name."""
    W = bw.end_to_end(layers)
    return {"gap": loss(W) - loss.minimum(min(W.shape)), "largest": jnp.max(jnp.abs(W))}


# --- all of them
def study():
    """A flow and a descent, each with the start, the loss and the quantities above."""
    loss = Huber(jnp.array([[1.0, 0.2], [0.2, 0.5]]))
    layers = hadamard(0.5)(jax.random.key(0), (2, 8, 2))
    flow = bw.gradient_flow(
        loss,
        layers,
        Leapfrog(),
        times=jnp.linspace(0.0, 20.0, 11),
        rtol=1e-5,
        atol=1e-7,
        probe=probe,
    )
    descent = bw.gradient_descent(
        loss, layers, sign_descent(1e-3), num_steps=2000, save_every=200, probe=probe
    )
    return flow, descent
