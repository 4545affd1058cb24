"""The one style: colours and dashes that any colour vision and any printer tells apart."""

from contextlib import AbstractContextManager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.rcsetup import cycler

from bwflow import _checks

# Okabe and Ito's colours without yellow: told apart with any colour vision, and in print.
COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", ":", "-.")

# What a diverging run is drawn at; matplotlib's scales fail near the largest number.
CEILING = 1e30

CLOCKS = {"time": "time t", "step": "step"}

# Light from dark in print, and even to every eye.
SHADES = "cividis"


def style() -> AbstractContextManager[None]:
    """The style of these pictures for pictures of one's own, as a context.

    Colours of Okabe and Ito without yellow, in turn with dashes once they are used up; labels of
    nine points; no frame around legends; a faint grid.

    Examples
    --------
    >>> import matplotlib.pyplot as plt
    >>> from bwflow import plotting
    >>> with plotting.style():
    ...     figure, ax = plt.subplots()
    >>> line, = ax.plot([1, 2])
    >>> line.get_color()
    '#000000'
    """
    cycle = cycler(linestyle=DASHES) * cycler(color=COLOURS)
    return mpl.rc_context(
        {
            "axes.prop_cycle": cycle,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.5,
            "lines.linewidth": 1.6,
            "font.size": 9,
            "axes.titlesize": 9,
            "legend.frameon": False,
            "image.cmap": SHADES,
        }
    )


def colour(index: int) -> str:
    """Of the `index`-th thing drawn; they come again with another dash."""
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> str:
    """Of the `index`-th thing drawn."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def look(index: int) -> dict[str, str]:
    """Colour and dash of the `index`-th thing drawn."""
    return {"colour": colour(index), "dash": dash(index)}


def axes_or_current(ax: object) -> Axes:
    """What a picture is drawn into."""
    _checks.instance("ax", ax, (Axes, type(None)), "an Axes of matplotlib or None")
    return plt.gca() if ax is None else ax  # pyright: ignore[reportReturnType]


def finish(ax: Axes, **labels: str) -> Axes:
    """Axes with their labels and the faint grid."""
    ax.set(**labels)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.set_axisbelow(True)
    return ax


def line_or_band(
    ax: Axes,
    x: np.ndarray,
    runs: np.ndarray,
    *,
    colour: str,
    dash: str = DASHES[0],
    label: str | None = None,
) -> None:
    """The curve of one run, or median and quartile band of several; a row of `runs` is a run.

    What is not finite is left out.
    """
    runs = np.where(np.isfinite(runs), np.minimum(runs, CEILING), np.nan)
    known = np.isfinite(runs).any(axis=0) & np.isfinite(x)
    x, runs = x[known], runs[:, known]
    low, middle, high = np.nanquantile(runs, (0.25, 0.5, 0.75), axis=0) if x.size else (x, x, x)
    if len(runs) > 1:
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, middle, dash, color=colour, label=label, linewidth=1.6)


def clock_of(argument: str, ds: xr.Dataset, *, shared: bool = True) -> str:
    """What the records of these runs are at: `time` for flows, `step` for descents."""
    if "dynamics" in ds.dims:
        raise ValueError(f"{argument} must be of one dynamics, such as ds.sel(dynamics='flow').")
    if "dynamics" in ds.coords:
        clock = "time" if ds["dynamics"].item() == "flow" else "step"
    else:
        clock = "time" if "time" in ds.coords else "step"
    found = ds[clock].dims if clock in ds.variables else ()
    if "save" not in found or (shared and found != ("save",)):
        whose = "one" if shared else "the"
        raise ValueError(
            f"{argument} must have {whose} {clock} for all records of all runs; "
            f"got {found or 'none'}."
        )
    return clock
