"""The target that a spec names: a recipe, digits, or what is in a file."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwflow import covariances
from bwflow.covariances import Target
from bwflow.experiment import TargetSpec
from bwflow.factors import sample


def target_size(spec: TargetSpec) -> int:
    """Size of the covariance that a spec names; of a file only the header is read."""
    return spec.dim or read_matrix(spec.path).shape[1]


def make_target(spec: TargetSpec, dtype: Any) -> Target:
    """The target that a spec names.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> spec = bw.experiment.TargetSpec(kind="step", n=3, rank=1)
    >>> bw.study.make_target(spec, jnp.result_type(float)).covariance[0].tolist()
    [1.0, 0.0, 0.0]
    """
    target = _read_target(spec, dtype) if spec.kind in ("digits", "file") else _recipe(spec, dtype)
    if spec.num_samples:
        key = jax.random.fold_in(jax.random.key(spec.seed), 1)
        X = sample((target.factor,), key, spec.num_samples)
        target = Target.from_samples(X)
    if not spec.normalize:
        return target
    return Target.from_factor(target.factor / jnp.sqrt(target.eigenvalues[0]))


def _recipe(spec: TargetSpec, dtype: Any) -> Target:
    n, rank, key = spec.n, spec.rank or spec.n, jax.random.key(spec.seed)
    if spec.kind == "wishart":
        return covariances.wishart(key, n, dof=rank, dtype=dtype)
    spectra = {
        "power_law": lambda: covariances.power_law(n, spec.exponent, dtype=dtype),
        "geometric": lambda: covariances.geometric(n, spec.condition, dtype=dtype),
        "step": lambda: covariances.step(n, rank, spec.low, dtype=dtype),
        "random": lambda: covariances.random_spectrum(
            key,
            n,
            distribution=spec.distribution,
            sampled=spec.sampled,
            minimum=spec.minimum,
            rank=rank,
            dtype=dtype,
        ),
    }
    basis = None if spec.basis_seed < 0 else jax.random.key(spec.basis_seed)
    return covariances.from_spectrum(spectra[spec.kind](), key=basis)


def _read_target(spec: TargetSpec, dtype: Any) -> Target:
    if spec.kind == "file":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            data = read_matrix(spec.path).astype(dtype)
        square = data.shape[0] == data.shape[1]
        try:
            return Target(data) if square else Target.from_samples(data)
        except ValueError as error:
            kind = "square, so a covariance" if square else "samples in rows"
            raise ValueError(f"target.path {spec.path!r} ({kind}): {error}") from None
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


def read_matrix(path: str) -> np.ndarray:
    """The real floating matrix in a .npy file, mapped: its numbers are read when they are used.

    Raises
    ------
    ValueError
        If there is no such file, or it holds anything else.
    """
    try:
        data = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ValueError(f"target.path {path!r} is not a readable .npy file: {reason}.") from None
    if data.ndim != 2 or data.dtype.kind != "f" or data.size == 0:
        raise ValueError(
            f"target.path {path!r} must hold a real floating matrix, a covariance or samples in "
            f"rows; got shape {data.shape} of {data.dtype}."
        )
    return data
