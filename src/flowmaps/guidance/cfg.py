"""Classifier-free guidance."""

from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap

__all__ = ["CFG"]


class CFG(FlowMap):
    """Away from the unconditional map, through the conditional one.

    u_null + scale (u_cond - u_null), for the mean velocity u.

    Args:
        model: a map that knows a condition and its absence.
        scale: 0 ignores the condition, 1 is the plain conditional map, more exaggerates it.
    Cost: 2 network evaluations.
    Source: Ho & Salimans, Classifier-free diffusion guidance, 2022, arXiv:2207.12598, Eq. (6).
    Differs: their weight w is scale - 1. Off the diagonal it mixes mean velocities, which is the practice with
        one-step maps, but not the flow map of the mixed velocity.
    """

    def __init__(self, model: FlowMap, scale: float = 2.0) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        null = self.model.mean_velocity(x, s, t, self.model.null_condition(len(x)))
        return null.lerp(self.model.mean_velocity(x, s, t, cond), self.scale)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
