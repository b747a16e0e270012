"""The exact derivative."""

from ..core.calculus import Exact

__all__ = ["Exact"]
