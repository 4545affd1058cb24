"""How far a store is: what it says itself, and what the logs beside it say about the pace.

Every process writes a line for each unit to a file of its own in the log folder. When and where
something was computed stands there and never in the store.
"""

import contextlib
import json
import os
import socket
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bwflow import store
from bwflow._lockstep import is_told, lockstep
from bwflow._trajectory import OUTCOMES

__all__ = ["Status", "describe", "status"]

_RECENT = 50  # units by which the pace is judged


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def log_folder(path: str | Path) -> Path:
    """Where the logs of a store are: a folder beside it with `-log` after its name."""
    return store.beside(path, "-log")


def record(path: Path, where: Mapping[str, Any], runs: int, began: float, computed: float) -> None:
    """Log a unit that was just written; a log that cannot be written is no reason to stop."""
    ended = now()
    line = {
        "ended": datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds"),
        "host": socket.gethostname(),
        "process": os.getpid(),
        **where,
        "runs": runs,
        "compute_seconds": round(computed - began, 3),
        "write_seconds": round(ended - computed, 3),
    }
    with contextlib.suppress(OSError):
        folder = log_folder(path)
        folder.mkdir(exist_ok=True)
        name = f"{line['host']}-{line['process']}.jsonl"
        with (folder / name).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes
    ----------
    runs, done
        Runs of the study, and those whose results are there.
    outcomes
        Runs by how they ended, the names of `bwflow.RESULTS`.
    arrived
        Runs that met the tolerance.
    wasted
        Share of the steps in which runs only waited for others, see `bwflow.statistics.lockstep`;
        NaN where that is not known.
    rate
        Runs per hour lately, by the logs; NaN where they say nothing.
    remaining
        Seconds to go at that rate; NaN likewise, 0 when all is done.
    running
        Whether the logs say that something is at work.
    bytes
        Size on disk.
    """

    runs: int
    done: int
    outcomes: dict[str, int]
    arrived: int
    wasted: float
    rate: float
    remaining: float
    running: bool
    bytes: int


def status(path: str | Path) -> Status:
    """How far a store is, how its runs ended, how fast it goes on.

    Raises
    ------
    ValueError
        If there is no store of a sweep, or it is damaged.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> found = bw.progress.status(folder)
    >>> found.done, found.runs
    (0, 4)
    """
    path = store.check_store(path)
    ds = store.open(path)
    if not {"hit", "reason"} <= set(ds.variables):
        raise ValueError(f"store {path} holds no sweep: it lacks hit and reason.")
    with store.damage(path):
        # First, since it is written last: of what is done then all is there.
        done = ds["done"].values if "done" in ds else np.ones(ds["hit"].shape, bool)
        reason, hit = ds["reason"].values, ds["hit"].values
        wasted = _wasted(ds)
    codes = Counter(reason[done].tolist())
    rate, running = _pace(log_folder(path))
    left = done.size - int(done.sum())
    return Status(
        runs=done.size,
        done=int(done.sum()),
        outcomes={OUTCOMES[int(code)]: n for code, n in sorted(codes.items())},
        arrived=int(np.isfinite(hit[done]).sum()),
        wasted=wasted,
        rate=rate,
        remaining=3600 * left / rate if left and rate > 0 else 0.0 if not left else np.nan,
        running=running and left > 0,
        bytes=_bytes(path),
    )


def _wasted(ds: xr.Dataset) -> float:
    """The share of all programs together."""
    if "num_steps" not in ds or not is_told(ds):
        return np.nan
    totals = lockstep(ds).sum()
    return 1 - totals["steps"].item() / (totals["lane_steps"].item() or np.nan)


def _bytes(path: Path) -> int:
    """Size of the files in a folder, some of which may get other names meanwhile."""
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, file)).st_size
    return total


def _pace(folder: Path) -> tuple[float, bool]:
    """Runs per hour over the last units, and whether the last of them is recent."""
    lines: list[tuple[float, float, int, str]] = []
    for file in folder.glob("*.jsonl"):
        text = ""
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
        for entry in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # cut short by a kill
                line = json.loads(entry)
                seconds = line["compute_seconds"] + line["write_seconds"]
                ended = datetime.fromisoformat(line["ended"]).timestamp()
                lines.append((ended, ended - seconds, line["runs"], file.name))
    if not lines:
        return np.nan, False
    lines.sort()
    last = lines[-1][0]
    pause = 60 + 10 * statistics.median(ended - began for ended, began, *_ in lines[-_RECENT:])
    # Enough that each of those at work has ended a few.
    at_work = {process for ended, *_, process in lines if last - ended < pause}
    lines = lines[-max(_RECENT, 4 * len(at_work)) :]
    # A pause between two sessions is no part of the pace.
    for (ended, *_), (_, began, *_) in zip(lines[-2::-1], lines[:0:-1], strict=True):
        if began - ended > pause:
            lines = [line for line in lines if line[0] > ended]
            break
    span = last - min(began for _, began, *_ in lines)
    runs = sum(count for _, _, count, _ in lines)
    return 3600 * runs / max(span, 1e-3), now() - last < pause


def describe(found: Status) -> str:
    """A status as text.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> print(bw.progress.describe(bw.progress.status(folder)).splitlines()[0])
    runs      0 of 4 done (0 %), 0 arrived
    """
    share = 100 * found.done // found.runs
    lines = [("runs", f"{found.done} of {found.runs} done ({share} %), {found.arrived} arrived")]
    failed = {name: n for name, n in found.outcomes.items() if name != "successful"}
    ended = ", ".join(f"{n} {name}" for name, n in failed.items()) or "none"
    lines.append(("failures", ended))
    if found.wasted == found.wasted:
        lines.append(("waiting", f"{100 * found.wasted:.0f} % of the steps, for slower runs"))
    if found.rate == found.rate:
        lines.append(("rate", f"{found.rate:.3g} runs per hour"))
    if found.done < found.runs:
        to_go = "unknown"
        if found.remaining == found.remaining:
            to_go = f"{timedelta(seconds=round(found.remaining))}" + " at that rate"
        lines.append(("to go", to_go if found.running else f"{to_go}; nothing seems to be at work"))
    lines.append(
        ("disk", f"{found.bytes / 1e6:.3g} MB, {found.bytes / max(1, found.done):.3g} B a run")
    )
    return "\n".join(f"{name:10}{text}" for name, text in lines)
