"""One run: its gap beside the bounds, its singular values, the directions that it finds."""

import numpy as np
import xarray as xr
from jaxtyping import ArrayLike
from matplotlib.axes import Axes

from bwflow import _checks
from bwflow._trajectory import Trajectory
from bwflow.covariances import Target
from bwflow.plotting import _style
from bwflow.plotting._records import records_of
from bwflow.theory import Comparison


def gap(
    run: Trajectory | xr.Dataset,
    *,
    bounds: Comparison | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Gap to the optimum against time or step, beside the bounds that it is held against.

    Of several runs, a batch or a sweep, the median and the band of the quartiles.

    Parameters
    ----------
    run
        What `bwflow.gradient_flow` or `gradient_descent` returns, also under `jax.vmap`, or a
        sweep, with the probe `gap`; where that was not recorded `loss` is drawn.
    bounds
        What `bwflow.theory.compare` says of the run: proved bounds are dashed, and what is not
        proved for it is dotted. They bound the loss, and the gap where the optimum is zero. Those
        that stay at the first loss, as the published rate does at `tau = 0`, say nothing.
    label
        Of the run, for the legend.
    ax
        Axes to draw into; the current ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, log-log; for an exponential decay as a straight line call
        `ax.set_xscale("linear")`.

    Raises
    ------
    ValueError
        If `run` is no run or lacks its records, the bounds are not those of one run, or `ax` is
        none of matplotlib's.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> run = bw.gradient_flow(
    ...     bw.losses.BuresWasserstein(target, 0.0), (jnp.diag(jnp.array([1.9, 0.9])),),
    ...     times=jnp.linspace(0.0, 2.0, 21), rtol=1e-7, atol=1e-9)
    >>> ax = bw.plotting.gap(run, bounds=bw.theory.compare(run, target, 0.0), label="flow")
    >>> [text.get_text() for text in ax.get_legend().get_texts()][:2]
    ['flow', 'published (says nothing here)']
    """
    records = records_of(run)
    name = "gap" if "gap" in records.names else "loss"
    values = records.get(name, 0)
    if bounds is not None:
        _checks.instance("bounds", bounds, Comparison, "a Comparison of bwflow.theory.compare")
        if bounds.loss.ndim != 1:
            raise ValueError(f"bounds must be of one run; got a batch {bounds.loss.shape[:-1]}.")
    ax = _style.axes_or_current(ax)
    index = len(ax.lines)
    look = _style.look(index)
    _style.line_or_band(ax, records.clock, values, label=label or name, **look)
    if bounds is not None:
        said = np.where(bounds.informative, "", " (says nothing here)")
        said = np.where(bounds.valid, said, " (not proved here)")
        rows = zip(bounds.names, np.asarray(bounds.bounds), bounds.valid, said, strict=True)
        for k, (bound, row, proved, words) in enumerate(rows, index + 1):
            text = f"{bound}{words}"
            kind = {"linestyle": "--" if proved else ":", "linewidth": 1.2}
            ax.plot(np.asarray(bounds.times), row, label=text, color=_style.colour(k), **kind)
    if bounds is not None or label is not None:
        ax.legend(frameon=False)
    ax.set_xscale("log", nonpositive="mask")
    ax.set_yscale("log", nonpositive="mask")
    return _style.finish(ax, xlabel=_style.CLOCKS[records.kind], ylabel=_NAMES[name])


def spectrum(
    run: Trajectory | xr.Dataset,
    *,
    target: Target | None = None,
    tau: ArrayLike = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Singular values of the end-to-end matrix against time or step.

    Dotted beside them where they end: `sqrt((lambda_i - tau)_+)`.

    Parameters
    ----------
    run
        One run, or a dataset of one, with the probe `singular_values`.
    target, tau
        Covariance and smoothing of the loss, for the dotted lines; none without `target`.
    ax
        Axes to draw into; the current ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, of a logarithmic time.

    Raises
    ------
    ValueError
        If `run` is not one run with these records, `target` no `Target`, `tau` negative, or `ax`
        none of matplotlib's.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> run = bw.gradient_flow(
    ...     bw.losses.BuresWasserstein(target, 0.0), (jnp.eye(2),), times=jnp.linspace(0, 9, 10),
    ...     rtol=1e-5, atol=1e-7, probe=bw.diagnostics.record("singular_values"))
    >>> ax = bw.plotting.spectrum(run, target=target)
    >>> [round(float(line.get_ydata()[-1]), 2) for line in ax.lines]
    [2.0, 1.0, 2.0, 1.0]
    """
    records = records_of(run)
    values = records.one("singular_values", 1)
    ends = ()
    if target is not None:
        _checks.instance("target", target, Target, "a bwflow.Target")
        smoothing = float(_checks.scalar("tau", tau, target.eigenvalues.dtype, minimum=0.0))
        lam = np.asarray(target.eigenvalues, float)
        ends = np.sqrt(np.maximum(lam - smoothing, 0))[: values.shape[-1]]
    ax = _style.axes_or_current(ax)
    for i, column in enumerate(values.T):
        ax.plot(records.clock, column, _style.dash(i), color=_style.colour(i), label=f"i = {i + 1}")
    for i, end in enumerate(ends):
        ax.axhline(end, color=_style.colour(i), linewidth=0.8, linestyle=":")
    if values.shape[-1] <= len(_style.COLOURS):
        ax.legend(frameon=False)
    ax.set_xscale("log", nonpositive="mask")
    return _style.finish(ax, xlabel=_style.CLOCKS[records.kind], ylabel="singular values of W")


