"""One time, uniform."""

from ..core.times import Uniform

__all__ = ["Uniform"]
