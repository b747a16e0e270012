"""A correction of at most unit length."""

from ..core.regression import Normalised

__all__ = ["Normalised"]
