"""The landscape of the smoothed losses: minima, critical points and curvature."""

from bwflow._minima import Discrepancy as Discrepancy
from bwflow._minima import minimizer as minimizer
from bwflow._minima import minimizing_eigenvalues as minimizing_eigenvalues
from bwflow._minima import minimum as minimum
from bwflow.landscape.blowup import Blowup as Blowup
from bwflow.landscape.blowup import hessian_blowup as hessian_blowup
from bwflow.landscape.classification import KIND_NAMES as KIND_NAMES
from bwflow.landscape.classification import KINDS as KINDS
from bwflow.landscape.classification import Classification as Classification
from bwflow.landscape.classification import classify as classify
from bwflow.landscape.critical import CriticalPoint as CriticalPoint
from bwflow.landscape.critical import critical_points as critical_points
from bwflow.landscape.critical import minimizer_spectrum as minimizer_spectrum
from bwflow.landscape.curvature import Escape as Escape
from bwflow.landscape.curvature import escape_directions as escape_directions
from bwflow.landscape.curvature import hessian_spectrum as hessian_spectrum
from bwflow.landscape.curvature import morse_index as morse_index

__all__ = [
    "KINDS",
    "KIND_NAMES",
    "Blowup",
    "Classification",
    "CriticalPoint",
    "Escape",
    "classify",
    "critical_points",
    "escape_directions",
    "hessian_blowup",
    "hessian_spectrum",
    "minimizer",
    "minimizer_spectrum",
    "minimizing_eigenvalues",
    "minimum",
    "morse_index",
]
