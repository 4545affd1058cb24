"""How a process is set up: for jax, before it is imported if possible, and for signals."""

import contextlib
import functools
import os
import signal
import sys
import threading
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


def reader_has_left() -> int:
    """Exit code for a pipe that was closed by its reader; nothing is left to be written at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


@contextlib.contextmanager
def in_precision(precision: str) -> Iterator[None]:
    """Put this thread in a study's precision, whatever jax's setting is."""
    import jax

    with jax.enable_x64(precision == "float64"):
        yield


@functools.cache  # once in a process
def end_when_told() -> None:
    """Let signals of the keyboard and of schedulers end this process, whatever it is doing.

    A signal handler would have to wait for a compiled program to return, and an exception in the
    middle of anything is not always heeded. A store is safe from sudden ends.
    """
    # Semaphores that are left are cleared by a process of multiprocessing, without a word.
    quiet = ["ignore:resource_tracker:UserWarning"]
    os.environ["PYTHONWARNINGS"] = ",".join([*filter(None, [os.getenv("PYTHONWARNINGS")]), *quiet])
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    heeded = {signal.SIGTERM}
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background
        heeded.add(signal.SIGINT)
    for number in heeded:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while os.read(reader, 1)[0] not in heeded:
            pass
        newline = "\n" if sys.stderr.isatty() else ""  # after a progress bar
        os.write(2, f"{newline}bwflow: interrupted\n".encode())
        os._exit(130)

    threading.Thread(target=listen, daemon=True).start()
