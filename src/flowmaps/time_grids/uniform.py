"""Equal steps.

Source: none is needed; equal steps are what every solver starts from.
"""

from ..core.grid import UniformGrid

__all__ = ["UniformGrid"]
