"""Geometry."""
from bwflow.geometry._distances import *
from bwflow.geometry._operands import Factor as Factor
