"""One time, with most of its mass in the middle."""

from ..core.times import LogitNormal

__all__ = ["LogitNormal"]
