"""The square error."""

from ..core.regression import Square

__all__ = ["Square"]
