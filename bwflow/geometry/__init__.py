"""Geometry."""

from bwflow.geometry._distances import *
from bwflow.geometry._barycenters import *
from bwflow.geometry._maps import *
from bwflow.geometry._operands import Factor as Factor
from bwflow.geometry._tangents import *
