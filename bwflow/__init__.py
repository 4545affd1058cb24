"""Gradient dynamics of matrix factorisations under the Bures-Wasserstein distance."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public names and the rooms that hold them. They are imported when first asked for: the command
# line has to set its environment before jax and equinox read theirs.
_ROOMS = {
    "bures_wasserstein": "geometry",
    "smoothed_bures": "bures",
    "frobenius": "losses",
    "Target": "covariances",
    "end_to_end": "factors",
    "imbalance": "factors",
    "sample": "factors",
    "gradient_flow": "flow",
    "gradient_descent": "descent",
    "Trajectory": "_trajectory",
    "RESULTS": "_trajectory",
    "sweep": "sweeps",
    "Experiment": "experiment",
}
_MODULES = (
    "certificate",
    "covariances",
    "diagnostics",
    "estimators",
    "experiment",
    "experimental",
    "export",
    "factors",
    "geometry",
    "initializers",
    "jobs",
    "landscape",
    "linalg",
    "losses",
    "means",
    "operators",
    "page",
    "perturbation",
    "plan",
    "plotting",
    "precondition",
    "problems",
    "progress",
    "projections",
    "report",
    "solvers",
    "statistics",
    "store",
    "stored",
    "study",
    "theory",
    "until",
)

__all__ = [*_ROOMS, *_MODULES, "__version__"]

if TYPE_CHECKING:
    from bwflow import certificate as certificate
    from bwflow import covariances as covariances
    from bwflow import diagnostics as diagnostics
    from bwflow import estimators as estimators
    from bwflow import experiment as experiment
    from bwflow import experimental as experimental
    from bwflow import export as export
    from bwflow import factors as factors
    from bwflow import geometry as geometry
    from bwflow import initializers as initializers
    from bwflow import jobs as jobs
    from bwflow import landscape as landscape
    from bwflow import linalg as linalg
    from bwflow import losses as losses
    from bwflow import means as means
    from bwflow import operators as operators
    from bwflow import page as page
    from bwflow import perturbation as perturbation
    from bwflow import plan as plan
    from bwflow import plotting as plotting
    from bwflow import precondition as precondition
    from bwflow import problems as problems
    from bwflow import progress as progress
    from bwflow import projections as projections
    from bwflow import report as report
    from bwflow import solvers as solvers
    from bwflow import statistics as statistics
    from bwflow import store as store
    from bwflow import stored as stored
    from bwflow import study as study
    from bwflow import theory as theory
    from bwflow import until as until
    from bwflow._trajectory import RESULTS as RESULTS
    from bwflow._trajectory import Trajectory as Trajectory
    from bwflow.bures import smoothed_bures as smoothed_bures
    from bwflow.covariances import Target as Target
    from bwflow.descent import gradient_descent as gradient_descent
    from bwflow.experiment import Experiment as Experiment
    from bwflow.factors import end_to_end as end_to_end
    from bwflow.factors import imbalance as imbalance
    from bwflow.factors import sample as sample
    from bwflow.flow import gradient_flow as gradient_flow
    from bwflow.geometry import bures_wasserstein as bures_wasserstein
    from bwflow.losses import frobenius as frobenius
    from bwflow.sweeps import sweep as sweep


def __getattr__(name: str):
    if name in _ROOMS:
        return getattr(_room(_ROOMS[name]), name)
    if name in _MODULES:
        return _room(name)
    raise AttributeError(f"module 'bwflow' has no attribute {name!r}")


def _room(name: str):
    try:
        return import_module(f"bwflow.{name}")
    except ModuleNotFoundError as error:
        extra = {"xarray": "sweep", "zarr": "sweep", "tqdm": "sweep", "matplotlib": "plot"}
        extra |= dict.fromkeys(("h5netcdf", "h5py", "pyarrow"), "export") | {"sklearn": "sklearn"}
        if error.name not in extra:
            raise
        advice = f"pip install 'bwflow[{extra[error.name]}]'"
        raise ImportError(f"bwflow.{name} needs {error.name}: {advice}") from None


def __dir__() -> list[str]:
    return __all__
