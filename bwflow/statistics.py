"""Convergence statistics of a sweep: how many runs arrived, when, and how fast at the end.

A run that did not arrive is censored at the end of its time: it counts in every quantile, which
are those of the Kaplan-Meier estimate, and it is infinite only if too few runs arrived.
"""

import json

import numpy as np
import xarray as xr
from scipy import stats

_QUANTILES = (0.25, 0.5, 0.75)


def summary(ds: xr.Dataset, *, over: str = "seed") -> xr.Dataset:
    """Statistics over one axis of a sweep.

    Parameters
    ----------
    ds
        What `bwflow.sweep` returns, with the probes `loss` and `gap`, run with `until`.
    over
        Axis to summarise.

    Returns
    -------
    xarray.Dataset
        `runs`, `arrived` and `failed` (counts), `hit` (Kaplan-Meier quantiles 0.25, 0.5, 0.75
        of the time or step of arrival, infinite if beyond the end), `late_rate` (median of
        `-d log(gap) / dt` over the last three decades of the gap), `late_slope` (median of
        `d log(gap) / d log(t)` over the last two octaves of time), `steps` (median of the steps
        taken), and `algebraic`: whether the theory predicts a power law (see `algebraic_decay`).
        Failed runs are censored at the end and left out of the two fits.

    Raises
    ------
    ValueError
        If `ds` is no dataset, or lacks a variable or the axis.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, optax
    >>> import bwflow as bw
    >>> target = bw.Target(jnp.diag(jnp.array([1.0, 0.5])))
    >>> def experiment(*, seed):
    ...     start = bw.initializers.gaussian()(jax.random.key(seed), (2, 2))
    ...     loss = bw.losses.BuresWasserstein(target, tau=0.0)
    ...     return bw.gradient_descent(loss, start, optax.sgd(0.25), num_steps=40,
    ...                                until=bw.until.gap(1e-4), throw=False)
    >>> ds = bw.sweep(experiment, traced={"seed": jnp.arange(5)}, progress=False)
    >>> table = bw.statistics.summary(ds)
    >>> int(table["arrived"]), float(table["hit"].sel(quantile=0.5))
    (5, 7.0)
    """
    _require(ds, ("gap", "hit", "loss", "num_steps", "success"), "a sweep with probes loss and gap")
    if over not in ds["hit"].dims:
        raise ValueError(f"ds must be a sweep over {over!r}; it lacks the axis {over!r}.")
    ds = ds.assign({name: ds[name].astype(float) for name in ("gap", "hit")})
    times = _clock(ds)
    end = times.max("save")
    arrived = (ds["hit"] < np.inf) & ds["success"]
    duration = xr.where(arrived, ds["hit"], end)
    result = xr.Dataset(
        {
            "runs": ds["hit"].isel({over: 0}, drop=True).notnull() * ds.sizes[over],
            "arrived": arrived.sum(over),
            "failed": (~ds["success"]).sum(over),
            "hit": xr.apply_ufunc(
                _kaplan_meier,
                duration,
                arrived,
                input_core_dims=[[over], [over]],
                output_core_dims=[["quantile"]],
                vectorize=True,
            ).assign_coords(quantile=list(_QUANTILES)),
            "steps": ds["num_steps"].median(over),
            "algebraic": algebraic_decay(ds),
        }
    )
    fits = xr.apply_ufunc(
        _late_decay,
        times,
        ds["gap"].where(ds["success"]),
        ds["hit"],
        100 * np.finfo(ds["loss"].dtype).eps * ds["loss"].isel(save=0, drop=True).astype(float),
        input_core_dims=[["save"], ["save"], [], []],
        output_core_dims=[["fit"]],
        vectorize=True,
    )
    for index, name in enumerate(("late_rate", "late_slope")):
        result[name] = xr.apply_ufunc(
            _median, fits.isel(fit=index), input_core_dims=[[over]], vectorize=True
        )
    return result


