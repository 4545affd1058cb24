"""Running an `Experiment`: from its names to a labelled dataset."""

from collections.abc import Callable
from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from bwflow import covariances, diagnostics, initializers, losses, until
from bwflow._trajectory import Trajectory
from bwflow.covariances import Target
from bwflow.descent import gradient_descent
from bwflow.experiment import Experiment, TargetSpec
from bwflow.factors import constant_widths, end_to_end
from bwflow.flow import gradient_flow
from bwflow.sweeps import sweep

_LOSSES = {"bures_wasserstein": losses.BuresWasserstein, "frobenius": losses.Frobenius}


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
        variable `target_eigenvalues` (zeros included) beside.

    Raises
    ------
    ValueError
        If a name is not registered, the target cannot be made, or float64 is asked for while
        jax runs without it.

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
    dtype = _dtype(experiment.precision)
    target = make_target(experiment.target, dtype)
    widths = [k or target.dim for k in experiment.network.bottleneck]
    if len(set(widths)) != len(widths) or max(widths) > target.dim:
        raise ValueError(
            f"network.bottleneck must be distinct widths up to {target.dim}, 0 standing for "
            f"{target.dim}; got {experiment.network.bottleneck}."
        )
    ds = sweep(
        _cell(experiment, target),
        static={
            "dynamics": experiment.dynamics,
            "depth": experiment.network.depth,
            "bottleneck": widths,
        },
        traced={"tau": np.asarray(experiment.tau, dtype), "seed": np.arange(experiment.seeds)},
        batch_size=experiment.batch_size or None,
        memory_limit=experiment.memory_limit_gb * 2**30,
        progress=progress,
    )
    spectrum = np.zeros(target.dim, dtype)
    spectrum[: target.rank] = np.asarray(target.eigenvalues)
    ds["target_eigenvalues"] = (
        "eigenvalue",
        spectrum,
        {"long_name": "eigenvalues of the target", "units": "covariance"},
    )
    return ds.assign_attrs(experiment=experiment.to_json(), tolerance=experiment.tolerance)


def _dtype(precision: str) -> Any:
    if precision == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "precision is float64, but jax runs in float32: set JAX_ENABLE_X64=1 before starting, "
            "call jax.config.update('jax_enable_x64', True) first, or ask for float32."
        )
    return np.dtype(precision)


def make_target(spec: TargetSpec, dtype: Any) -> Target:
    """The target that a spec names."""
    target = _read_target(spec, dtype) if spec.kind in ("digits", "file") else _recipe(spec, dtype)
    if not spec.normalize:
        return target
    return Target.from_factor(target.factor / jnp.sqrt(target.eigenvalues[0]))


def _recipe(spec: TargetSpec, dtype: Any) -> Target:
    key = None if spec.basis_seed < 0 else jax.random.key(spec.basis_seed)
    if spec.kind == "wishart":
        return covariances.wishart(
            jax.random.key(max(spec.basis_seed, 0)), spec.n, dof=spec.rank, dtype=dtype
        )
    spectra = {
        "power_law": lambda: covariances.power_law(spec.n, spec.exponent, dtype=dtype),
        "geometric": lambda: covariances.geometric(spec.n, spec.condition, dtype=dtype),
        "step": lambda: covariances.step(spec.n, spec.rank, spec.low, dtype=dtype),
    }
    return covariances.from_spectrum(spectra[spec.kind](), key=key)


def _read_target(spec: TargetSpec, dtype: Any) -> Target:
    if spec.kind == "file":
        try:
            data = np.load(spec.path, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"target.path {spec.path!r} is not a .npy file: {error}.") from None
        if not isinstance(data, np.ndarray):
            raise ValueError(f"target.path {spec.path!r} must hold one array, as .npy files do.")
        if data.ndim == 2 and data.shape[0] == data.shape[1]:
            return Target(data.astype(dtype))
        return Target.from_samples(data.astype(dtype))
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "target.kind 'digits' needs scikit-learn: pip install 'bwflow[demo]'."
        ) from None
    images = np.asarray(load_digits(return_X_y=True)[0]).reshape(-1, 8, 8)
    side, block = spec.pixels, 8 // spec.pixels
    averaged = images.reshape(-1, side, block, side, block).mean(axis=(2, 4))
    return Target.from_samples(averaged.reshape(len(images), -1).astype(dtype))


def _cell(experiment: Experiment, target: Target):
    """One run, as a function of its coordinates."""
    init = _start(experiment)
    probe = diagnostics.record(*experiment.probe)
    stop = until.gap(experiment.tolerance)
    flow, descent = experiment.flow, experiment.descent
    solver, optimizer = _solver(flow.solver), _optimizer(descent.optimizer)
    ruled = (experiment.loss, descent.optimizer) == ("bures_wasserstein", "sgd")
    if descent.learning_rate == 0 and "descent" in experiment.dynamics and not ruled:
        raise ValueError(
            "descent.learning_rate must be given: 0 stands for a rule that is for sgd under the "
            f"Bures-Wasserstein loss; got {descent.optimizer} and {experiment.loss}."
        )
    times = _save_times(experiment, target.factor.dtype)

    def cell(*, dynamics, depth, bottleneck, tau, seed) -> Trajectory:
        loss = _LOSSES[experiment.loss](target, tau)
        widths = constant_widths(target.dim, depth, inner=bottleneck)
        start = init(jax.random.key(seed), widths, dtype=times.dtype)
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
        rate = descent.learning_rate or _learning_rate(loss(end_to_end(start)), target, depth)
        return gradient_descent(
            loss,
            start,
            optimizer(rate),
            num_steps=descent.num_steps,
            save_every=descent.save_every,
            probe=probe,
            until=stop,
            throw=False,
        )

    return cell


def _start(experiment: Experiment):
    name, scale = experiment.network.init, experiment.network.scale
    known = initializers.INITIALIZERS
    if name not in known:
        raise ValueError(f"network.init must be one of {', '.join(known)}; got {name!r}.")
    if name == "balanced":
        return known[name](scale=scale)
    init = known[name]()
    return lambda key, widths, dtype: jax.tree.map(
        lambda W: W * scale, init(key, widths, dtype=dtype)
    )


def _solver(name: str) -> diffrax.AbstractAdaptiveSolver:
    kind = getattr(diffrax, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffrax.AbstractAdaptiveSolver)):
        raise ValueError(
            "flow.solver must be a diffrax solver with an error estimate, such as Tsit5, Dopri8 "
            f"or Kvaerno5; got {name!r}."
        )
    return kind()


def _optimizer(name: str) -> Callable[..., optax.GradientTransformation]:
    factory = getattr(optax, name, None)
    try:
        made = factory(0.1) if callable(factory) else None
    except TypeError:
        made = None
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            "descent.optimizer must be an optax optimiser that takes a learning rate, such as sgd "
            f"or adam; got {name!r}."
        )
    return cast(Callable[..., optax.GradientTransformation], factory)


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
