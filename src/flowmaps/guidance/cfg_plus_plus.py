"""Classifier-free guidance that keeps the unconditional noise."""

from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.shapes import expand_time

__all__ = ["CFGPlusPlus"]


class CFGPlusPlus(FlowMap):
    """A step to data between the unconditional and the conditional prediction, and to the unconditional noise.

    X_{s,t}(x) = beta_t [D_null + scale (D_cond - D_null)] + alpha_t E[x0 | x; null], with D = E[x1 | x], all predicted
    from the velocities at s.

    With the log-SNR's step h it is the DDIM step of classifier-free guidance of scale / (1 - e^-h). This grows without
    bound as t goes to s, where the step does not vanish: there is no velocity, and more steps guide more.

    Args:
        model: a map that knows a condition and its absence; its velocity is used.
        scale: 0 ignores the condition, 1 takes the data from the conditional prediction alone.
        interpolant: the path the map was trained on, without latent noise.
    Cost: 2 network evaluations.
    Source: Chung, Kim, Park, Nam & Ye, CFG++: manifold-constrained classifier free guidance for diffusion models, 2024,
        arXiv:2406.08070, the DDIM step with renoising by the unconditional noise; its range of scales.
    Differs: any path.
    """

    def __init__(self, model: FlowMap, scale: float = 0.6, interpolant: Interpolant = Linear()) -> None:
        super().__init__()
        if not 0 <= scale <= 1:
            raise ValueError(f"scale must lie between 0 and 1; got {scale}. For larger scales there is 'cfg'.")
        self.model, self.scale, self.interpolant = model, scale, interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if bool((s == t).any()):
            raise ValueError("CFG++ must go from one time to another, it has no velocity; got s = t. Use 'jump'.")
        path = self.interpolant
        null = self.model.velocity(x, s, self.model.null_condition(len(x)))
        free, bound = (path.data_from_velocity(v, x, s) for v in (null, self.model.velocity(x, s, cond)))
        a, b = (expand_time(z, x).to(x.dtype) for z in (path.alpha(t), path.beta(t)))
        landed = b * free.lerp(bound, self.scale) + a * path.source_from_velocity(null, x, s)
        return (landed - x) / expand_time(t - s, x).to(x.dtype)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
