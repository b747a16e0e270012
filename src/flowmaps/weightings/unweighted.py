"""No weighting."""

from ..core.weighting import Unweighted

__all__ = ["Unweighted"]
