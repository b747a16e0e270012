"""The map itself."""

from ..core.sampling import Jump

__all__ = ["Jump"]
