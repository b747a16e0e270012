"""What a velocity refiner says: how the velocity has changed since it was last known."""

from typing import Any

import torch
from torch import Tensor

from .flow_map import FlowMap


def offset(refiner: FlowMap, x: Tensor, v: Tensor, t: Tensor, cond: Any = None) -> Tensor:
    """The refiner's estimate of b_t(x) - v.

    Args:
        refiner: a map of states with velocities beside them, [B, 2 C, *]; the first half of its velocity is the offset.
        x: state [B, C, *].
        v: a velocity known from a little earlier on the same trajectory [B, C, *].
        t: times [B].
        cond: condition, batch first.
    Returns:
        Offset [B, C, *].
    Cost: 1 evaluation of the refiner.
    """
    return refiner.velocity(torch.cat([x, v], 1), t, cond)[:, : x.shape[1]]
