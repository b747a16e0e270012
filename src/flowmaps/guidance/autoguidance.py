"""Guidance by a weaker version of the same map."""

from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap

__all__ = ["Autoguidance"]


class Autoguidance(FlowMap):
    """Away from a bad version of the map, through the map itself.

    u_weak + scale (u - u_weak), for mean velocities under the same condition.

    Args:
        model: the map.
        weak: a smaller or less trained one for the same data, for example an early checkpoint of the same run.
        scale: 1 is the plain map, more leads further away from the weak one.
    Cost: 1 evaluation of each network.
    Source: Karras, Aittala, Kynkäänniemi, Lehtinen, Aila & Laine, Guiding a diffusion model with a bad version of
        itself, 2024, arXiv:2406.02507, Section 3.
    Differs: off the diagonal it mixes mean velocities, which is not the flow map of the mixed velocity.
    """

    def __init__(self, model: FlowMap, weak: FlowMap, scale: float = 2.0) -> None:
        super().__init__()
        self.model, self.weak, self.scale = model, weak, scale

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.weak.mean_velocity(x, s, t, cond).lerp(self.model.mean_velocity(x, s, t, cond), self.scale)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
