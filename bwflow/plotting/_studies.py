"""Studies: median and quartiles of the gap, a cell or all of them."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bwflow import _checks
from bwflow.plotting import _style


def gap_bands(
    ds: xr.Dataset,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    colour: str = _style.COLOURS[1],
) -> Axes:
    """Median and quartile band over seeds of `gap / L(0)` against time or step.

    Runs whose loss is NaN are left out of both; the table counts them.

    Parameters
    ----------
    ds
        A sweep over `seed` alone (select one value of every other axis), with probes `loss` and
        `gap`.
    ax
        Axes to draw into; the current ones by default.
    label
        Legend entry of the median.
    colour
        Of line and band.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, log-log.

    Raises
    ------
    ValueError
        If `ds` is no dataset, has another axis left, lacks a probe or the times, or has seeds of
        different times; if `ax` is none of matplotlib's.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from bwflow import plotting
    >>> gap = np.exp(-np.arange(1, 4)[:, None] * np.array([0.0, 1.0, 2.0]))
    >>> ds = xr.Dataset({"gap": (("seed", "save"), gap), "loss": (("seed", "save"), gap)},
    ...                 {"time": ("save", [0.0, 1.0, 2.0])})
    >>> plotting.gap_bands(ds).lines[0].get_ydata().round(3).tolist()
    [0.135, 0.018]
    """
    _checks.instance("ds", ds, xr.Dataset, "an xarray.Dataset, as bwflow.sweep returns it")
    for name in ("loss", "gap"):
        if name not in ds or set(ds[name].dims) != {"seed", "save"}:
            found = ds[name].dims if name in ds else "none"
            raise ValueError(f"ds must be a sweep over seed alone with probe {name}; got {found}.")
    clock = _style.clock_of("ds", ds)
    ax = _style.axes_or_current(ax)
    start = ds["loss"].isel(save=0)
    ds = ds.isel(save=np.flatnonzero(ds[clock].values > 0))
    gap = (ds["gap"] / start.where(start > 0)).clip(_floor(ds), _style.CEILING)
    runs = gap.transpose("seed", "save").values
    _style.line_or_band(ax, ds[clock].values, runs, colour=colour, label=label)
    ax.set(xscale="log", yscale="log", xlabel=_style.CLOCKS[clock])
    return ax


def _floor(ds: xr.Dataset) -> float:
    """The tolerance, at which runs stop, or rounding: nothing is said below it."""
    return float(ds.attrs.get("tolerance", 0)) or float(np.finfo(ds["gap"].dtype).eps)


def convergence(ds: xr.Dataset) -> Figure:
    """Gap against time for a whole study: a column per depth, a row per dynamics and bottleneck.

    Each panel has a median line and a quartile band per smoothing, down to the gap of
    `tolerance * L(0)` (dotted) at which runs stop.

    Parameters
    ----------
    ds
        What `bwflow.study.run` returns.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; save it with `savefig`.

    Raises
    ------
    ValueError
        If `ds` is no dataset or lacks an axis or a probe of a study.

    Examples
    --------
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> figure = bw.plotting.convergence(bw.study.run(spec, progress=False))
    >>> figure.axes[0].get_title()
    'descent, N = 2, width 10'
    """
    _checks.instance("ds", ds, xr.Dataset, "an xarray.Dataset, as bwflow.study.run returns it")
    missing = {"dynamics", "depth", "bottleneck", "tau", "seed", "loss", "gap"} - set(ds.variables)
    if missing:
        lacks = ", ".join(sorted(missing))
        raise ValueError(f"ds must be what bwflow.study.run returns; it lacks {lacks}.")
    rows = [(d, k) for d in ds["dynamics"].values for k in ds["bottleneck"].values]
    depths = ds["depth"].values
    figure, axes = plt.subplots(
        len(rows),
        len(depths),
        squeeze=False,
        sharey=True,
        sharex="row",
        layout="constrained",
        figsize=(1.2 + 2.9 * len(depths), 0.6 + 1.9 * len(rows)),
    )
    tolerance = float(ds.attrs.get("tolerance", 0))
    for (dynamics, bottleneck), row in zip(rows, axes, strict=True):
        for depth, ax in zip(depths, row, strict=True):
            cell = ds.sel(dynamics=dynamics, depth=depth, bottleneck=bottleneck)
            for i, tau in enumerate(ds["tau"].values):
                gap_bands(cell.sel(tau=tau), ax=ax, label=f"{tau:g}", colour=_style.colour(i))
            if tolerance:
                ax.axhline(tolerance, color="0.4", linewidth=0.8, linestyle=":")
            ax.set_ylim(_floor(ds) / 4, 2)
            ax.set_title(f"{dynamics}, N = {depth}, width {bottleneck}", fontsize=9)
            ax.grid(alpha=0.25, linewidth=0.5)
        row[0].set_ylabel("gap (L - L*) / L(0)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="smoothing tau", loc="outside right center", frameon=False)
    return figure
