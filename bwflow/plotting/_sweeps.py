"""Sweeps: bands over runs, runs that are still under way, phase diagrams."""

import warnings
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import xarray as xr
from jaxtyping import ArrayLike
from matplotlib.axes import Axes

from bwflow import _checks, statistics
from bwflow.plotting import _style

_Data = TypeVar("_Data", xr.DataArray, xr.Dataset)


def bands(
    ds: xr.Dataset,
    name: str = "gap",
    *,
    x: str | None = None,
    by: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Median and quartile band of a quantity over all runs, a colour for each value of an axis.

    Parameters
    ----------
    ds
        A sweep; all axes but `x` and `by` are pooled.
    name
        A variable of one number for each run (`hit`, `num_steps`) or record (`gap`, `loss`).
    x
        Axis of the sweep to draw against. By default the time or step of the records.
    by
        Axis whose values have bands of their own; none by default.
    ax
        Axes to draw into; the current ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, of linear scales but for a time or step, which is logarithmic, and for what is
        positive, such as a gap.

    Raises
    ------
    ValueError
        If `ds` is no dataset, lacks a variable or an axis, mixes flows and descents or has records
        at different times; if `ax` is none of matplotlib's.

    Notes
    -----
    Infinite values, such as the time of a run that never arrived, are left out; `survival` counts
    them.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from bwflow import plotting
    >>> gap = np.exp(-np.arange(1, 4)[:, None] * np.array([0.0, 1.0, 2.0]))
    >>> ds = xr.Dataset({"gap": (("seed", "save"), gap)}, {"step": ("save", [0, 1, 2])})
    >>> plotting.bands(ds).lines[0].get_ydata().round(3).tolist()
    [1.0, 0.135, 0.018]
    """
    _dataset(ds, (name,), (x, by))
    over_records = x is None
    if over_records and "save" not in ds[name].dims:
        raise ValueError(f"name must be recorded along the runs if x is left out; got {name!r}.")
    if not over_records and "save" in ds[name].dims:
        raise ValueError(f"name must be one number for each run against x; got {name!r}.")
    clock = _style.clock_of("ds", ds) if over_records else None
    along = "save" if over_records else x
    at = ds[clock if over_records else along].values.astype(float)
    ax = _style.axes_or_current(ax)
    for index, (label, part) in enumerate(_parts(ds[name], by)):
        runs = part.transpose(..., along).values.reshape(-1, at.size).astype(float)
        _style.line_or_band(ax, at, runs, label=label, **_style.look(index))
    if over_records:
        ax.set_xscale("log", nonpositive="mask")
    if name in ("loss", "gap", "gradient_norm", "residual"):
        ax.set_yscale("log", nonpositive="mask")
    if by is not None:
        ax.legend(title=by, frameon=False)
    return _style.finish(ax, xlabel=_style.CLOCKS.get(str(clock), str(x)), ylabel=_label(ds[name]))


def survival(
    ds: xr.Dataset, *, by: str | None = None, ax: Axes | None = None, confidence: ArrayLike = 0.95
) -> Axes:
    """Share of the runs that have not arrived yet, against time or step (Kaplan and Meier).

    Runs that ended without arriving are censored there (short strokes), failed ones at the end of
    their time, as in `bwflow.statistics.summary`; runs that are not done count nowhere.

    Parameters
    ----------
    ds
        A sweep run with `until`; all axes but `by` are pooled.
    by
        Axis whose values have curves of their own; none by default.
    ax
        Axes to draw into; the current ones by default.
    confidence
        Of the band, pointwise (Greenwood's, of the log-log survival); 0 draws none.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, of a logarithmic time.

    Raises
    ------
    ValueError
        If `ds` is no dataset, lacks a variable or an axis, or mixes flows and descents; if
        `confidence` is not in [0, 1); if `ax` is none of matplotlib's.

    References
    ----------
    E. L. Kaplan and P. Meier (1958), Nonparametric estimation from incomplete observations.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from bwflow import plotting
    >>> ds = xr.Dataset(
    ...     {"hit": ("seed", [1.0, 2.0, 4.0, np.inf]), "success": ("seed", [True] * 4)},
    ...     {"time": ("save", [0.0, 5.0])})
    >>> plotting.survival(ds, confidence=0).lines[0].get_ydata().tolist()
    [1.0, 0.75, 0.5, 0.25, 0.25]
    """
    _dataset(ds, ("hit", "success"), (by,))
    clock = _style.clock_of("ds", ds, shared=False)
    confidence = float(_checks.numbers("confidence", confidence, float, minimum=0.0))
    if not confidence < 1:
        raise ValueError(f"confidence must be in [0, 1); got {confidence:g}.")
    ax = _style.axes_or_current(ax)
    known = statistics.endings(ds, ds["hit"].dims, ds[clock])
    runs = xr.Dataset({name: (ds["hit"].dims, values) for name, values in known.items()})
    first = float(ds[clock].where(ds[clock] > 0).min())
    for index, (label, part) in enumerate(_parts(runs.assign_coords(ds["hit"].coords), by)):
        done = part["done"].values.ravel()
        t, arrived = (part[name].values.ravel()[done] for name in ("duration", "arrived"))
        if t.size:
            _draw_survival(ax, t, arrived, first, confidence, index, label)
    ax.set_xscale("log", nonpositive="mask")
    if by is not None:
        ax.legend(title=by, frameon=False)
    ax.set_ylim(0, 1.02)
    return _style.finish(ax, xlabel=_style.CLOCKS[clock], ylabel="share of runs under way")


def _draw_survival(
    ax: Axes,
    t: np.ndarray,
    arrived: np.ndarray,
    first: float,
    confidence: float,
    index: int,
    label: str | None,
) -> None:
    """The curve, its band, and a stroke for each time at which runs are censored."""
    from scipy import stats  # takes longer than all else that pictures import

    curve = stats.ecdf(stats.CensoredData(t[arrived], right=t[~arrived])).sf
    x = np.concatenate([[min(first, t.min())], curve.quantiles])
    y = np.concatenate([[1.0], curve.probabilities])
    colour = _style.colour(index)
    ax.step(x, y, _style.dash(index), where="post", color=colour, label=label, linewidth=1.6)
    if confidence and arrived.any():
        with warnings.catch_warnings(action="ignore"):  # undefined at 0 and 1
            ends = curve.confidence_interval(confidence, method="log-log")
        low, high = (np.append(1.0, end.probabilities) for end in (ends.low, ends.high))
        shade = {"step": "post", "color": colour, "alpha": 0.15, "linewidth": 0}
        ax.fill_between(x, low, high, where=np.isfinite(low) & np.isfinite(high), **shade)
    censored = np.unique(t[~arrived])
    ax.plot(censored, curve.evaluate(censored), "|", color=colour, markersize=9)


def phases(
    ds: xr.Dataset, x: str, y: str, value: str = "converged", *, ax: Axes | None = None
) -> Axes:
    """A statistic of the runs over two axes of a sweep, as shades with numbers in them.

    Parameters
    ----------
    ds
        A sweep with the probes `loss` and `gap`, run with `until`.
    x, y
        Its axes to draw along; all others are pooled.
    value
        A variable of `bwflow.statistics.summary`: `converged` (share of runs that arrived), `hit`
        (median time or step of arrival), `failed`, `late_rate`, `late_slope`, `steps`.
    ax
        Axes to draw into; the current ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, with a colour bar beside them. Cells that nothing is known of are hatched; where
        more than half of the runs never arrived, `hit` says `never`.

    Raises
    ------
    ValueError
        If `ds` is no dataset, lacks a variable or an axis, or would pool flows with descents; if
        there is no such statistic; if `ax` is none of matplotlib's.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> def experiment(*, rate, scale, seed):
    ...     start = bw.initializers.gaussian()(jax.random.key(seed), (2, 2))
    ...     loss = bw.losses.BuresWasserstein(bw.Target(jnp.eye(2)), tau=0.0)
    ...     return bw.gradient_descent(loss, (scale * start[0],), optax.sgd(rate), num_steps=20,
    ...                                until=bw.until.gap(1e-3), throw=False)
    >>> ds = bw.sweep(experiment, progress=False, traced={
    ...     "rate": [0.1, 0.5], "scale": [0.5, 1.0, 2.0], "seed": jnp.arange(4)})
    >>> ax = bw.plotting.phases(ds, x="rate", y="scale")
    >>> [text.get_text() for text in ax.texts[:2]]
    ['1', '1']
    """
    _dataset(ds, ("hit",), (x, y))
    if x == y:
        raise ValueError(f"y must be another axis than x; got {y!r} for both.")
    over = [str(axis) for axis in ds["hit"].dims if axis not in (x, y)]
    # The statistics pool one axis at least.
    table = statistics.summary(ds if over else ds.expand_dims("run"), over=over or "run")
    _checks.choice("value", value, [str(name) for name in table.data_vars])
    cells = table[value]
    if "quantile" in cells.dims:
        cells = cells.sel(quantile=0.5)
    shown = cells.transpose(y, x).values.astype(float)
    ax = _style.axes_or_current(ax)
    mesh = ax.pcolormesh(
        np.ma.masked_invalid(shown), cmap=_style.SHADES, edgecolors="white", linewidth=0.5
    )
    if value.startswith("converged"):
        mesh.set_clim(0, 1)
    ax.patch.set(hatch="////", edgecolor="0.8")
    dark = np.asarray(mesh.norm(shown))
    for (row, column), number in np.ndenumerate(shown):
        text = "" if np.isnan(number) else _short(number) if np.isfinite(number) else "never"
        ink = "black" if not np.isfinite(number) or dark[row, column] > 0.5 else "white"
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=8)
    for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
        labels = _texts(ds[name])
        axis.set_ticks(np.arange(len(labels)) + 0.5, labels)
    ax.figure.colorbar(mesh, ax=ax, label=_STATISTICS.get(value, value))
    ax.set(xlabel=x, ylabel=y)
    return ax


_STATISTICS = {
    "converged": "share of runs that arrived",
    "hit": "median time or step of arrival",
    "failed": "runs that failed",
    "late_rate": "late rate -d log gap / dt",
    "late_slope": "late slope d log gap / d log t",
    "steps": "median number of steps",
}


def _short(number: float) -> str:
    return f"{number:.0f}" if 1e3 <= abs(number) < 1e5 else f"{number:.3g}"


def _dataset(ds: xr.Dataset, names: Sequence[str], axes: Sequence[str | None]) -> None:
    """Refuse what is no sweep with these variables and axes."""
    _checks.instance("ds", ds, xr.Dataset, "an xarray.Dataset, as bwflow.sweep returns it")
    for name in names:
        if name not in ds.data_vars:
            raise ValueError(f"ds must have a variable {name!r}; it has {_listed(ds.data_vars)}.")
    found = [axis for axis in ds[names[0]].dims if axis != "save"]
    for axis in axes:
        if axis is not None and axis not in found:
            raise ValueError(f"ds must have an axis {axis!r}; it has {_listed(found)}.")


def _listed(names: Iterable[Hashable]) -> str:
    return ", ".join(map(str, names)) or "none"


def _parts(data: _Data, by: str | None) -> list[tuple[str | None, _Data]]:
    """The data of each value of an axis, with its label; of none, all of them."""
    if by is None:
        return [(None, data)]
    return [(text, data.isel({by: i})) for i, text in enumerate(_texts(data.coords[by]))]


def _texts(values: xr.DataArray) -> list[str]:
    """The values of an axis as labels."""
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in np.asarray(values).tolist()]


def _label(variable: xr.DataArray) -> str:
    return str(variable.attrs.get("long_name", variable.name))
