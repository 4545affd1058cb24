"""Running an `Experiment`: from its names to a labelled dataset."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from bwflow import (
    diagnostics,
    initializers,
    losses,
    plan,
    precondition,
    solvers,
    until,
)
from bwflow._named_target import make_target, target_size
from bwflow._trajectory import Trajectory
from bwflow._types import Factors, Initializer, Loss, Probe, Widths
from bwflow.covariances import Target
from bwflow.descent import gradient_descent, recorded_steps
from bwflow.experiment import Experiment, NetworkSpec
from bwflow.factors import end_to_end
from bwflow.flow import gradient_flow
from bwflow.sweeps import COUNTS, label, sweep

__all__ = ["make_target", "run"]

TARGET = ("target_factor", "target_eigenvalues", "target_eigenvectors")  # in a dataset


def run(experiment: Experiment, *, progress: bool = True) -> xr.Dataset:
    """Run a study and label its results.

    Parameters
    ----------
    experiment
        The spec.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        As `bwflow.sweep` returns it, over `dynamics, depth, bottleneck, tau, seed`, with the
        target beside: `target_eigenvalues` (zeros included), `target_factor` and
        `target_eigenvectors`.

    Raises
    ------
    ValueError
        If `experiment` is not an `Experiment`, the target cannot be made or the networks do not
        fit it, or float64 is asked for while jax runs without it.

    Examples
    --------
    >>> import jax
    >>> import bwflow as bw
    >>> spec = bw.Experiment(
    ...     seeds=2, dynamics=("descent",), target=bw.experiment.TargetSpec(n=3),
    ...     descent=bw.experiment.DescentSpec(num_steps=50),
    ...     precision="float64" if jax.config.jax_enable_x64 else "float32")
    >>> bw.study.run(spec, progress=False)["hit"].dims
    ('dynamics', 'depth', 'bottleneck', 'tau', 'seed')
    """
    check_experiment(experiment)
    dtype = _dtype(experiment.precision)
    n = target_size(experiment.target)
    experiment.programs(n)  # refuses networks that do not fit
    target = make_target(experiment.target, dtype)
    static, traced = axes(experiment, n)
    ds = sweep(
        cell(experiment, target),
        static=static,
        traced=traced,
        batch_size=math.prod(plan.chunk(experiment, n)),
        group_size=experiment.group_size or None,
        difficulty=difficulty(experiment, target) if experiment.group_size else None,
        progress=progress,
    )
    return ds.assign(_constants(target)).assign_attrs(_attributes(experiment))


def check_experiment(experiment: Any) -> None:
    """Refuse what is no spec, such as a function."""
    if not isinstance(experiment, Experiment):
        raise ValueError(
            "experiment must be a bwflow.Experiment: names, numbers and small tuples that a store "
            f"can keep; got {type(experiment).__name__}. bwflow.sweep runs any function in memory."
        )


def axes(experiment: Experiment, n: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Static and traced axes of a study, for a covariance of size `n`."""
    network = experiment.network
    static = {
        "dynamics": list(experiment.dynamics),
        "depth": list(network.depth),
        "bottleneck": [k or n for k in network.bottleneck],
    }
    taus = np.asarray(experiment.tau, experiment.precision)
    whole = np.int64 if experiment.precision == "float64" else np.int32
    return static, {"tau": taus, "seed": np.arange(experiment.seeds, dtype=whole)}


