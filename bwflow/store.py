"""Datasets on disk: labelled Zarr stores that `xarray.open_zarr` reads alone."""

import contextlib
import errno
import glob
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore  # of a path as it stands: ~ and :: have no other meaning

from bwflow import _versions

__all__ = ["DamagedStoreError", "is_store", "open", "read", "write"]

# What a damaged store makes of the file system's errors; others are not the store's.
_DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_SCRATCH = ".draft"
FORMAT = 1
"""Number of the layout of stores, for a bwflow that is older than a layout to refuse it."""


class DamagedStoreError(ValueError):
    """A file of a store is missing, cut short or altered."""


def write(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a dataset as a Zarr v3 store, whole or not at all.

    The store is made in a temporary folder beside `path` and renamed. Versions of the packages
    that determine the numbers and the number of the format go into its attributes; dates, hosts and
    timings do not.

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
    with draft(path, overwrite=overwrite) as folder:
        told = {"versions": json.dumps(versions()), "store_format": FORMAT}
        write_into(ds.assign_attrs(told), folder)


def versions() -> dict[str, str]:
    """Versions of the packages that determine the numbers."""
    return _versions.of(_versions.NUMERIC)


def write_into(ds: xr.Dataset, path: Path) -> None:
    """Write a dataset where nothing is yet; not in one piece."""
    codecs = {"compressors": (ZstdCodec(), Crc32cCodec())}  # by which damage is seen
    encoding = dict.fromkeys(ds.variables, codecs)
    # A chunk of nothing but fill values gets a file too, so that a missing file is one lost.
    with zarr.config.set({"array.write_empty_chunks": True}):
        ds.to_zarr(
            LocalStore(path), mode="w-", zarr_format=3, consolidated=False, encoding=encoding
        )


@contextlib.contextmanager
def draft(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder for a store in the making, which gets its name at the end, unless that fails.

    Raises
    ------
    ValueError
        As `check_place`, or if there is a store and `overwrite` is false.
    FileExistsError
        If another process makes one meanwhile.
    """
    path = place(path)
    check_place(path)
    if path.exists() and not overwrite:
        raise ValueError(f"store {path} exists; ask for overwrite to replace it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch(path) as folder:
        made = folder / "store"
        try:
            yield made
            if overwrite and path.exists():
                os.rename(path, folder / "replaced")
            os.rename(made, path)
        except OSError as error:
            if overwrite or not is_store(path):
                raise
            raise FileExistsError(f"store {path} was made by another process just now") from error


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A temporary folder beside a store, or what is made of one."""
    prefix = f".{path.name}-{socket.gethostname()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=prefix, suffix=_SCRATCH, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)
    clear_scratch(path)


def file_place(file: str | Path) -> Path:
    """A file to be written as a `Path`; refused if it is a folder."""
    if not isinstance(file, (str, os.PathLike)) or not str(file):
        raise ValueError(f"file must be a text or a pathlib.Path; got {file!r}.")
    if Path(file).is_dir():
        raise ValueError(f"file must be the name of a file; got the folder {file}.")
    return Path(file)


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name beside a file for its draft, which gets the file's name at the end."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"file {file} cannot be made: {error.strerror}.") from None
    with scratch(file) as folder:
        draft = folder / file.name
        yield draft
        draft.replace(file)


def clear_scratch(path: Path) -> None:
    """Remove the temporary folders beside a store that killed processes of this host have left."""
    prefix = f".{path.name}-{socket.gethostname()}-"
    for folder in path.parent.glob(f"{glob.escape(prefix)}*{_SCRATCH}"):
        process = folder.name.removeprefix(prefix).partition("-")[0]
        if process.isdecimal() and not _is_alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def check_place(path: str | Path) -> None:
    """Refuse, before any long work, a place where `write` could not leave a store.

    Raises
    ------
    ValueError
        If what is at `path` is not a Zarr store, or no folder can be made there.
    """
    path = place(path)
    try:
        if path.exists():
            if not is_store(path):
                raise ValueError(f"{path} is not a Zarr store and is not replaced.")
            return
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise ValueError(f"store {path} cannot be made: {error.strerror}.") from None
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"store {path} cannot be made: {above} is not a writable folder.")


def open(path: str | Path) -> xr.Dataset:
    """Open a store; what it holds is read when it is used.

    Raises
    ------
    ValueError
        If there is no Zarr store at `path`, it has the format of a later bwflow, or is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> bw.store.open(folder)["hit"].dims
    ('dynamics', 'depth', 'bottleneck', 'tau', 'seed')
    """
    path = check_store(path)
    with damage(path):
        group = zarr.open_group(LocalStore(path, read_only=True), mode="r")
    # One by one: read all at once, as below, those that are damaged beside the first are told of at
    # the end of the process, with tracebacks.
    for name in array_names(path):
        with damage(path, name):
            group[name]
    with damage(path):
        return xr.open_zarr(LocalStore(path, read_only=True), consolidated=False, chunks=None)


def read(path: str | Path) -> xr.Dataset:
    """Read a store as a whole.

    Raises
    ------
    ValueError
        If there is no Zarr store at `path`, or it is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> int(bw.store.read(folder)["done"].sum())
    0
    """
    ds = open(path)
    with damage(place(path)):
        return ds.load()


@contextlib.contextmanager
def damage(path: Path, name: str = "", where: dict[str, slice] | None = None) -> Iterator[None]:
    """Whatever the layers below make of damaged files becomes one kind of error."""
    try:
        yield
    except (DamagedStoreError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _DAMAGE:
            raise
        sides = (where or {}).items()
        unit = ", ".join(f"{axis} {side.start}:{side.stop}" for axis, side in sides)
        what = f", variable {name}" * bool(name) + f" at {unit}" * bool(unit)
        raise DamagedStoreError(_told(path, what, str(error))) from error


def _told(path: Path, what: str, reason: str) -> str:
    advice = "bwflow repair makes what is damaged anew."
    return f"store {path} cannot be read{what}: {reason.rstrip('.')}; {advice}"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What nothing but a damaged store leads to becomes its error; refusals pass."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DamagedStoreError(_told(path, "", reason)) from error


def array_names(path: Path) -> list[str]:
    """Names of the arrays of a store; one that has chunks and no description is refused.

    Zarr would leave it out.
    """
    with damage(path):
        folders = sorted(path.iterdir())
    names = []
    for folder in folders:
        with damage(path, folder.name):
            if (file := folder / "zarr.json").is_file():
                names.append(folder.name)
            elif (folder / "c").exists() or file.is_symlink() or file.exists():
                raise FileNotFoundError(f"{file} is missing")
    return names


def place(path: str | Path) -> Path:
    """A path as a `Path`."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ValueError(f"path must be a text or a pathlib.Path; got {path!r}.")
    return Path(path)


def beside(path: str | Path, suffix: str) -> Path:
    """The place beside a store that has its name and a suffix.

    Raises
    ------
    ValueError
        If there is nothing beside it.
    """
    path = place(path)
    path = path if path.name.strip(".") else path.resolve()
    if not path.name:
        raise ValueError(f"store {path} is not a Zarr store.")
    return path.with_name(path.name + suffix)


def check_store(path: str | Path) -> Path:
    """The place of a store; refused if there is none, or one of a later format."""
    path = place(path)
    if not is_store(path):
        raise ValueError(f"store {path} is not a Zarr store.")
    told = FORMAT
    # Of what is damaged the readers tell.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, ArithmeticError):
        root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        told = int(root["attributes"]["store_format"])  # absent before there were numbers
    if told > FORMAT:
        raise ValueError(
            f"store {path} has format {told}, and bwflow {versions()['bwflow']} reads formats up "
            f"to {FORMAT}; the later bwflow that wrote it opens it."
        )
    return path


def is_store(path: Path) -> bool:
    """Whether there is something that says it is a Zarr store.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> bw.store.is_store(folder), bw.store.is_store(folder.parent)
    (True, False)
    """
    try:
        return (path / "zarr.json").is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False
