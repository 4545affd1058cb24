"""The commands that take a store: each returns what is to be done once all arguments are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from bwflow._arguments import Flag, Store
from bwflow._process import configure

Action: TypeAlias = Callable[[], None]


def work(
    store: Store,
    part: str = "1/1",
    processes: int = 0,
    progress: bool = True,
) -> Action:
    """Compute what a store lacks, or one part of it; what a scheduler's tasks call.

    Args:
        store: Folder of the store.
        part: i/n for part i of n, from 1/n to n/n.
        processes: Local processes that compute; 0 is this one, on all its devices.
        progress: Show a progress bar.
    """
    i, _, n = part.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ValueError(f"--part must be i/n with i from 1 to n, such as 1/16; got {part!r}.")
    if n != "1" and processes:
        raise ValueError(
            "--part and --processes do not go together: start a process for each part."
        )

    def action() -> None:
        configure()
        from bwflow import jobs

        if n == "1":
            jobs.run(store, processes=processes, progress=progress)
        else:
            jobs.work(store, part=int(i), parts=int(n), progress=progress)

    return action


def status(store: Store) -> Action:
    """Print how far a study is: runs done, failures, pace, time to go, size on disk.

    Args:
        store: Folder of the store.
    """

    def action() -> None:
        from bwflow import progress
        from bwflow import store as stores

        with stores.reading(store):
            print(progress.describe(progress.status(store)))

    return action


def extend(
    store: Store,
    seeds: int = 0,
    tau: tuple[float, ...] = (),
    depth: tuple[int, ...] = (),
    bottleneck: tuple[int, ...] = (),
    dynamics: tuple[Literal["flow", "descent"], ...] = (),
    run: bool = True,
    processes: int = 0,
    progress: bool = True,
) -> Action:
    """Add runs to a store, and compute them; what is there is kept.

    Args:
        store: Folder of the store.
        seeds: New number of seeds; 0 keeps it.
        tau: Smoothings to add.
        depth: Depths to add.
        bottleneck: Bottlenecks to add.
        dynamics: Dynamics to add.
        run: Compute the new runs; with --no-run that is left to bwflow work or slurm.
        processes: Local processes that compute; 0 is this one, on all its devices.
        progress: Show a progress bar.
    """

    def action() -> None:
        configure()
        from bwflow import jobs, stored
        from bwflow.store import reading

        with reading(store):
            stored.extend(
                store,
                seeds=seeds or None,
                tau=tau,
                depth=depth,
                bottleneck=bottleneck,
                dynamics=dynamics,
            )
        if run:
            jobs.run(store, processes=processes, progress=progress)
        print(f"store   {store}\nnext    bwflow {'report' if run else 'work'} {store}")

    return action


def report(store: Store, out: Path | None = None, html: Flag = False) -> Action:
    """Print the convergence statistics of a store; write them and the figure to a folder.

    Args:
        store: Folder of the store; an unfinished one is reported as far as it is.
        out: Folder for table.txt and figure.png; STORE-report by default.
        html: Write report.html there too, a page with filters, pictures and the commands that
            compute failed runs again; it is one file that needs no network.
    """

    def action() -> None:
        from bwflow.store import beside, reading

        folder = out or beside(store, "-report")
        with reading(store):
            print_report(store, folder)
            if html:
                from bwflow import page

                print(f"page    {page.write(store, folder / 'report.html')}")

    return action


def print_report(store: Path, folder: Path) -> None:
    """Write table and figure of a store, and print the table and where they are."""
    from bwflow import report

    text, written = report.write(store, folder)
    print(text, end="\n\n")
    for name, where in zip(("store", "table", "figure"), (store, *written), strict=True):
        print(f"{name:7} {where}")


def show(store: Store, spec: Flag = False) -> Action:
    """Print what a store holds: axes, records, how its runs ended, versions.

    Args:
        store: Folder of the store.
        spec: Print the spec of its study instead, as a spec file.
    """

    def action() -> None:
        from bwflow import report
        from bwflow import store as stores

        with stores.reading(store):
            ds = stores.open(store)
            print(report.experiment_of(ds).to_toml() if spec else report.describe(ds))

    return action


def export(
    store: Store,
    netcdf: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    parquet: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> Action:
    """Write a store as another kind of file.

    Args:
        store: Folder of the store.
        netcdf: Everything, as netCDF-4.
        parquet: A table with a row for each run that is done, as Parquet.
    """
    if netcdf is None and parquet is None:
        raise ValueError("export needs --netcdf FILE or --parquet FILE.")

    def action() -> None:
        from bwflow import export
        from bwflow.store import reading

        with reading(store):
            if netcdf is not None:
                print(f"netcdf  {export.to_netcdf(store, netcdf)}")
            if parquet is not None:
                print(f"parquet {export.to_parquet(store, parquet)}")

    return action


def repair(store: Store, run: bool = True, processes: int = 0, progress: bool = True) -> Action:
    """Check every file of a store, and make anew what is missing or damaged.

    Args:
        store: Folder of the store.
        run: Compute the damaged runs again; with --no-run they are only marked as not done.
        processes: Local processes that compute; 0 is this one, on all its devices.
        progress: Show a progress bar.
    """

    def action() -> None:
        configure()
        from bwflow import jobs, stored
        from bwflow.store import reading

        with reading(store):
            found, units = stored.repair(store)
        for line in found or ("nothing is damaged",):
            print(line)
        if run and units:
            jobs.run(store, units=units, processes=processes, progress=progress)

    return action


def rerun(
    store: Store,
    seed: int | None = None,
    tau: float | None = None,
    dynamics: Literal["flow", "descent"] | None = None,
    depth: int | None = None,
    bottleneck: int | None = None,
    out: Path | None = None,
) -> Action:
    """Compute one run again, alone, and write it with its layers along the way.

    Args:
        store: Folder of the store.
        seed: Which run: a value of each axis that has several.
        tau: Smoothing of the run.
        dynamics: Dynamics of the run.
        depth: Depth of the run.
        bottleneck: Bottleneck of the run.
        out: Store to write; STORE-rerun by default. Another run that is there is replaced.
    """
    asked = {
        "seed": seed,
        "tau": tau,
        "dynamics": dynamics,
        "depth": depth,
        "bottleneck": bottleneck,
    }

    def action() -> None:
        configure()
        from bwflow import report, stored
        from bwflow import store as stores

        place = out or stores.beside(store, "-rerun")
        stores.check_place(place)
        if place.exists() and "done" in stores.open(place):
            raise ValueError(f"--out {place} is the store of a sweep and is not replaced.")
        with stores.reading(store):
            ds = stored.rerun(store, **{axis: x for axis, x in asked.items() if x is not None})
        with stores.damage(store):
            text = report.compare(ds, stores.open(store))
        stores.write(ds, place, overwrite=True)
        print(f"{text}\nstore   {place}")

    return action


def slurm(
    store: Store,
    array: int,
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="sbatch", metavar="OPTION")] = (),
    dry_run: Flag = False,
) -> Action:
    """Submit a store to SLURM as an array of jobs; submitting again makes up for tasks that died.

    Args:
        store: Folder of the store, on a file system that the nodes share.
        array: Number of tasks.
        options: Options of sbatch, without their dashes: --sbatch time=24:00:00 gpus=1.
        dry_run: Print the batch script instead.
    """

    def action() -> None:
        configure()
        from bwflow import jobs

        flags = [f"--{option}" for option in options]
        print(jobs.slurm(store, array=array, options=flags, submit=not dry_run).rstrip())

    return action


COMMANDS = {
    "status": status,
    "report": report,
    "show": show,
    "work": work,
    "extend": extend,
    "repair": repair,
    "rerun": rerun,
    "export": export,
    "slurm": slurm,
}
