"""What may still change without notice: names, meanings, and whether it stays."""

from bwflow.experimental import semirandom as semirandom

__all__ = ["semirandom"]
