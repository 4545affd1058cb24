"""Estimators for scikit-learn on covariances of any rank, under the Bures-Wasserstein distance.

They take arrays of shape `(n_matrices, n_channels, n_channels)`, symmetric positive semi-definite,
and compute in the precision of these, whatever jax's setting is: arrays of `float32` in single
precision, all others in double precision. Where data and what was fitted differ, the lower of the
two precisions holds.

Programs are compiled for sizes that are rounded up, so that the folds of a cross-validation share
them. Parallel searches need processes, as joblib makes by default, and not threads.
"""

from bwflow.estimators._alignment import BarycenterAlignment as BarycenterAlignment
from bwflow.estimators._clusters import KMeans as KMeans
from bwflow.estimators._mdm import MDM as MDM
from bwflow.estimators._signals import Covariances as Covariances
from bwflow.estimators._signals import ShrunkCovariances as ShrunkCovariances
from bwflow.estimators._tangent import TangentSpace as TangentSpace

__all__ = [
    "MDM",
    "BarycenterAlignment",
    "Covariances",
    "KMeans",
    "ShrunkCovariances",
    "TangentSpace",
]
