"""Losses of the end-to-end matrix: callable pytrees that know their target and their minimum."""

from bwflow.losses._approximation import Approximation as Approximation
from bwflow.losses._completion import Completion as Completion
from bwflow.losses._completion import weighted as weighted
from bwflow.losses._measured import AbsoluteSensing as AbsoluteSensing
from bwflow.losses._measured import OneBit as OneBit
from bwflow.losses._measured import PhaseRetrieval as PhaseRetrieval
from bwflow.losses._measured import Sensing as Sensing
from bwflow.losses._targets import BuresWasserstein as BuresWasserstein
from bwflow.losses._targets import Frobenius as Frobenius
from bwflow.losses._targets import frobenius as frobenius
from bwflow.losses._trimmed import TrimmedBuresWasserstein as TrimmedBuresWasserstein

__all__ = [
    "AbsoluteSensing",
    "Approximation",
    "BuresWasserstein",
    "Completion",
    "Frobenius",
    "OneBit",
    "PhaseRetrieval",
    "Sensing",
    "TrimmedBuresWasserstein",
    "frobenius",
    "weighted",
]
