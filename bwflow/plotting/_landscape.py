"""The landscape: losses of the critical points against their Morse index."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import ArrayLike
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bwflow import _checks
from bwflow.landscape import CriticalPoint
from bwflow.plotting import _style

_MARKERS = "osD^vPX*<>"
_NAMED = 12


def landscape(
    points: Iterable[CriticalPoint],
    *,
    losses: ArrayLike | Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Losses of critical points against their Morse index, a marker for each rank.

    The minima are at index 0, and every step to the right is one more direction that leads down.
    Up to twelve points are named by the eigenvalues that they have learnt, counted from 1.

    Parameters
    ----------
    points
        Critical points, such as those of `bwflow.landscape.critical_points`, of which there may be
        very many: take some by `itertools.islice`.
    losses
        Losses to compare with, such as those at which runs ended, as lines across.
    ax
        Axes to draw into; the current ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ValueError
        If there are no points or others than critical points, `losses` are no finite numbers, or
        `ax` is none of matplotlib's.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([4.0, 2.0, 1.0])))
    >>> ax = bw.plotting.landscape(bw.landscape.critical_points(target, 2, tau=0.25))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['rank 2', 'rank 1', 'rank 0']
    >>> ax.texts[0].get_text()
    '{1, 2}'
    """
    _checks.instance("points", points, Iterable, "critical points of bwflow.landscape")
    found = list(points)
    for point in found:
        _checks.instance("points", point, CriticalPoint, "critical points of bwflow.landscape")
    if not found:
        raise ValueError("points must hold at least one critical point; got none.")
    levels = () if losses is None else np.ravel(_checks.numbers("losses", losses, float))
    ax = _style.axes_or_current(ax)
    ranks = sorted({len(point.indices) for point in found}, reverse=True)
    for place, rank in enumerate(ranks):
        of_rank = [point for point in found if len(point.indices) == rank]
        at = np.array([(point.morse_index, point.value) for point in of_rank], float)
        style = {"color": _style.colour(place + 1), "markersize": 7, "label": f"rank {rank}"}
        ax.plot(*at.T, _MARKERS[place % len(_MARKERS)], **style)
    for level in levels:
        ax.axhline(level, color="0.5", linewidth=0.8, zorder=0)
    if len(found) <= _NAMED:
        for point in found:
            name = "{" + ", ".join(str(i + 1) for i in point.indices) + "}"
            at = (point.morse_index, point.value)
            ax.annotate(name, at, xytext=(6, 4), textcoords="offset points", fontsize=8)
    ax.margins(0.12)
    ax.legend(frameon=False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _style.finish(ax, xlabel="Morse index", ylabel="loss")
