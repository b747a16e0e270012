"""Heun's method."""

from ..core.sampling import Heun

__all__ = ["Heun"]
