"""Pictures of trajectories and sweeps, by matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bwflow import _checks, geometry
from bwflow.geometry import Covariance

# Okabe and Ito's colours without yellow: told apart with any colour vision, and in print.
_COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00")

# What a diverging run is drawn at; matplotlib's scales fail near the largest number.
_CEILING = 1e30


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
        If `ds` is no dataset, has another axis left, lacks a probe or the times, or has seeds of
        different times; if `ax` is none of matplotlib's.
    """
    _checks.instance("ds", ds, xr.Dataset, "an xarray.Dataset, as bwflow.sweep returns it")
    _checks.instance("ax", ax, (Axes, type(None)), "an Axes of matplotlib or None")
    for name in ("loss", "gap"):
        if name not in ds or set(ds[name].dims) != {"seed", "save"}:
            found = ds[name].dims if name in ds else "none"
            raise ValueError(f"ds must be a sweep over seed alone with probe {name}; got {found}.")
    clock = "time" if _is_flow(ds) else "step"
    found = ds[clock].dims if clock in ds.variables else "none"
    if found != ("save",):
        raise ValueError(f"ds must have one {clock} for all seeds; got {found}.")
    ax = plt.gca() if ax is None else ax
    start = ds["loss"].isel(save=0)
    ds = ds.isel(save=np.flatnonzero(ds[clock].values > 0))
    gap = (ds["gap"] / start.where(start > 0)).clip(_floor(ds), _CEILING)
    known = gap.notnull().any("seed").values
    gap, t = gap.isel(save=known), ds[clock].values[known]
    low, middle, high = (gap.quantile(q, "seed").values if t.size else t for q in (0.25, 0.5, 0.75))
    ax.fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(t, middle, color=colour, label=label, linewidth=1.6)
    ax.set(xscale="log", yscale="log", xlabel="time t" if clock == "time" else "step")
    return ax


