"""Two times with most of their mass in the middle."""

from ..core.times import LogitNormalPair

__all__ = ["LogitNormalPair"]
