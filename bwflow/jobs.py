"""Computing what a store lacks: in this process, in several, by any executor, by SLURM arrays.

The store alone says what is to be done. Units are deterministic and written atomically, so it is
harmless if two processes compute the same one, and a process that dies costs the unit in hand; a
local one also those of the others, for Python ends a pool that lost a process.
"""

import contextlib
import itertools
import math
import multiprocessing
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
from tqdm.auto import tqdm

from bwflow import _checks, _compute, _units, _worker, store, stored
from bwflow._units import Grid, Unit
from bwflow.progress import log_folder

__all__ = ["run", "slurm", "work"]

_PROGRAM = ("dynamics", "depth", "bottleneck")  # axes with a program for each value
_FRUITLESS = 3  # times in a row that local processes may die with nothing done


def run(
    path: str | Path,
    executor: Executor | None = None,
    *,
    processes: int = 0,
    units: Sequence[Unit] | None = None,
    progress: bool = True,
) -> None:
    """Compute all that a store lacks.

    Parameters
    ----------
    path
        The store.
    executor
        Any `concurrent.futures.Executor` whose workers see the store at the same path, such as
        `client.get_executor()` of Dask's distributed.
    processes
        Local processes to start; 0 computes in this one, on all devices that jax has here.
    units
        Only these chunks of the store, as `bwflow.stored.repair` returns them.
    progress
        Whether to show a bar with runs done, rate and remaining time.

    Raises
    ------
    ValueError
        If there is no store of a study, it was begun with other versions or on another platform, or
        is damaged; if both an executor and processes are given; if the executor forks.
    OSError
        If results cannot be written.
    RuntimeError
        If the executor lost its workers. As after every other end, what was finished is in the
        store, and the same call goes on.
    MemoryError
        If local processes died again and again with nothing done, which is mostly why.

    Notes
    -----
    Local processes are spawned, so a script that asks for them needs the usual
    `if __name__ == "__main__":`. Where the platform allows it, each keeps to its own share of the
    cores that this process may use. Several threads compute one unit at a time.

    Examples
    --------
    >>> import tempfile
    >>> import jax
    >>> import bwflow as bw
    >>> spec = bw.Experiment(
    ...     seeds=2, dynamics=("descent",), target=bw.experiment.TargetSpec(n=3),
    ...     descent=bw.experiment.DescentSpec(num_steps=50),
    ...     precision="float64" if jax.config.jax_enable_x64 else "float32")
    >>> folder = bw.stored.create(spec, f"{tempfile.mkdtemp()}/mine")
    >>> bw.jobs.run(folder, progress=False)
    >>> bool(bw.store.open(folder)["done"].all())
    True
    """
    path = store.check_store(path)
    if executor is not None and processes:
        raise ValueError(f"give either an executor or processes; got both, processes={processes}.")
    if processes:
        processes = _checks.positive_int("processes", processes)
    if executor is not None:
        _check_executor(executor)
    grid = stored.settle(path)
    left = grid.pending()
    if units is not None:
        left = [unit for unit in left if unit in units]
    _check_able(grid, left, here=executor is None and not processes)
    with _bar(grid, left, progress) as bar:
        if executor is not None:
            _submit(executor, grid, left, bar)
        elif processes:
            _run_locally(grid, left, processes, bar)
        else:
            _run_here(grid, left, bar)
    _finish(grid)


def _check_executor(executor: Executor) -> None:
    if not isinstance(executor, Executor):
        raise ValueError(
            "executor must be a concurrent.futures.Executor, such as client.get_executor() of "
            f"Dask's distributed; got {type(executor).__name__}."
        )
    context = getattr(executor, "_mp_context", None)
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor must not fork, for jax hangs in a forked process: give ProcessPoolExecutor "
            "mp_context=multiprocessing.get_context('spawn'), or ask for processes=n."
        )