def _floor(ds: xr.Dataset) -> float:
    """The tolerance, at which runs stop, or rounding: nothing is said below it."""
    return float(ds.attrs.get("tolerance", 0)) or float(np.finfo(ds["gap"].dtype).eps)


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

    Raises
    ------
    ValueError
        If `ds` is no dataset or lacks an axis or a probe of a study.
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
                gap_bands(
                    cell.sel(tau=tau), ax=ax, label=f"{tau:g}", colour=_COLOURS[i % len(_COLOURS)]
                )
            if tolerance:
                ax.axhline(tolerance, color="0.4", linewidth=0.8, linestyle=":")
            ax.set_ylim(_floor(ds) / 4, 2)
            ax.set_title(f"{dynamics}, N = {depth}, width {bottleneck}", fontsize=9)
            ax.grid(alpha=0.25, linewidth=0.5)
        row[0].set_ylabel("gap (L - L*) / L(0)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="smoothing tau", loc="outside right center", frameon=False)
    return figure


# More points than this hide each other and make files large.
_POINTS = 2000


def slices(
    samples: Mapping[str, ArrayLike],
    *,
    planes: Sequence[tuple[int, int]] = ((0, 1),),
    axes: Axes | Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Sets of samples in planes of two coordinates, a panel per plane.

    Each set has a colour and, in every panel, the ellipse
    `(x - mean)^T S^{-1} (x - mean) = 4` of its covariance `S` in that plane: two standard
    deviations in every direction, which hold 86% of a Gaussian. From the eighth set on, colours
    come again with another dash.

    Parameters
    ----------
    samples
        Label to array with samples in rows, at least two; all of one dimension. Later sets are
        drawn above earlier ones.
    planes
        Pairs of coordinates, counted from 0. For principal axes, multiply samples by eigenvectors.
    axes
        Axes to draw into, one per plane; those of a new figure by default.

    Returns
    -------
    matplotlib.figure.Figure
        The figure; save it with `savefig`.

    Raises
    ------
    ValueError
        If there are no samples or planes, an array is not a finite matrix of at least two rows and
        as many columns as the others, a plane is not a pair of its columns, or `axes` are not one
        per plane.

    Notes
    -----
    Of sets of more than 2000 samples every k-th is drawn, at most 2000; ellipses are of all.

    Examples
    --------
    >>> import jax
    >>> from bwflow import plotting
    >>> x = jax.random.normal(jax.random.key(0), (100, 3))
    >>> figure = plotting.slices({"data": x, "twice": 2 * x}, planes=((0, 1), (0, 2)))
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['coordinate 1', 'coordinate 2']
    """
    sets = _sample_sets(samples)
    _check_planes(planes, next(iter(sets.values())).shape[1])
    if axes is None:
        size = (0.4 + 3.2 * len(planes), 4.0)
        axes = plt.subplots(1, len(planes), squeeze=False, layout="constrained", figsize=size)[1]
    panels = np.ravel(np.asarray(axes, object)).tolist()
    for ax in panels:
        _checks.instance("axes", ax, Axes, "Axes of matplotlib")
    if len(panels) != len(planes):
        raise ValueError(f"axes must be one per plane, {len(planes)}; got {len(panels)}.")
    for plane, ax in zip(planes, panels, strict=True):
        for index, (label, X) in enumerate(sets.items()):
            _draw_set(ax, X[:, plane], label, index)
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_box_aspect(1)
        ax.set(xlabel=f"coordinate {plane[0]}", ylabel=f"coordinate {plane[1]}")
    columns = -(-len(sets) // 3)
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False)
    return panels[0].figure.figure


def _sample_sets(samples: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    _checks.instance("samples", samples, Mapping, "a dict of sets of samples")
    if not samples:
        raise ValueError("samples must hold at least one set; got none.")
    sets = {name: np.asarray(_checks.seen(f"samples[{name!r}]", X)) for name, X in samples.items()}
    dim = np.shape(next(iter(sets.values())))[-1:]
    for label, X in sets.items():
        if X.ndim != 2 or X.shape[0] < 2 or X.shape[1:] != dim:
            raise ValueError(
                f"samples must be matrices of two or more rows and one number of columns; "
                f"{label!r} has shape {X.shape}, the first has {dim[0] if dim else 'no'} columns."
            )
        if X.dtype.kind not in "iuf":
            raise ValueError(f"samples must be real; {label!r} has dtype {X.dtype}.")
        if not np.all(np.isfinite(X)):
            raise ValueError(f"samples must be finite; {label!r} holds NaN or infinity.")
    return {name: X.astype(float) for name, X in sets.items()}


def _check_planes(planes: Sequence[tuple[int, int]], dim: int) -> None:
    _checks.instance("planes", planes, Sequence, "a list of pairs of coordinates")
    if not planes:
        raise ValueError("planes must hold at least one pair of coordinates; got none.")
    for plane in planes:
        pair = tuple(plane) if np.iterable(plane) else ()
        whole = all(isinstance(i, (int, np.integer)) and 0 <= i < dim for i in pair)
        if len(pair) != 2 or not whole:
            raise ValueError(f"planes must be pairs of coordinates below {dim}; got {plane!r}.")


def _draw_set(ax: Axes, X: np.ndarray, label: str, index: int) -> None:
    colour = _COLOURS[index % len(_COLOURS)]
    dash = ("-", "--", ":", "-.")[index // len(_COLOURS) % 4]
    shown = X[:: -(-len(X) // _POINTS)]
    size = np.clip(80 / np.sqrt(len(shown)), 2, 5)
    ax.plot(*shown.T, "o", color=colour, alpha=0.4, markersize=size, mew=0, rasterized=True)
    # Above the points of every set.
    outline = _outline(np.cov(X, rowvar=False, ddof=0), X.mean(axis=0))
    ax.plot(*outline, dash, color=colour, linewidth=1.4, label=label, zorder=3)


def _outline(covariance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Two standard deviations around a mean, in every direction."""
    variances, vectors = np.linalg.eigh(covariance)
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    radii = 2 * np.sqrt(np.maximum(variances, 0))
    return mean[:, None] + vectors @ (radii[:, None] * circle)


def ellipses(
    covariances: Covariance,
    *,
    means: ArrayLike | None = None,
    ax: Axes | None = None,
    spacing: float | None = None,
    **style: Any,
) -> Axes:
    """Covariances of size 2 as ellipses of two standard deviations; of rank 1 as segments.

    Parameters
    ----------
    covariances
        One or a list of them, matrices or a `Factor`, such as points of a geodesic.
    means
        Their centres, one for each. By default the origin, or a row to the right.
    ax
        Axes to draw into; the current ones by default.
    spacing
        Distance of centres in a row, if there are no `means`; 0 by default.
    style
        Keywords of `matplotlib.axes.Axes.plot`.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, of equal scales.

    Raises
    ------
    ValueError
        If the covariances are not of size 2, there is not a mean for each, or `ax` is none of
        matplotlib's.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import geometry, plotting
    >>> A, B = jnp.diag(jnp.array([4.0, 1.0])), jnp.diag(jnp.array([1.0, 0.0]))
    >>> ax = plotting.ellipses(geometry.geodesic(A, B, jnp.linspace(0, 1, 5)), spacing=6.0)
    >>> len(ax.lines)
    5
    """
    _checks.instance("ax", ax, (Axes, type(None)), "an Axes of matplotlib or None")
    operand = geometry.matrices("covariances", covariances)
    shown = np.asarray(operand, float).reshape(-1, *operand.shape[-2:])
    if shown.shape[1:] != (2, 2):
        raise ValueError(f"covariances must be of size 2; got shape {operand.shape}.")
    if means is None:
        centres = (spacing or 0.0) * np.arange(len(shown))[:, None] * np.array([[1.0, 0.0]])
    else:
        centres = np.asarray(_checks.seen("means", means), float).reshape(-1, 2)
        if len(centres) != len(shown):
            raise ValueError(f"means must be one for each covariance; got {len(centres)}.")
    ax = plt.gca() if ax is None else ax
    style = {"color": _COLOURS[1], "linewidth": 1.4} | style
    for covariance, mean in zip(shown, centres, strict=True):
        ax.plot(*_outline(covariance, mean), **style)
    ax.set_aspect("equal")
    return ax


def geodesic_spectra(
    A: Covariance, B: Covariance, *, ax: Axes | None = None, points: int = 101
) -> Axes:
    """Standard deviations along the geodesic from `A` to `B`: roots of the eigenvalues against `t`.

    Dashed beside them those of the straight line `(1 - t) A + t B`, which swells.

    Parameters
    ----------
    A, B
        Covariances, as for `bwflow.bures_wasserstein`.
    ax
        Axes to draw into; the current ones by default.
    points
        Number of times.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        If these are no single covariances of one size, `points` is not positive, or `ax` is none of
        matplotlib's.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import plotting
    >>> ax = plotting.geodesic_spectra(jnp.eye(2), 4.0 * jnp.eye(2), points=5)
    >>> float(ax.lines[0].get_ydata()[-1])
    2.0
    """
    _checks.instance("ax", ax, (Axes, type(None)), "an Axes of matplotlib or None")
    t = np.linspace(0, 1, _checks.positive_int("points", points))
    ends = [np.asarray(geometry.matrices(name, x), float) for name, x in (("A", A), ("B", B))]
    for name, end in zip("AB", ends, strict=True):
        if end.ndim != 2:
            raise ValueError(f"{name} must be one covariance; got shape {end.shape}.")
    curve = np.asarray(geometry.matrices("geodesic", geometry.geodesic(A, B, t)), float)
    line = (1 - t)[:, None, None] * ends[0] + t[:, None, None] * ends[1]
    ax = plt.gca() if ax is None else ax
    for along, dash, colour, label in (
        (curve, "-", _COLOURS[1], "geodesic"),
        (line, "--", _COLOURS[3], "straight line"),
    ):
        deviations = np.sqrt(np.maximum(np.linalg.eigvalsh(along), 0))[:, ::-1]
        for k, values in enumerate(deviations.T):
            ax.plot(t, values, dash, color=colour, linewidth=1.4, label=label if k == 0 else None)
    ax.set(xlabel="t", ylabel="standard deviation")
    ax.legend(frameon=False)
    return ax
