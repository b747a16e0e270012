"""Two times, uniform on the triangle."""

from ..core.times import UniformPair

__all__ = ["UniformPair"]