def work(path: str | Path, *, part: int, parts: int, progress: bool = True) -> None:
    """Compute one part of a store: what each task of a scheduler's array does.

    Part `i` of `n` are the units `i, i + n, ...` of the grid, those that are done left out.

    Parameters
    ----------
    path
        The store.
    part
        `i`, from 1.
    parts
        `n`.
    progress
        Whether to show a bar.

    Raises
    ------
    ValueError, OSError
        As `run`; if `part` is not one of `1, ..., parts`.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> folder = bw.stored.create(spec, f"{tempfile.mkdtemp()}/mine")
    >>> for part in (1, 2):  # on two machines, say
    ...     bw.jobs.work(folder, part=part, parts=2, progress=False)
    >>> bool(bw.store.open(folder)["done"].all())
    True
    """
    path = store.check_store(path)
    part, parts = (_checks.positive_int(name, n) for name, n in (("part", part), ("parts", parts)))
    if part > parts:
        raise ValueError(f"part must be i of n with i from 1 to n; got {part} of {parts}.")
    grid = stored.settle(path)
    mine = itertools.islice(grid.flagged(), part - 1, None, parts)
    left = [unit for unit, done in mine if not done.all()]
    _check_able(grid, left, here=True)
    with _bar(grid, left, progress) as bar:
        _run_here(grid, left, bar)
    _finish(grid)


def _check_able(grid: Grid, left: Sequence[Unit], *, here: bool) -> None:
    """Refuse, before anything is computed, what cannot be, or could not be written."""
    if left and not os.access(grid.path / "done", os.W_OK):
        raise PermissionError(f"store {grid.path} is not finished and cannot be written to")
    if left and here:  # in other processes, which may have other devices, they look themselves
        _compute.check_origin(grid.path, _compute.root(grid.path))


def _bar(grid: Grid, left: Sequence[Unit], shown: bool) -> tqdm:
    """A bar over the runs that are left."""
    total = sum(map(_runs, left))
    return tqdm(total=total, unit="run", desc=grid.path.name, disable=not (shown and left))


def _runs(unit: Unit) -> int:
    return math.prod(side.stop - side.start for side in unit.values())


def _run_here(grid: Grid, pending: Sequence[Unit], bar: tqdm) -> None:
    """One after the other, or one on each device."""
    devices = jax.local_device_count() if pending else 1
    for group in _by_program(pending):
        for first in range(0, len(group), devices):
            units = group[first : first + devices]
            _compute.compute(grid.path, units, devices=devices)
            bar.update(sum(map(_runs, units)))


def _by_program(units: Iterable[Unit]) -> list[list[Unit]]:
    def program(unit: Unit) -> list[int]:
        return [unit[axis].start for axis in _PROGRAM]

    return [list(group) for _, group in itertools.groupby(units, program)]


def _submit(executor: Executor, grid: Grid, left: Sequence[Unit], bar: tqdm) -> None:
    # One unit of each program in turn, so that workers compile different ones at first, and find
    # those of the others in the compile cache.
    turns = itertools.zip_longest(*_by_program(left))
    units = [unit for turn in turns for unit in turn if unit is not None]
    futures = {}
    try:
        for unit in units:
            futures[executor.submit(_worker.compute, str(grid.path), unit)] = unit
        for future in as_completed(futures):
            future.result()
            bar.update(_runs(futures[future]))
    except BaseException as error:
        if not isinstance(executor, _LocalProcesses):  # which are ended
            for future in futures:
                future.cancel()
        if not isinstance(error, BrokenExecutor):
            raise
        raise RuntimeError(
            f"the executor lost its workers, with {len(grid.pending())} of {len(grid.units())} "
            f"chunks of {grid.path} still to do; run it again to go on: {error}"
        ) from error


