"""The straight path."""

from ..core.interpolant import Linear

__all__ = ["Linear"]
