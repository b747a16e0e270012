"""Guidance that weakens where the condition changes much."""

from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time

__all__ = ["RAAG"]


class RAAG(FlowMap):
    """Classifier-free guidance with a scale for each sample, which falls with the ratio of difference to velocity.

    u_null + w (u_cond - u_null), with w = 1 + (scale - 1) exp(-decay r) and r = |u_cond - u_null| / |u_null|. The ratio
    peaks at the first steps, where a constant scale leads astray when there are few of them.

    Args:
        model: a map that knows a condition and its absence.
        scale: largest scale; 1 is the plain conditional map.
        decay: how fast the scale falls with the ratio; 0 is classifier-free guidance.
    Cost: 2 network evaluations.
    Source: Zhu, Peng, Hu & others, RAAG: ratio aware adaptive guidance, 2025, arXiv:2508.03442v2; the defaults are
        those of the released example, 10 steps of Stable Diffusion 3.5.
    Differs: mean velocities off the diagonal. From v4 on the paper is called MAMBO-G, and the factor of exp is `scale`
        itself, not scale - 1.
    """

    def __init__(self, model: FlowMap, scale: float = 18.0, decay: float = 12.0) -> None:
        super().__init__()
        if decay < 0:
            raise ValueError(f"decay must be at least 0; got {decay}.")
        self.model, self.scale, self.decay = model, scale, decay

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        null = self.model.mean_velocity(x, s, t, self.model.null_condition(len(x)))
        mine = self.model.mean_velocity(x, s, t, cond)
        full = torch.promote_types(x.dtype, torch.float32)
        gap, size = ((z.flatten(1).to(full)).norm(dim=1) for z in (mine - null, null))
        scale = 1 + (self.scale - 1) * torch.exp(-self.decay * gap / size.clamp_min(1e-30))
        return null.lerp(mine, expand_time(scale, x).to(null.dtype))

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
