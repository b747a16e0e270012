"""The network is the mean velocity."""

from ..core.flow_map import MeanVelocity

__all__ = ["MeanVelocity"]
