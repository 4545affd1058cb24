"""Losses of the end-to-end matrix: callable pytrees that know their target and their minimum."""

from bwflow.losses._targets import BuresWasserstein as BuresWasserstein
from bwflow.losses._targets import Frobenius as Frobenius
from bwflow.losses._targets import frobenius as frobenius