def _run_locally(grid: Grid, left: Sequence[Unit], processes: int, bar: tqdm) -> None:
    """With new processes in place of those that die, as long as something gets done."""
    fruitless = 0
    while left:
        try:
            with _local_processes(min(processes, len(left))) as pool:
                _submit(pool, grid, left, bar)
            return
        except RuntimeError as error:
            if not isinstance(error.__cause__, BrokenExecutor):
                raise
            before, left = left, [unit for unit in left if not grid.is_done(unit)]
            fruitless = fruitless + 1 if len(left) == len(before) else 0
            if fruitless == _FRUITLESS:
                raise MemoryError("local processes died again and again") from error


class _LocalProcesses(ProcessPoolExecutor):
    """Processes of our own."""


def _shares(count: int) -> list[set[int]]:
    """The cores of each of several processes: its own, as long as there are enough.

    Where XLA's threads of one process share cores with those of another they get in each other's
    way, the more so the smaller the matrices.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if count > len(cores):
        return [set(cores)] * count
    ends = [i * len(cores) // count for i in range(count + 1)]
    return [set(cores[begin:end]) for begin, end in itertools.pairwise(ends)]


@contextlib.contextmanager
def _local_processes(count: int) -> Iterator[Executor]:
    """Spawned processes, which end with this one, however that ends."""
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    life: Any = reader
    shares: Any = context.SimpleQueue()
    for cores in _shares(count):
        shares.put(cores)
    pool = _LocalProcesses(
        count, mp_context=context, initializer=_worker.start, initargs=(life, shares)
    )
    try:
        yield pool
    finally:
        # They end by themselves then. Told through the pool's queue they might wait for ever for
        # the lock of it that an idle one held when it was killed.
        writer.close()
        pool.shutdown(cancel_futures=True)
        reader.close()


def _finish(grid: Grid) -> None:
    if not grid.pending():
        _units.clear(grid.path)


def slurm(
    path: str | Path,
    *,
    array: int,
    options: Sequence[str] = (),
    submit: bool = True,
) -> str:
    """Hand a store to SLURM as an array of jobs, each of which works on its part.

    Parameters
    ----------
    path
        The store, on a file system that the nodes share.
    array
        Number of tasks, `n` in `bwflow work STORE --part i/n`.
    options
        Further options of `sbatch`, such as `--time=24:00:00` or `--gpus=1`.
    submit
        Whether to call `sbatch`, or only to return the script.

    Returns
    -------
    str
        The batch script, or what `sbatch` answered.

    Raises
    ------
    ValueError
        If there is no store of a study, or `array` is not a positive integer.
    OSError
        If there is no `sbatch`, or it refuses.

    Notes
    -----
    Tasks that died are made up for by submitting again: what is done is not done again.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> script = bw.jobs.slurm(folder, array=4, options=["--gpus=1"], submit=False)
    >>> [line for line in script.splitlines() if "array" in line]
    ['#SBATCH --array=1-4']
    """
    array = _checks.positive_int("array", array)
    spec = stored.experiment_of(path)
    Grid.open(store.check_store(path))  # refuses what has no runs to add
    path = Path(path).resolve()
    folder = log_folder(path)
    command = [sys.executable, "-m", "bwflow", "work", str(path), "--no-progress"]
    lines = [
        "#!/bin/sh",
        f"#SBATCH --job-name=bwflow-{spec.name}",
        f"#SBATCH --array=1-{array}",
        f"#SBATCH --output={shlex.quote(f'{folder}/slurm-%A_%a.out')}",
        *(f"#SBATCH {option}" for option in options),
        f'exec {shlex.join(command)} --part "$SLURM_ARRAY_TASK_ID/{array}"',
    ]
    script = "\n".join(lines) + "\n"
    if not submit:
        return script
    folder.mkdir(parents=True, exist_ok=True)
    try:
        answer = subprocess.run(["sbatch"], input=script, capture_output=True, text=True)
    except FileNotFoundError:
        raise OSError("sbatch was not found: is this a SLURM cluster's login node?") from None
    if answer.returncode:
        raise OSError(f"sbatch refused: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip()
