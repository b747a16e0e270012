"""How often a sampler calls the network."""

from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import Counted, FlowMap
from ..core.sampling import sample
from ..core.types import Sampler

__all__ = ["function_evaluations"]


@torch.no_grad()
def function_evaluations(model: FlowMap, sampler: Sampler, steps: int, x: Tensor, cond: Any = None) -> int:
    """Calls of the map that a sampler makes from time 0 to 1, measured, not declared.

    Args:
        model: the flow map.
        sampler: how a step is taken.
        steps: number of steps.
        x: a state to start from [B, *]; one sample is enough.
        cond: condition, batch first.
    """
    counted = Counted(model)
    sample(counted, x, torch.linspace(0, 1, steps + 1), sampler=sampler, cond=cond)
    return counted.calls
