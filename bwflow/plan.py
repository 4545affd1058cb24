"""What a study will take, told from its spec alone: nothing is drawn, traced or compiled."""

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

from bwflow.diagnostics import QUANTITIES
from bwflow.experiment import Experiment
from bwflow.sweeps import LARGEST_CHUNK

__all__ = ["Cell", "cells", "chunk", "describe"]


@dataclass(frozen=True)
class Cell:
    """One program of a study: a dynamics and a network, over all smoothings and seeds."""

    dynamics: str
    widths: tuple[int, ...]
    runs: int
    batches: int
    """Batches that the runs are cut into."""
    steps: int
    """Updates, or about as many solver steps, of a run that does not arrive early."""
    batch_bytes: int
    """What one batch takes, about."""
    result_bytes: int
    """What the records take in memory."""
    compile_seconds: float
    run_seconds: float


def cells(experiment: Experiment, n: int | None = None) -> list[Cell]:
    """The programs of a study in their order, with estimates.

    Parameters
    ----------
    experiment
        The spec.
    n
        Size of the covariance, where only a file tells it.

    Raises
    ------
    ValueError
        If the size of the covariance is not known, or the networks do not fit it.

    Notes
    -----
    Steps of a flow are those at the stability limit of an explicit solver near the optimum, where
    the largest eigenvalue of the Hessian is about `2 N lambda_1^((N-1)/N)`, taken at `lambda_1 =
    1`. Memory and seconds are fits to measurements on two laptop cores: an order of magnitude.

    Examples
    --------
    >>> import bwflow as bw
    >>> [cell] = bw.plan.cells(bw.Experiment(dynamics=("descent",), tau=(0.0, 0.1), seeds=8))
    >>> cell.widths, cell.runs, cell.batches, cell.steps
    ((10, 10, 10), 16, 1, 1000)
    """
    n, size = _size(experiment, n), chunk(experiment, n)
    return [_cell(experiment, *program, size) for program in experiment.programs(n)]


def chunk(experiment: Experiment, n: int | None = None) -> tuple[int, int]:
    """Smoothings and seeds of the runs that advance together: one chunk of a store.

    As many as `batch_size` allows or, where that is 0, as the memory limit allows for the largest
    program, 256 at most: all seeds of several smoothings, or a part of the seeds of one.

    Examples
    --------
    >>> import bwflow as bw
    >>> bw.plan.chunk(bw.Experiment(tau=(0.0, 0.1, 0.2), seeds=100, batch_size=64))
    (1, 64)
    >>> bw.plan.chunk(bw.Experiment(tau=(0.0, 0.1, 0.2), seeds=32, batch_size=64))
    (2, 32)
    """
    most = experiment.batch_size
    if not most:
        programs = experiment.programs(_size(experiment, n))
        most = max(_bytes_of_run(experiment, *program)[0] for program in programs)
        most = max(1, min(LARGEST_CHUNK, int(experiment.memory_limit_gb * 1e9 / most)))
    seeds = min(experiment.seeds, most)
    return max(1, min(len(experiment.tau), most // seeds)), seeds


def _size(experiment: Experiment, n: int | None) -> int:
    n = experiment.target.dim or n
    if n is None:
        raise ValueError("n must be given: the spec's target is a file, which tells its size.")
    return n


def _bytes_of_run(
    experiment: Experiment, dynamics: str, widths: tuple[int, ...]
) -> tuple[int, int]:
    """Memory that a run takes, and that its records take."""
    n, depth = widths[-1], len(widths) - 1
    params = sum(a * b for a, b in pairwise(widths))
    if dynamics == "flow":
        records, copies = experiment.flow.num_saves + 1, 1
        states = 26 + 2 * records  # stages of Tsit5, and what is saved, to be probed at last
    else:
        descent, states = experiment.descent, 2
        records, copies = 1 + math.ceil(descent.updates / descent.save_every), 2  # joined at last
    number = 8 if experiment.precision == "float64" else 4
    sizes = {"rank": min(n, widths[0]), "layer": depth - 1, "eigenvector": n, "row": n, "column": n}
    record = sum(math.prod(sizes[d] for d in QUANTITIES[name].dims) for name in experiment.probe)
    kept = number * records * record
    return number * (10 * n * n + states * params) + copies * kept, kept


def _cell(
    experiment: Experiment, dynamics: str, widths: tuple[int, ...], size: tuple[int, int]
) -> Cell:
    n, depth = widths[-1], len(widths) - 1
    runs = len(experiment.tau) * experiment.seeds
    batches = math.ceil(len(experiment.tau) / size[0]) * math.ceil(experiment.seeds / size[1])
    run_bytes, kept = _bytes_of_run(experiment, dynamics, widths)
    if dynamics == "flow":
        flow, gradients = experiment.flow, 7  # of a step of Tsit5
        steps = min(flow.max_steps, 50 + math.ceil(2 * depth * flow.end_time / 3.3))
    else:
        steps, gradients = experiment.descent.updates, 1
    gradient = 1e-6 * (2 + 0.12 * n**2 + 0.003 * n**3)
    return Cell(
        dynamics,
        widths,
        runs,
        batches=batches,
        steps=steps,
        batch_bytes=math.prod(size) * run_bytes,
        result_bytes=runs * kept,
        compile_seconds=(5.0 if dynamics == "flow" else 2.0) + 0.3 * depth,
        run_seconds=batches * math.prod(size) * steps * gradients * gradient,
    )


def describe(experiment: Experiment, n: int | None = None) -> str:
    """The cells of a study as a table, with totals.

    Examples
    --------
    >>> import bwflow as bw
    >>> print(bw.plan.describe(bw.Experiment(dynamics=("descent",), seeds=8)).splitlines()[0])
    dynamics  N  widths    runs  batches  steps  a batch
    """
    planned = cells(experiment, n)
    rows = [("dynamics", "N", "widths", "runs", "batches", "steps", "a batch")]
    for cell in planned:
        sizes = cell.widths if len(cell.widths) < 7 else (*cell.widths[:3], "...", cell.widths[-1])
        rows.append(
            (
                cell.dynamics,
                str(len(cell.widths) - 1),
                "-".join(map(str, sizes)),
                str(cell.runs),
                str(cell.batches),
                ("~" if cell.dynamics == "flow" else "") + str(cell.steps),
                _bytes(cell.batch_bytes),
            )
        )
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, lengths)).rstrip() for row in rows]
    total = {
        field.name: sum(getattr(cell, field.name) for cell in planned)
        for field in dataclasses.fields(Cell)
        if field.name not in ("dynamics", "widths")
    }
    compiling, running = total["compile_seconds"], total["run_seconds"]
    lines += [
        "",
        f"study   {experiment.slug}: {total['runs']} runs in {total['batches']} batches",
        f"memory  about {_bytes(max(cell.batch_bytes for cell in planned))} for a batch, "
        f"{_bytes(total['result_bytes'])} for the records",
        f"time    about {_duration(compiling + running)}, {_duration(compiling)} of it to compile "
        f"{len(planned)} programs the first time;",
        "        on two laptop cores, if no run arrives early; an order of magnitude",
    ]
    return "\n".join(lines)


def _bytes(count: int) -> str:
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, round(seconds))} s"
