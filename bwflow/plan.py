"""What a study will take, told from its spec alone: nothing is drawn, traced or compiled."""

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

from bwflow.diagnostics import QUANTITIES
from bwflow.experiment import Experiment
from bwflow.sweeps import LARGEST_CHUNK


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
    n = experiment.target.dim or n
    if n is None:
        raise ValueError("n must be given: the spec's target is a file, which tells its size.")
    return [_cell(experiment, *program) for program in experiment.programs(n)]


def _cell(experiment: Experiment, dynamics: str, widths: tuple[int, ...]) -> Cell:
    n, depth = widths[-1], len(widths) - 1
    params = sum(a * b for a, b in pairwise(widths))
    runs = len(experiment.tau) * experiment.seeds
    flow, descent = experiment.flow, experiment.descent
    if dynamics == "flow":
        records, copies = flow.num_saves + 1, 1
        states, gradients = 26, 7  # stages of Tsit5 and its step
        steps = min(flow.max_steps, 50 + math.ceil(2 * depth * flow.end_time / 3.3))
    else:
        steps, states, gradients = descent.updates, 2, 1
        records, copies = 1 + math.ceil(steps / descent.save_every), 2  # joined to the start's
    number = 8 if experiment.precision == "float64" else 4
    sizes = {"rank": min(n, widths[0]), "layer": depth - 1, "eigenvector": n}
    record = sum(math.prod(sizes[d] for d in QUANTITIES[name].dims) for name in experiment.probe)
    kept = number * records * record
    run_bytes = number * (10 * n * n + states * params) + copies * kept
    fitting = max(1, int(experiment.memory_limit_gb * 1e9 / run_bytes))
    size = min(runs, experiment.batch_size or min(fitting, LARGEST_CHUNK))
    gradient = 1e-6 * (2 + 0.12 * n**2 + 0.003 * n**3)
    return Cell(
        dynamics,
        widths,
        runs,
        batches=math.ceil(runs / size),
        steps=steps,
        batch_bytes=size * run_bytes,
        result_bytes=runs * kept,
        compile_seconds=(5.0 if dynamics == "flow" else 2.0) + 0.3 * depth,
        run_seconds=math.ceil(runs / size) * size * steps * gradients * gradient,
    )


def describe(experiment: Experiment, n: int | None = None) -> str:
    """The cells of a study as a table, with totals."""
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
