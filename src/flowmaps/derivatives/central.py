"""The central difference."""

from ..core.calculus import Central

__all__ = ["Central"]
