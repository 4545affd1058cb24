"""The landscape of the smoothed losses: minima, critical points and curvature."""

from bwflow._minima import Discrepancy as Discrepancy
from bwflow._minima import minimizer as minimizer
from bwflow._minima import minimizing_eigenvalues as minimizing_eigenvalues
from bwflow._minima import minimum as minimum
