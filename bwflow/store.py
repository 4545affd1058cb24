"""Datasets on disk: labelled Zarr stores that `xarray.open_zarr` reads alone."""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

import xarray as xr
from zarr.storage import LocalStore  # of a path as it stands: ~ and :: have no other meaning

_PACKAGES = ("bwflow", "jax", "jaxlib", "diffrax", "optax")


def write(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a dataset as a Zarr v3 store, whole or not at all.

    The store is made in a temporary folder beside `path` and renamed. Versions of the packages
    that determine the numbers go into its attributes; dates, hosts and timings do not.

    Raises
    ------
    ValueError
        If `ds` is no dataset, if `path` exists and `overwrite` is false, or if it exists and is not
        a Zarr store.

    Examples
    --------
    >>> import tempfile, xarray as xr
    >>> from bwflow import store
    >>> folder = tempfile.mkdtemp()
    >>> store.write(xr.Dataset({"x": ("seed", [1.0, 2.0])}), f"{folder}/store")
    >>> store.read(f"{folder}/store")["x"].values.tolist()
    [1.0, 2.0]
    """
    if not isinstance(ds, xr.Dataset):
        raise ValueError(
            f"ds must be an xarray.Dataset; got {type(ds).__name__}. A stored sweep is data: the "
            "dataset that a sweep returned, or that bwflow.study.run made of an Experiment, which "
            "is a spec of registered names, numbers and small arrays. A closure can be run in "
            "memory by bwflow.sweep, and the dataset which that returns can be written."
        )
    path = _place(path)
    check_place(path)
    if path.exists() and not overwrite:
        raise ValueError(f"store {path} exists; ask for overwrite to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bwflow-") as folder:
        draft = Path(folder) / "store"
        versions = {name: version(name) for name in _PACKAGES}
        ds.assign_attrs(versions=json.dumps(versions)).to_zarr(
            LocalStore(draft), mode="w-", zarr_format=3, consolidated=False
        )
        if path.exists():
            os.rename(path, Path(folder) / "replaced")
        os.rename(draft, path)


def check_place(path: str | Path) -> None:
    """Refuse, before any long work, a place where `write` could not leave a store.

    Raises
    ------
    ValueError
        If what is at `path` is not a Zarr store, or no folder can be made there.
    """
    path = _place(path)
    try:
        if path.exists():
            if not _is_store(path):
                raise ValueError(f"{path} is not a Zarr store and is not replaced.")
            return
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise ValueError(f"store {path} cannot be made: {error.strerror}.") from None
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"store {path} cannot be made: {above} is not a writable folder.")


def read(path: str | Path) -> xr.Dataset:
    """Open a store.

    Raises
    ------
    ValueError
        If there is no Zarr store at `path`, or it is damaged.
    """
    path = _place(path)
    if not _is_store(path):
        raise ValueError(f"store {path} is not a Zarr store.")
    try:
        return xr.open_zarr(LocalStore(path, read_only=True), consolidated=False).load()
    except Exception as error:  # whatever the layers below make of damaged files
        raise ValueError(f"store {path} cannot be read: {error}.") from error


def _place(path: str | Path) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ValueError(f"path must be a text or a pathlib.Path; got {path!r}.")
    return Path(path)


def _is_store(path: Path) -> bool:
    try:
        return (path / "zarr.json").is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False
