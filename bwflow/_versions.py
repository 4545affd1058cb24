"""Versions of what decides the numbers, and of what reads and writes them."""

import contextlib
import platform
from collections.abc import Iterable
from importlib import import_module, metadata

NUMERIC = ("jax", "jaxlib", "diffrax", "optax", "equinox", "lineax", "optimistix")
_OTHERS = ("jaxtyping", "numpy", "scipy", "xarray", "zarr", "tyro", "matplotlib", "scikit-learn")


def of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of bwflow and of those packages that are installed."""
    found = {"bwflow": import_module("bwflow").__version__}  # it may be only on the path
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def show() -> None:
    """Print what a bug report should name."""
    bwflow, *others = of(NUMERIC + _OTHERS).items()
    print(*bwflow)
    print(f"Python {platform.python_version()} on {platform.platform()}")
    for name, version in others:
        print(name, version)
