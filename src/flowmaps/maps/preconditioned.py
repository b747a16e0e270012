"""The network with unit-variance input and output."""

from ..core.flow_map import Preconditioned

__all__ = ["Preconditioned"]
