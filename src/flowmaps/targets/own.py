"""The map's own weights."""

from ..core.target import Own

__all__ = ["Own"]
