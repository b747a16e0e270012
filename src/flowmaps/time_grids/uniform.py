"""Equal steps."""

from ..core.grid import UniformGrid

__all__ = ["UniformGrid"]