def alignment(run: Trajectory | xr.Dataset, *, ax: Axes | None = None) -> Axes:
    """How far singular vectors have turned to the target's eigenvectors, as a heat map.

    A row for each singular vector, the first on top; light is `|cosine| = 1`.

    Parameters
    ----------
    run
        One run, or a dataset of one, with the probe `alignment`.
    ax
        Axes to draw into; the current ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, of a logarithmic time, with a colour bar beside them.

    Raises
    ------
    ValueError
        If `run` is not one run with these records at two times after the start, or `ax` is none of
        matplotlib's.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 1.0])))
    >>> run = bw.gradient_flow(
    ...     bw.losses.BuresWasserstein(target, 0.0),
    ...     bw.initializers.gaussian()(jax.random.key(0), (2, 2)), times=jnp.linspace(0, 9, 10),
    ...     rtol=1e-5, atol=1e-7, probe=bw.diagnostics.record("alignment"))
    >>> ax = bw.plotting.alignment(run)
    >>> ax.collections[0].get_array().shape
    (2, 9)
    """
    records = records_of(run)
    values = records.one("alignment", 1)
    after = np.flatnonzero(np.isfinite(records.clock) & (records.clock > 0))
    # After the end of a run records are at the same time or have none.
    after = after[np.diff(records.clock[after], prepend=0) > 0]
    if after.size < 2:
        raise ValueError(f"run must have two records after its start; got {after.size}.")
    t = records.clock[after]
    ratio = np.sqrt(t[1:] / t[:-1])
    edges = np.concatenate([[t[0] / ratio[0]], t[:-1] * ratio, [t[-1] * ratio[-1]]])
    ax = _style.axes_or_current(ax)
    rows = np.arange(values.shape[1] + 1) + 0.5
    mesh = ax.pcolormesh(edges, rows, values[after].T, cmap=_style.SHADES, vmin=0, vmax=1)
    ax.figure.colorbar(mesh, ax=ax, label="|cosine| of u_i and eigenvector i")
    ax.set(xscale="log", xlabel=_style.CLOCKS[records.kind], ylabel="i")
    ax.set_yticks(np.arange(1, values.shape[1] + 1))
    ax.invert_yaxis()
    return ax


_NAMES = {"gap": "gap L - L*", "loss": "loss L"}
