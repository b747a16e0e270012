"""Guidance that the network has learned, asked for by telling it the scale."""

from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.types import same_condition

__all__ = ["Told"]


class Told(FlowMap):
    """The map of a network that was told scales of guidance in training, told one.

    u_{s,t}(x; label, "guidance" = scale): unlike the mix of mean velocities that CFG makes, off the diagonal too it is
    the flow map of the guided velocity.

    Args:
        model: a map whose network takes the number "guidance", such as GuidedAsTold or ImprovedMeanFlow trains.
        scale: 0 ignores the condition, 1 is the plain conditional map, more exaggerates it.
    Cost: 1 network evaluation.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, the flow map that takes the scale of its guidance.
    """

    def __init__(self, model: FlowMap, scale: float = 2.0) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        scale, null = x.new_full((len(x),), self.scale), self.model.null_condition(len(x))
        label = null if cond is None else cond
        if null is not None:  # without its condition a sample was told 1
            scale = torch.where(same_condition(label, null), 1.0, scale)
        return self.model.mean_velocity(x, s, t, {"label": label, "guidance": scale})

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
