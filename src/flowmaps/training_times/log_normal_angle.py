"""One time, whose angle on the trigonometric path has a log-normal tangent."""

from ..core.noise import LogNormalAngle

__all__ = ["LogNormalAngle"]
