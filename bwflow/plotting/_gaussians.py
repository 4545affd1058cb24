"""Gaussians: samples in planes, covariances as ellipses, still and moving, spectra of geodesics."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from jaxtyping import ArrayLike
from matplotlib.animation import FuncAnimation
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bwflow import _checks, geometry
from bwflow._trajectory import Trajectory
from bwflow.geometry import Covariance
from bwflow.plotting import _style
from bwflow.plotting._records import records_of
from bwflow.plotting._style import COLOURS, axes_or_current, colour, dash

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
    shown = X[:: -(-len(X) // _POINTS)]
    size = np.clip(80 / np.sqrt(len(shown)), 2, 5)
    ax.plot(*shown.T, "o", color=colour(index), alpha=0.4, markersize=size, mew=0, rasterized=True)
    # Above the points of every set.
    outline = _outline(np.cov(X, rowvar=False, ddof=0), X.mean(axis=0))
    ax.plot(*outline, dash(index), color=colour(index), linewidth=1.4, label=label, zorder=3)


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
    ax = axes_or_current(ax)
    style = {"color": COLOURS[1], "linewidth": 1.4} | style
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
    t = np.linspace(0, 1, _checks.positive_int("points", points))
    ends = [np.asarray(geometry.matrices(name, x), float) for name, x in (("A", A), ("B", B))]
    for name, end in zip("AB", ends, strict=True):
        if end.ndim != 2:
            raise ValueError(f"{name} must be one covariance; got shape {end.shape}.")
    curve = np.asarray(geometry.matrices("geodesic", geometry.geodesic(A, B, t)), float)
    line = (1 - t)[:, None, None] * ends[0] + t[:, None, None] * ends[1]
    ax = axes_or_current(ax)
    for along, line_style, shade, label in (
        (curve, "-", COLOURS[1], "geodesic"),
        (line, "--", COLOURS[3], "straight line"),
    ):
        deviations = np.sqrt(np.maximum(np.linalg.eigvalsh(along), 0))[:, ::-1]
        for k, values in enumerate(deviations.T):
            name = label if k == 0 else None
            ax.plot(t, values, line_style, color=shade, linewidth=1.4, label=name)
    ax.set(xlabel="t", ylabel="standard deviation")
    ax.legend(frameon=False)
    return ax


def movie(
    covariances: Covariance | Trajectory | xr.Dataset,
    *,
    target: Covariance | None = None,
    frames: int = 60,
    ax: Axes | None = None,
) -> FuncAnimation:
    """Covariances of size 2 as an ellipse that moves, such as those along a run.

    Where it has been stays as a faint trail, the target is dashed.

    Parameters
    ----------
    covariances
        Covariances in order, or one run with the probe `covariance`, whose time is shown.
    target
        Where the ellipse should arrive.
    frames
        At most so many; of more covariances some are shown, the first and the last among them.
        Those of a run are as far apart as its ellipses are, since time is uneven.
    ax
        Axes to draw into; those of a new figure by default.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        The animation: keep it, and `.save("run.gif", writer="pillow")`, or show
        `IPython.display.HTML(animation.to_jshtml())` in a notebook.

    Raises
    ------
    ValueError
        If the covariances are not of size 2, a run has no such records, `frames` is not positive or
        `ax` is none of matplotlib's.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bwflow import geometry, plotting
    >>> A, B = jnp.diag(jnp.array([4.0, 1.0])), jnp.diag(jnp.array([1.0, 0.0]))
    >>> curve = geometry.geodesic(A, B, jnp.linspace(0, 1, 5))
    >>> animation = plotting.movie(curve, target=B)
    >>> animation.to_jshtml().count("data:image/png;base64")
    5
    """
    count = _checks.positive_int("frames", frames)
    captions = None
    if isinstance(covariances, (Trajectory, xr.Dataset)):
        records = records_of(covariances)
        path = records.one("covariance", 2)
        captions = [f"{_style.CLOCKS[records.kind]} = {t:.3g}" for t in records.clock]
    else:
        path = np.asarray(geometry.matrices("covariances", covariances), float)
    end = None if target is None else np.asarray(geometry.matrices("target", target), float)
    for name, array, ndim in (("covariances", path, 3), ("target", end, 2)):
        if array is not None and (array.ndim != ndim or array.shape[-2:] != (2, 2)):
            raise ValueError(f"{name} must be of size 2; got shape {array.shape}.")
    known = np.flatnonzero(np.isfinite(path).all((1, 2)))
    if ax is None:
        ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")[1]
    _checks.instance("ax", ax, Axes, "an Axes of matplotlib or None")
    shown = known[_evenly_spread(path[known], count)]
    return _animated(ax, path[shown], end, captions and [captions[i] for i in shown])


def _evenly_spread(path: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` points of a path, about as far from each other."""
    if len(path) <= count:
        return np.arange(len(path))
    steps = np.linalg.norm(np.diff(path, axis=0), axis=(1, 2))
    # A path that stands still is spread by its index.
    length = np.concatenate([[0.0], np.cumsum(steps + 1e-3 * steps.max(initial=0) + 1e-30)])
    wanted = np.linspace(0, length[-1], count)
    return np.unique(np.searchsorted(length, wanted).clip(0, len(path) - 1))


def _animated(
    ax: Axes, path: np.ndarray, end: np.ndarray | None, captions: list[str] | None
) -> FuncAnimation:
    curves = [_outline(S, np.zeros(2)) for S in path]
    targets = [] if end is None else [_outline(end, np.zeros(2))]
    for curve in targets:
        ax.plot(*curve, "--", color=COLOURS[3], linewidth=1.4, label="target")
        ax.legend(loc="upper right", frameon=False)
    (trail,) = ax.plot([], [], color=COLOURS[1], linewidth=0.6, alpha=0.25)
    (line,) = ax.plot([], [], color=COLOURS[1], linewidth=1.8)
    caption = ax.set_title("")
    size = 1.08 * max(np.abs(curve).max() for curve in (*curves, *targets))
    ax.set(xlim=(-size, size), ylim=(-size, size), aspect="equal")
    gap = np.full((2, 1), np.nan)

    def draw(i: int) -> tuple[Artist, ...]:
        trail.set_data(np.hstack([part for curve in curves[:i] for part in (curve, gap)] or [gap]))
        line.set_data(curves[i])
        caption.set_text(captions[i] if captions else "")
        return trail, line, caption

    draw(0)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return FuncAnimation(figure, draw, frames=len(curves), interval=60, blit=False)
