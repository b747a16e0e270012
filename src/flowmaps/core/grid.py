"""The default grid of times."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .flow_map import FlowMap


class TimeGrid(Protocol):
    """Chooses times 0 = t_0 < ... < t_K = 1, [K + 1] float64; `x0` [B, *] are states at time 0 to try a grid on."""

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor: ...


@dataclass(frozen=True)
class UniformGrid:
    """Equal steps."""

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """K + 1 equally spaced times; neither map nor states are used."""
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)
