"""How a process is set up for jax, before jax is imported where that is possible."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def configure() -> None:
    """Set this process up for studies; what the user has set in the environment stays.

    Environment variables are read when jax and equinox are imported.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bwflow"
    # Equinox's error checks are host callbacks, and programs with callbacks cannot be cached;
    # failures are read from the results instead.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # XLA may spread a batch of factorisations over the cores; threads inside each would fight it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@contextlib.contextmanager
def in_precision(precision: str) -> Iterator[None]:
    """Put this thread in a study's precision, whatever jax's setting is."""
    import jax

    with jax.enable_x64(precision == "float64"):
        yield
