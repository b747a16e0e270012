"""Classifier-free guidance with a scaled unconditional velocity and a still start."""

from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time

__all__ = ["CFGZeroStar"]


class CFGZeroStar(FlowMap):
    """Away from the part of the unconditional map that explains the conditional one, after a still start.

    a u_null + scale (u_cond - a u_null), with a = <u_cond, u_null> / |u_null|^2 for each sample, the factor that brings
    a u_null nearest to u_cond. Until time `still` nothing moves: X_{s,t} is X_{max(s, still), max(t, still)}, and the
    velocity at earlier times is zero.

    Args:
        model: a map that knows a condition and its absence.
        scale: 1 is the plain conditional map, more exaggerates the condition.
        still: time until which the state stands still; a solver's step that departs before it does nothing.
    Cost: 2 network evaluations.
    Source: Fan, Zheng, Yeh & Liu, CFG-Zero*: improved classifier-free guidance for flow matching models, 2025,
        arXiv:2503.18886, the optimised scale and zero-init.
    Differs: the start is a time, there a number of steps (the first, of 25 or so); mean velocities off the diagonal.
    """

    def __init__(self, model: FlowMap, scale: float = 2.0, still: float = 0.04) -> None:
        super().__init__()
        if not 0 <= still < 1:
            raise ValueError(f"still must lie in [0, 1); got {still}.")
        self.model, self.scale, self.still = model, scale, still

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        begin, end, span = s.clamp_min(self.still), t.clamp_min(self.still), t - s
        moving = torch.where(span == 0, (s >= self.still).to(s.dtype), (end - begin) / torch.where(span == 0, 1, span))
        null = self.model.mean_velocity(x, begin, end, self.model.null_condition(len(x)))
        mine = self.model.mean_velocity(x, begin, end, cond)
        full = torch.promote_types(x.dtype, torch.float32)
        a, b = (z.flatten(1).to(full) for z in (mine, null))
        null = expand_time((a * b).sum(1) / b.square().sum(1).clamp_min(1e-30), x).to(null.dtype) * null
        return expand_time(moving, x).to(x.dtype) * null.lerp(mine, self.scale)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
