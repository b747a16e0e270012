"""A nearer time at a ratio of noise levels."""

from ..core.spacing import Ratio

__all__ = ["Ratio"]
