"""Pictures of trajectories and sweeps, by matplotlib."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours without yellow: told apart with any colour vision, and in print.
_COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00")


def gap_bands(
    ds: xr.Dataset, *, ax: Axes | None = None, label: str | None = None, colour: str = _COLOURS[1]
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
        If the dataset has another axis left, lacks a probe, or its seeds have different times.
    """
    ax = plt.gca() if ax is None else ax
    for name in ("loss", "gap"):
        if name not in ds or set(ds[name].dims) != {"seed", "save"}:
            found = ds[name].dims if name in ds else "none"
            raise ValueError(f"ds must be a sweep over seed alone with probe {name}; got {found}.")
    clock = "time" if _is_flow(ds) else "step"
    if ds[clock].dims != ("save",):
        raise ValueError(f"ds must have one {clock} for all seeds; got {ds[clock].dims}.")
    start = ds["loss"].isel(save=0)
    # A run that has arrived is not followed further, so nothing is said below the tolerance.
    floor = float(ds.attrs.get("tolerance", np.finfo(float).tiny))
    ds = ds.isel(save=np.flatnonzero(ds[clock].values > 0))
    gap = (ds["gap"] / start).clip(min=floor)
    low, middle, high = (gap.quantile(q, "seed").values for q in (0.25, 0.5, 0.75))
    t = ds[clock].values
    ax.fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(t, middle, color=colour, label=label, linewidth=1.6)
    ax.set(xscale="log", yscale="log", xlabel="time t" if clock == "time" else "step")
    return ax


def _is_flow(ds: xr.Dataset) -> bool:
    if "dynamics" in ds.coords:
        return ds["dynamics"].item() == "flow"
    return "time" in ds.coords


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
    """
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
    tolerance = float(ds.attrs.get("tolerance", np.nan))
    for (dynamics, bottleneck), row in zip(rows, axes, strict=True):
        for depth, ax in zip(depths, row, strict=True):
            cell = ds.sel(dynamics=dynamics, depth=depth, bottleneck=bottleneck)
            for i, tau in enumerate(ds["tau"].values):
                gap_bands(
                    cell.sel(tau=tau), ax=ax, label=f"{tau:g}", colour=_COLOURS[i % len(_COLOURS)]
                )
            ax.axhline(tolerance, color="0.4", linewidth=0.8, linestyle=":")
            ax.set_ylim(tolerance / 4, 2)
            ax.set_title(f"{dynamics}, N = {depth}, width {bottleneck}", fontsize=9)
            ax.grid(alpha=0.25, linewidth=0.5)
        row[0].set_ylabel("gap (L - L*) / L(0)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="smoothing tau", loc="outside right center", frameon=False)
    return figure