def outline(experiment: Experiment, target: Target) -> xr.Dataset:
    """The dataset of a study with one point along every axis, its results not computed.

    Notes
    -----
    Cost: one trace of the probe for each network; nothing is compiled.
    """
    dtype = target.factor.dtype
    static, traced = axes(experiment, target.dim)
    probe = diagnostics.record(*experiment.probe)
    results = []
    for dynamics, widths in experiment.programs(target.dim):
        clock, times = _clock(experiment, dynamics, dtype)
        layers = [jax.ShapeDtypeStruct((b, a), dtype) for a, b in pairwise(widths)]
        rows = jax.eval_shape(
            lambda W: diagnostics.recorded(probe, loss_of(experiment, target, 0.1), W),
            tuple(layers),
        )
        shapes = {name: (1, len(times), *row.shape) for name, row in rows.items()}
        fake = {name: np.zeros(shape, rows[name].dtype) for name, shape in shapes.items()}
        grouped = ("group",) if experiment.group_size else ()
        counts = {name: np.zeros(1, np.int32) for name in (*COUNTS, *grouped)}
        results.append(fake | counts | {"hit": np.zeros(1, dtype), clock: np.asarray(times)[None]})
    ds = label(results, static, {name: values[:1] for name, values in traced.items()})
    first = ds.isel({name: slice(1) for name in static})
    return first.assign(_constants(target)).assign_attrs(_attributes(experiment))


def _clock(experiment: Experiment, dynamics: str, dtype: Any) -> tuple[str, Any]:
    if dynamics == "flow":
        return "time", _save_times(experiment, dtype)
    descent = experiment.descent
    return "step", np.asarray(recorded_steps(descent.updates, descent.save_every), np.int32)


def _constants(target: Target) -> dict[str, Any]:
    """What a dataset keeps of the target."""
    spectrum = np.zeros(target.dim, target.factor.dtype)
    spectrum[: target.rank] = np.asarray(target.eigenvalues)
    sides = ("feature", "component")
    described = {
        "target_eigenvalues": ("eigenvalue", spectrum, "eigenvalues of the target", "covariance"),
        "target_factor": (
            sides,
            target.factor,
            "factor B, the target is B B^T",
            "covariance^(1/2)",
        ),
        "target_eigenvectors": (sides, target.eigenvectors, "eigenvectors of the target", "1"),
    }
    return {
        name: (dims, np.asarray(values), {"long_name": text, "units": units})
        for name, (dims, values, text, units) in described.items()
    }


def kept_target(kept: Mapping[str, Any]) -> Target:
    """The target as a dataset keeps it, the same to the last bit."""
    factor, spectrum, vectors = (np.asarray(kept[name]) for name in TARGET)
    leaves = [jnp.asarray(x) for x in (factor, spectrum[: factor.shape[1]], vectors)]
    return jax.tree.unflatten(jax.tree.structure(Target(jnp.eye(1))), leaves)


def with_layers(experiment: Experiment) -> Probe:
    """What a study records, and the layers `W_1, ..., W_N`."""
    quantities = diagnostics.record(*experiment.probe)

    def probe(loss: Loss, factors: Factors) -> dict[str, Array]:
        layers = {f"W_{j}": W for j, W in enumerate(factors, 1)}
        return dict(quantities(loss, factors)) | layers

    return probe


def _attributes(experiment: Experiment) -> dict[str, Any]:
    return {"experiment": experiment.to_json(), "tolerance": experiment.tolerance}


def _dtype(precision: str) -> Any:
    if precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "precision is float64, but jax runs in float32: set JAX_ENABLE_X64=1 before starting, "
            "call jax.config.update('jax_enable_x64', True) first, or ask for float32."
        )
    return np.dtype(precision)


def cell(experiment: Experiment, target: Target, probe: Probe | None = None):
    """One run, as a function of its coordinates."""
    init = _start(experiment.network, target)
    probe = probe or diagnostics.record(*experiment.probe)
    stop = until.gap(experiment.tolerance) if experiment.tolerance else None
    flow, descent = experiment.flow, experiment.descent
    solver = solver_of(flow.solver)
    optimizer = optimizer_of(descent.optimizer)
    times = _save_times(experiment, target.factor.dtype)

    def run_one(*, dynamics, depth, bottleneck, tau, seed) -> Trajectory:
        loss = loss_of(experiment, target, tau)
        widths = experiment.network.widths(target.dim, depth, bottleneck)
        start = init(jax.random.key(seed), widths, tau)
        if dynamics == "flow":
            return gradient_flow(
                loss,
                start,
                solver,
                times=times,
                rtol=flow.rtol,
                atol=flow.atol,
                probe=probe,
                until=stop,
                max_steps=flow.max_steps,
                throw=False,
            )
        rate = descent.learning_rate
        if not rate:
            rule = descent.optimizer == "deep_precgd"
            rate = 1.0 if rule else _learning_rate(loss(end_to_end(start)), target, depth)
        return gradient_descent(
            loss,
            start,
            optimizer(rate),
            num_steps=descent.updates,
            save_every=descent.save_every,
            probe=probe,
            until=stop,
            throw=False,
        )

    return run_one


