"""No change."""

from ..core.regression import Unchanged

__all__ = ["Unchanged"]
