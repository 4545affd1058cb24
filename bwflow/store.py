"""Datasets on disk: labelled Zarr stores that `xarray.open_zarr` reads alone."""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import xarray as xr

_PACKAGES = ("bwflow", "jax", "jaxlib", "diffrax", "optax")


def write(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a dataset as a Zarr v3 store, whole or not at all.

    The store is made in a temporary folder beside `path` and renamed. Versions of the packages
    that determine the numbers go into its attributes; dates, hosts and timings do not.

    Raises
    ------
    ValueError
        If `path` exists and `overwrite` is false, or it exists and is not a Zarr store.

    Examples
    --------
    >>> import tempfile, xarray as xr
    >>> from bwflow import store
    >>> folder = tempfile.mkdtemp()
    >>> store.write(xr.Dataset({"x": ("seed", [1.0, 2.0])}), f"{folder}/store")
    >>> store.read(f"{folder}/store")["x"].values.tolist()
    [1.0, 2.0]
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"store {path} exists; ask for overwrite to replace it.")
    if path.exists() and not _is_store(path):
        raise ValueError(f"{path} is not a Zarr store and is not replaced.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / "store"
        versions = {name: version(name) for name in _PACKAGES}
        ds.assign_attrs(versions=json.dumps(versions)).to_zarr(
            draft, mode="w-", zarr_format=3, consolidated=False
        )
        if path.exists():
            os.rename(path, Path(folder) / "replaced")
        os.rename(draft, path)


def read(path: str | Path) -> xr.Dataset:
    """Open a store.

    Raises
    ------
    ValueError
        If there is no Zarr store at `path`.
    """
    if not _is_store(Path(path)):
        raise ValueError(f"store {path} is not a Zarr store.")
    return xr.open_zarr(path, consolidated=False).load()


def _is_store(path: Path) -> bool:
    return (path / "zarr.json").is_file()
