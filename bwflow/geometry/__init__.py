"""Bures-Wasserstein geometry of covariances of any rank: distances, maps, tangents, means.

Wherever a covariance is asked for it may be a matrix, a `bwflow.Target`, or a `Factor` `F` that
stands for `F F^T`; of factors no matrix of size `n x n` is formed, unless it is what was asked for.
Leading dimensions are batches and broadcast. Everything works under `jit` and `vmap` and has
derivatives of every order.
"""

from bwflow.geometry._barycenters import RESULTS as RESULTS
from bwflow.geometry._barycenters import Barycenter as Barycenter
from bwflow.geometry._barycenters import barycenter as barycenter
from bwflow.geometry._barycenters import concluded as concluded
from bwflow.geometry._barycenters import geometric_median as geometric_median
from bwflow.geometry._derivatives import riemannian_gradient as riemannian_gradient
from bwflow.geometry._derivatives import riemannian_hessian as riemannian_hessian
from bwflow.geometry._distances import bures_wasserstein as bures_wasserstein
from bwflow.geometry._distances import bures_wasserstein_distance as bures_wasserstein_distance
from bwflow.geometry._distances import frechet_distance as frechet_distance
from bwflow.geometry._distances import gaussian_wasserstein as gaussian_wasserstein
from bwflow.geometry._distances import pairwise_distances as pairwise_distances
from bwflow.geometry._maps import geodesic as geodesic
from bwflow.geometry._maps import interpolate as interpolate
from bwflow.geometry._maps import optimal_coupling as optimal_coupling
from bwflow.geometry._maps import transport as transport
from bwflow.geometry._maps import transport_map as transport_map
from bwflow.geometry._operands import Covariance as Covariance
from bwflow.geometry._operands import Factor as Factor
from bwflow.geometry._operands import matrices as matrices
from bwflow.geometry._running import RunningBarycenter as RunningBarycenter
from bwflow.geometry._tangents import exp as exp
from bwflow.geometry._tangents import injectivity_radius as injectivity_radius
from bwflow.geometry._tangents import inner_product as inner_product
from bwflow.geometry._tangents import log as log
from bwflow.geometry._tangents import norm as norm
from bwflow.geometry._tangents import parallel_transport as parallel_transport
from bwflow.geometry._tangents import tangent_projection as tangent_projection

__all__ = [
    "RESULTS",
    "Barycenter",
    "Covariance",
    "Factor",
    "RunningBarycenter",
    "barycenter",
    "bures_wasserstein",
    "bures_wasserstein_distance",
    "exp",
    "frechet_distance",
    "gaussian_wasserstein",
    "geodesic",
    "geometric_median",
    "injectivity_radius",
    "inner_product",
    "interpolate",
    "log",
    "norm",
    "optimal_coupling",
    "pairwise_distances",
    "parallel_transport",
    "riemannian_gradient",
    "riemannian_hessian",
    "tangent_projection",
    "transport",
    "transport_map",
]
