"""What a person reads of a study: a table and a figure."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

from bwflow import statistics, store
from bwflow._lockstep import is_told
from bwflow.experiment import Experiment

__all__ = ["compare", "describe", "experiment_of", "table", "write"]

_HEADER: tuple[str, ...] = (
    "dynamics",
    "N",
    "width",
    "tau",
    "runs",
    "arrived",
    "failed",
    "median [quartiles]",
    "late decay",
    "steps",
    "waiting",
)

_AXES = {"dynamics", "depth", "bottleneck", "tau", "seed"}


def table(ds: xr.Dataset | str | Path) -> str:
    """The convergence statistics of a study as aligned text, of a dataset or a store.

    One row per dynamics, depth, bottleneck and smoothing. `median [quartiles]` is the time (flow)
    or step (descent) at which the gap to the known optimum fell below `tolerance * L(0)`;
    `late decay` the fitted law of the gap at the end; `waiting` what `statistics.lockstep` calls
    wasted, over all smoothings.

    Examples
    --------
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> print(bw.report.table(bw.study.run(spec, progress=False)).splitlines()[0].split()[:4])
    ['dynamics', 'N', 'width', 'tau']
    """
    stats = statistics.summary(ds)
    if not isinstance(ds, xr.Dataset):
        ds = store.open(ds)
    waiting = statistics.lockstep(ds)["wasted"] if is_told(ds) else None
    rows = [_HEADER]
    for dynamics in ds["dynamics"].values:
        for depth in ds["depth"].values:
            for bottleneck in ds["bottleneck"].values:
                program = {"dynamics": dynamics, "depth": depth, "bottleneck": bottleneck}
                share = np.nan if waiting is None else float(waiting.sel(program))
                for tau in ds["tau"].values:
                    cell = stats.sel({**program, "tau": tau})
                    rows.append(_row(cell, float(_end(ds, str(dynamics))), share))
    sizes = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = [
        "  ".join(_pad(i, text, sizes[i]) for i, text in enumerate(row)).rstrip() for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(
        [*lines, "", *_unfinished(int(stats["runs"].sum()), ds["hit"].size), _legend(ds)]
    )


def _unfinished(done: int, runs: int) -> list[str]:
    if done == runs:
        return []
    return [f"UNFINISHED: {done} of {runs} runs are done; all figures are of these.", ""]


def _pad(column: int, text: str, size: int) -> str:
    return text.ljust(size) if column in (0, 7, 8) else text.rjust(size)


def _end(ds: xr.Dataset, dynamics: str) -> np.ndarray:
    return ds["time" if dynamics == "flow" else "step"].max().values


def _row(cell: xr.Dataset, end: float, waiting: float) -> tuple[str, ...]:
    runs = int(cell["runs"])
    name = (
        str(cell["dynamics"].item()),
        str(cell["depth"].item()),
        str(cell["bottleneck"].item()),
        f"{cell['tau'].item():g}",
        str(runs),
    )
    if not runs:
        return name + ("-",) * (len(_HEADER) - len(name))
    low, middle, high = (_number(float(q), end) for q in cell["hit"].values)
    if bool(cell["algebraic"]):
        decay = f"power law t^{float(cell['late_slope']):.2f}"
    else:
        decay = f"exp(-{float(cell['late_rate']):.3g} t)"
    if "nan" in decay:
        decay = "too few records"
    return (
        *name,
        f"{100 * int(cell['arrived']) // runs}%",
        str(int(cell["failed"])),
        f"{middle} [{low}, {high}]",
        decay,
        f"{float(cell['steps']):.0f}",
        "-" if np.isnan(waiting) else f"{100 * waiting:.0f}%",
    )


def _number(value: float, end: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else f">{end:.4g}"


def _legend(ds: xr.Dataset) -> str:
    tolerance = float(ds.attrs.get("tolerance", np.nan))
    arrival = [
        f"arrived: gap L - L* below {tolerance:g} L(0), L* known in closed form; runs that did not",
        "arrive are censored at the end (Kaplan-Meier quantiles; > means beyond the end).",
    ]
    if tolerance == 0:
        arrival = ["arrived: none, since the tolerance is 0 and runs go to the end."]
    lines = [
        *arrival,
        "late decay: of the gap, median over runs, t the time of a flow or the step of a descent;",
        "a power law where tau is not below an eigenvalue to be learnt and N >= 2 (in the end",
        "t^(-N / (N - 1)) where it is above; the log-log slope fitted here is that of the last two",
        "octaves of time), else the exponential over the last three decades of the gap.",
        "waiting: share of the steps computed in which runs only waited for the slowest of those",
        "that advance together, over all tau; group_size in the spec makes it smaller.",
    ]
    return "\n".join(lines)


def experiment_of(ds: xr.Dataset) -> Experiment:
    """The spec of the study that a dataset holds.

    Raises
    ------
    ValueError
        If the dataset does not come from `bwflow.study.run`.

    Examples
    --------
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> bw.report.experiment_of(bw.study.run(spec, progress=False)) == spec
    True
    """
    if not isinstance(ds, xr.Dataset):
        raise ValueError(f"ds must be a dataset of bwflow.study.run; got {type(ds).__name__}.")
    spec, missing = ds.attrs.get("experiment"), _AXES - set(ds["hit"].dims if "hit" in ds else ())
    if not isinstance(spec, str) or missing:
        lacks = (
            f"the axes {', '.join(sorted(missing))}" if missing else "the attribute 'experiment'"
        )
        raise ValueError(f"ds must be a dataset of bwflow.study.run; it lacks {lacks}.")
    return Experiment.from_json(spec)


def describe(ds: xr.Dataset) -> str:
    """What a study holds, as text: axes, records, how the runs ended, versions.

    Examples
    --------
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> print(bw.report.describe(bw.study.run(spec, progress=False)).splitlines()[1])
    target               geometric, n = 10
    """
    spec = experiment_of(ds)
    axes = ds["hit"].dims
    flags = ds["done"].load() if "done" in ds else xr.ones_like(ds["success"])
    done, failed = int(flags.sum()), int((flags & ~ds["success"]).sum())
    arrived = int((ds["hit"] < np.inf).sum())
    part = "" if done == ds["hit"].size else f", {done} done"
    lines = [
        ("study", spec.slug),
        ("target", f"{spec.target.kind}, n = {ds.sizes['eigenvalue']}"),
        ("minimised", f"{spec.loss}, in {spec.precision}"),
        *((f"axis {name}", listed(ds[name].values)) for name in axes),
        ("runs", f"{ds['hit'].size}{part}: {arrived} arrived, {failed} failed"),
    ]
    for clock in ("time", "step"):
        if clock in ds:
            records = int(ds[clock].notnull().sum("save").max())
            lines.append((clock, f"{records} records up to {float(ds[clock].max()):g}"))
    for name, variable in sorted(ds.data_vars.items()):
        own = ", ".join(str(dim) for dim in variable.dims if dim not in axes)
        label = f"{variable.attrs.get('long_name', '')} [{variable.attrs.get('units', '1')}]"
        lines.append((str(name), f"{label} by {own}" if own else label))
    versions = json.loads(ds.attrs.get("versions", "{}"))
    lines.append(("versions", ", ".join(f"{name} {v}" for name, v in versions.items())))
    size = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(size)}  {text}" for name, text in lines)


def compare(again: xr.Dataset, ds: xr.Dataset) -> str:
    """How one run, made again, agrees with the stored one, as text.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> folder = bw.stored.create(spec, f"{tempfile.mkdtemp()}/mine")
    >>> bw.jobs.run(folder, progress=False)
    >>> again = bw.stored.rerun(folder, seed=1)
    >>> print(bw.report.compare(again, bw.store.open(folder)).splitlines()[0])
    run     dynamics descent, depth 2, bottleneck 10, tau 0.0, seed 1
    """
    point = {axis: again[axis].values[0] for axis in again["hit"].dims}
    stored = ds.sel(point)
    where = ", ".join(f"{axis} {value}" for axis, value in point.items())
    if not bool(stored.get("done", True)):
        return f"run     {where}; the store does not have it yet"
    lines = [f"run     {where}"]
    for name, variable in ds.data_vars.items():
        if name in again and name != "done" and set(point) <= set(variable.dims):
            old, new = (np.asarray(x, float) for x in (stored[name], again[name].squeeze()))
            old = old[tuple(map(slice, new.shape))]
            scale = np.max(np.abs(old), initial=0.0, where=np.isfinite(old))
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            with np.errstate(invalid="ignore"):  # of infinities, which are the same
                off = np.max(np.abs(old - new), initial=0.0, where=~same)
            lines.append(f"{name:18}differs by {off:.1e}, largest stored {scale:.3g}")
    return "\n".join(lines)


def listed(values: np.ndarray) -> str:
    """The values of an axis as text, the middle left out where they are many."""
    listed = [f"{v:g}" if isinstance(v, float) else str(v) for v in values.tolist()]
    if len(listed) > 8:
        return f"{listed[0]}, {listed[1]}, ..., {listed[-1]} ({len(listed)})"
    return ", ".join(listed)


def write(ds: xr.Dataset | str | Path, folder: str | Path) -> tuple[str, list[Path]]:
    """Write `table.txt` and `figure.png` of a study into a folder; returns the table and paths.

    The study is a dataset or a store, which may be unfinished and is not read as a whole.

    Raises
    ------
    ValueError
        If the dataset does not come from `bwflow.study.run`, or the folder cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> text, paths = bw.report.write(bw.study.run(spec, progress=False), tempfile.mkdtemp())
    >>> [path.name for path in paths]
    ['table.txt', 'figure.png']
    """
    try:
        import matplotlib.pyplot as plt

        from bwflow import plotting
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'bwflow[plot]'") from None

    opened = ds if isinstance(ds, xr.Dataset) else store.open(ds)
    experiment_of(opened)  # refuses what is no study, before a folder is made
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder {folder} cannot be made: {error.strerror}.") from None
    paths = [folder / "table.txt", folder / "figure.png"]
    text, figure = table(ds), plotting.convergence(opened)
    paths[0].write_text(text + "\n", encoding="utf-8")
    figure.savefig(paths[1], dpi=130)
    plt.close(figure)
    return text, paths
