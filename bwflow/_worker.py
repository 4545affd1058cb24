"""What processes that compute for others run. Jax is imported here when the first unit comes."""

import os
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from bwflow._process import configure


def start(life: Connection, shares: "SimpleQueue[set[int]]") -> None:
    """Set a local process up, on a share of the cores.

    It ends when the other end of the pipe is closed or its owner dies.

    A signal from the keyboard, which goes to all processes of a terminal, is left to the owner.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def outlive() -> None:
        life.poll(None)
        os._exit(1)

    threading.Thread(target=outlive, daemon=True).start()
    if cores := shares.get():
        os.sched_setaffinity(0, cores)
    configure()


def compute(path: str, unit: dict[str, slice]) -> None:
    """Compute one unit of a store, as `bwflow._compute.compute` does."""
    configure()
    from bwflow import _compute

    _compute.compute(Path(path), [unit])
