"""Euler's method."""

from ..core.sampling import Euler

__all__ = ["Euler"]
