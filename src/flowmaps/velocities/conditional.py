"""The conditional velocity."""

from ..core.velocity import Conditional

__all__ = ["Conditional"]
