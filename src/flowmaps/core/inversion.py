"""What an inversion of a map is."""

from typing import Any, Protocol

from torch import Tensor

from .flow_map import FlowMap


class Inversion(Protocol):
    """Finds the state x [B, *] at time s that a map carries to y [B, *] at time t: X_{s,t}(x) = y."""

    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor: ...