def algebraic_decay(ds: xr.Dataset) -> xr.DataArray:
    """Where the gap must end in a power law of time instead of an exponential.

    Under the Bures-Wasserstein loss a singular value whose target eigenvalue does not exceed
    `tau` has to die out. From `N >= 2` layers on the flow slows down with it, `s' ~ -s^{3-2/N}`,
    and the gap falls like `t^{-N/(N-1)}`. Where `tau` equals a positive eigenvalue the loss is
    flat to fourth order, and the gap falls like `t^{-2N/(2N-1)}`, for one layer too. Under the
    Frobenius loss one layer has such a law at `tau` equal to any eigenvalue, zero included.
    Needs the variable `target_eigenvalues`; where that is missing, the answer is `False`.

    Raises
    ------
    ValueError
        If `ds` is no dataset, or has `target_eigenvalues` and lacks another variable of a study.
    """
    _require(ds, (), "what bwflow.study.run returns")
    if "target_eigenvalues" not in ds:
        return xr.zeros_like(ds["tau"], dtype=bool) if "tau" in ds.dims else xr.DataArray(False)
    _require(ds, ("bottleneck", "depth", "tau"), "what bwflow.study.run returns")
    spectrum = ds["target_eigenvalues"]
    index = xr.DataArray(np.arange(spectrum.size), dims="eigenvalue")
    learnable = index < ds["bottleneck"]
    # An eigenvalue meant to be equal to tau is so up to its rounding.
    rounding = 10 * spectrum.size * np.finfo(spectrum.dtype).eps * float(spectrum.max())
    excess = spectrum - ds["tau"]
    dies = (learnable & (excess <= rounding)).any("eigenvalue")
    equal = learnable & (abs(excess) <= rounding)
    frobenius = json.loads(ds.attrs.get("experiment", "{}")).get("loss") == "frobenius"
    touches = (equal & (frobenius | (spectrum > rounding))).any("eigenvalue")
    return xr.where(ds["depth"] > 1, dies, touches)


def _require(ds: xr.Dataset, names: tuple[str, ...], expected: str) -> None:
    """Refuse what is no dataset or lacks one of the variables."""
    if not isinstance(ds, xr.Dataset):
        raise ValueError(f"ds must be an xarray.Dataset, {expected}; got {type(ds).__name__}.")
    missing = [name for name in names if name not in ds.variables]
    if missing:
        raise ValueError(f"ds must be {expected}; it lacks {', '.join(missing)}.")


def _clock(ds: xr.Dataset) -> xr.DataArray:
    """Times of flows and steps of descents as one array of floats."""
    if "time" not in ds.variables:
        _require(ds, ("step",), "a sweep with times or steps")
    elif "step" in ds.variables:
        _require(ds, ("dynamics",), "a sweep of both dynamics")
    clocks = [
        ds[name].astype(float).reset_coords(drop=True)
        for name in ("time", "step")
        if name in ds.variables
    ]
    if len(clocks) == 1:
        return clocks[0]
    return xr.where(ds["dynamics"] == "flow", *clocks)


def _kaplan_meier(duration: np.ndarray, arrived: np.ndarray) -> np.ndarray:
    """Quantiles of the time of arrival; infinite where the estimate does not reach them."""
    if not arrived.any():
        return np.full(len(_QUANTILES), np.inf)
    sample = stats.CensoredData(uncensored=duration[arrived], right=duration[~arrived])
    cdf = stats.ecdf(sample).cdf
    reached = cdf.probabilities[None, :] >= np.array(_QUANTILES)[:, None] - 1e-12
    return np.where(reached.any(1), cdf.quantiles[reached.argmax(1)], np.inf)


def _late_decay(times: np.ndarray, gap: np.ndarray, hit: float, rounding: float) -> np.ndarray:
    """`(-d log gap / dt, d log gap / d log t)` by least squares at the end of one run."""
    seen = np.isfinite(times) & np.isfinite(gap)
    t, g = times[seen], gap[seen]
    if np.isfinite(hit):
        # Rows after the hit repeat its state, so the last row has the gap at the hit.
        before = t < hit
        t, g = np.append(t[before], hit), np.append(g[before], g[-1:])
    elif np.any(g <= rounding):  # without a tolerance runs go on there
        t, g = t[: np.argmax(g <= rounding)], g[: np.argmax(g <= rounding)]
    t, g = t[g > 0], g[g > 0]
    if t.size < 3:
        return np.full(2, np.nan)
    last = g <= 1e3 * g[-1]
    octaves = (t >= t[-1] / 4) & (t > 0)
    return np.array(
        [-_slope(t[last], np.log(g[last])), _slope(np.log(t[octaves]), np.log(g[octaves]))]
    )


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    if x.size < 3 or np.ptp(x) == 0:
        return np.nan
    return float(np.polyfit(x - x.mean(), y, 1)[0])


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan
