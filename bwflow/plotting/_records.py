"""What was recorded along runs, whoever recorded it."""

import numpy as np
import xarray as xr

from bwflow import _checks
from bwflow._trajectory import Trajectory
from bwflow.plotting import _style


class Records:
    """Arrays by name, of one run or several, and the times or steps that they are at."""

    def __init__(self, kind: str, clock: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        self.kind = kind
        self.clock = clock
        self.names = tuple(arrays)
        self._arrays = arrays

    def get(self, name: str, ndim: int) -> np.ndarray:
        """Runs by records, and `ndim` more."""
        if name not in self._arrays:
            advice = f'probe=bw.diagnostics.record("{name}", ...)'
            has = ", ".join(self.names) or "none"
            raise ValueError(f"run must have the records {name!r}; it has {has}. Use {advice}.")
        array = np.asarray(self._arrays[name], float)
        return array.reshape(-1, self.clock.size, *array.shape[array.ndim - ndim :])

    def one(self, name: str, ndim: int) -> np.ndarray:
        """Records of the only run."""
        array = self.get(name, ndim)
        if len(array) != 1:
            raise ValueError(f"run must be one run; got {len(array)}. Select one of them.")
        return array[0]


def records_of(run: object) -> Records:
    """Those of a trajectory, a batch of them or a dataset."""
    expected = "a bwflow.Trajectory or an xarray.Dataset of bwflow.sweep"
    _checks.instance("run", run, (Trajectory, xr.Dataset), expected)
    if isinstance(run, Trajectory):
        times = np.asarray(run.times, float)
        clock = times.reshape(-1, times.shape[-1])
        if not np.array_equal(clock, np.broadcast_to(clock[0], clock.shape)):
            raise ValueError("run must have one sequence of times; its runs have several.")
        arrays = {name: np.asarray(probe) for name, probe in run.probes.items()}
        return Records(run.clock, clock[0], arrays)
    assert isinstance(run, xr.Dataset)
    kind = _style.clock_of("run", run)
    own = ("save", "layer", "row", "rank", "column")
    arrays = {}
    for name, variable in run.data_vars.items():
        if "save" in variable.dims:
            last = [dim for dim in own if dim in variable.dims]
            arrays[str(name)] = variable.transpose(..., *last).values
    return Records(kind, run[kind].values.astype(float), arrays)