def difficulty(experiment: Experiment, target: Target) -> Callable[..., tuple[Array, Array]]:
    """What tells slow runs from fast ones: the smoothing, then the start's least singular value.

    Among runs of one smoothing that takes longest to grow.
    """
    init = _start(experiment.network, target)

    def measure(*, dynamics, depth, bottleneck, tau, seed):
        del dynamics
        widths = experiment.network.widths(target.dim, depth, bottleneck)
        W = end_to_end(init(jax.random.key(seed), widths, tau))
        return tau, -jnp.linalg.svd(W, compute_uv=False)[-1]

    return measure


def loss_of(experiment: Experiment, target: Target, tau: ArrayLike) -> Loss:
    """The loss that a spec names."""
    if experiment.loss == "frobenius":
        return losses.Frobenius(target, tau)
    return losses.BuresWasserstein(target, tau, experiment.method)


def solver_of(name: str) -> diffrax.AbstractSolver:
    """The solver that a spec names, of diffrax or of this library."""
    return getattr(diffrax if hasattr(diffrax, name) else solvers, name)()


def optimizer_of(name: str) -> Callable[..., optax.GradientTransformation]:
    """The optimiser of a learning rate that a spec names."""
    return precondition.deep_precgd if name == "deep_precgd" else getattr(optax, name)


def _start(spec: NetworkSpec, target: Target) -> Callable[..., Factors]:
    """The start that a spec names, of a key, widths and the smoothing."""
    dtype, even = target.factor.dtype, {"scale": spec.scale, "rank": spec.rank or None}

    def draw(name: str) -> Initializer:
        if name == "gaussian":
            return initializers.gaussian(spec.std or None, gamma=spec.gamma)
        if name == "uniform":
            return initializers.uniform(spec.std * 3**0.5 or None)
        return initializers.INITIALIZERS[name]()

    def start(key: PRNGKeyArray, widths: Widths, tau: Array) -> Factors:
        if spec.init in ("balanced", "rebalanced"):
            split = initializers.INITIALIZERS[spec.init]
            init = split(draw(spec.draw), min_singular_value=spec.min_singular_value, **even)
        elif spec.init == "low_rank":
            init = initializers.low_rank(spec.rank, scale=spec.scale)
        elif spec.init == "near_target":
            init = initializers.near_target(target, radius=spec.radius, tau=tau)
        else:
            layers = draw(spec.init)(key, widths, dtype)
            return tuple(W * spec.scale for W in layers)
        return init(key, widths, dtype)

    return start


def _save_times(experiment: Experiment, dtype: Any):
    flow = experiment.flow
    if flow.first_save == 0:
        return jnp.linspace(0, flow.end_time, flow.num_saves + 1, dtype=dtype)
    later = jnp.geomspace(flow.first_save, flow.end_time, flow.num_saves, dtype=dtype)
    return jnp.concatenate([jnp.zeros(1, dtype), later])


def _learning_rate(loss_at_start, target: Target, depth: int):
    """`1 / (2 N (sqrt(lambda_1) + sqrt(L(0)))^(2 (N-1) / N))`, seen to descend monotonically."""
    reach = jnp.sqrt(target.eigenvalues[0]) + jnp.sqrt(loss_at_start)
    return 0.5 / (depth * reach ** (2 * (depth - 1) / depth))
