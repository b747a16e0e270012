"""The flow of the guided velocity."""

from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import EulerMap, FlowMap, Integrated
from ..core.sampling import RungeKutta4
from ..core.types import Sampler
from .cfg import CFG

__all__ = ["GuidedFlows"]


class GuidedFlows(FlowMap):
    """The flow map of the velocity that mixes the unconditional and the conditional one.

    b = (1 - scale) b_null + scale b_cond, and X_{s,t} by solving dx/dt = b: on the diagonal the same as "cfg", off it
    the map that mixed mean velocities are not. For Gaussian paths b belongs to p_null^(1 - scale) p_cond^scale, at each
    time, pointwise in the score.

    Args:
        model: a map that knows a condition and its absence; its velocity is used.
        scale: 0 ignores the condition, 1 is the plain conditional flow, more exaggerates it.
        sampler: the solver of jumps.
        steps: its number of equal steps from s to t.
    Cost: 2 network evaluations on the diagonal; off it 2 steps times the sampler's evaluations.
    Source: Zheng, Le, Shaul, Lipman, Grover & Chen, Guided flows for generative modeling and decision making, 2023,
        arXiv:2311.13443, the guided vector field.
    """

    def __init__(self, model: FlowMap, scale: float = 2.0, sampler: Sampler = RungeKutta4(), steps: int = 8) -> None:
        super().__init__()
        self.mixed = EulerMap(CFG(model, scale))
        self.flow = Integrated(self.mixed, sampler, steps)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return (self.mixed if s is t or torch.equal(s, t) else self.flow).mean_velocity(x, s, t, cond)

    def null_condition(self, batch: int) -> Any:
        return self.mixed.null_condition(batch)
