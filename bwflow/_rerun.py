"""One run of a store, made again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bwflow import report, store, study, sweeps
from bwflow._compute import AXES, check_origin, root
from bwflow._process import in_precision
from bwflow._units import constants
from bwflow.experiment import Experiment


def rerun(path: str | Path, **coordinates: Any) -> xr.Dataset:
    """Compute one run of a store again, alone, with its layers along the way.

    Parameters
    ----------
    path
        The store.
    **coordinates
        `seed=17, tau=0.1, ...`: a value of each axis; one with a single value may be left out.

    Returns
    -------
    xarray.Dataset
        The records of the run, and its layers `W_1, ..., W_N` at every record.

    Raises
    ------
    ValueError
        If a coordinate is missing or not in the store, or as `compute`.

    Notes
    -----
    A run alone and a run among others differ in rounding.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> spec = bw.Experiment(dynamics=("descent",), seeds=2)
    >>> folder = bw.stored.create(spec, f"{tempfile.mkdtemp()}/mine")
    >>> bw.jobs.run(folder, progress=False)
    >>> float(bw.stored.rerun(folder, seed=1)["gap"].isel(save=-1).squeeze()) < 1e-2
    True
    """
    path = store.check_store(path)
    attrs = root(path)
    experiment = Experiment.from_json(attrs["experiment"])
    with in_precision(experiment.precision):
        check_origin(path, attrs)
        ds = store.open(path)
        point = {axis: _chosen(axis, ds[axis].values, coordinates) for axis in AXES}
        unknown = set(coordinates) - set(AXES)
        if unknown:
            raise ValueError(f"coordinates must be of {', '.join(AXES)}; got {', '.join(unknown)}.")
        target = study.kept_target(constants(path, study.TARGET))
        static = {axis: [point[axis]] for axis in AXES[:3]}
        traced = {axis: np.asarray([point[axis]]) for axis in AXES[3:]}
        run = study.cell(experiment, target, study.with_layers(experiment))
        return sweeps.sweep(run, static=static, traced=traced, batch_size=1, progress=False)


def _chosen(axis: str, values: np.ndarray, coordinates: Mapping[str, Any]) -> Any:
    """The value of an axis that is meant: the very one, in the type that the axis has."""
    listed = report.listed(values)
    if axis not in coordinates and len(values) > 1:
        raise ValueError(f"{axis} must be given, of {listed}.")
    asked = coordinates.get(axis, values.tolist()[0])
    try:
        same = values == (values.dtype.type(asked) if values.dtype.kind == "f" else asked)
    except (TypeError, ValueError):
        same = np.zeros(len(values), bool)
    if not np.any(same):
        raise ValueError(f"{axis} must be one of {listed}; got {asked!r}.")
    found = values[[np.argmax(same)]]
    return found[0] if axis in AXES[3:] else found.tolist()[0]
