"""The network of continuous-time consistency models."""

from ..core.flow_map import TrigFlow

__all__ = ["TrigFlow"]
