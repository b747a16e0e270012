"""A velocity with guidance folded in, so that the trained map needs none."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.shapes import expand_time
from ..core.types import Pair, same_condition
from ..core.velocity import Conditional, VelocitySource, needs_path

__all__ = ["Guided"]


@dataclass(frozen=True)
class Guided:
    """Another velocity mixed with the map's own, with and without its condition.

    v = omega w + kappa u_{s,s}(I_s; c) + (1 - omega - kappa) u_{s,s}(I_s; null), whose fixed point is classifier-free
    guidance of scale omega / (1 - kappa). Samples whose condition was dropped, and times outside the interval, keep w.

    Args:
        omega: share of w.
        kappa: share of the map's own conditional velocity.
        low: first time of the interval.
        high: last time of the interval.
        velocity: w, what guidance is added to.
    Cost: 2 network evaluations without gradient, and those of `velocity`.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Section
        4.2 and Appendix B.1, the guidance with kappa.
    Differs: time reversed with respect to the paper; any sample may be without condition, where the released code drops
        labels of samples with t = s only; the map's own velocities see the dropout mask of the prediction, where the
        release evaluates them without dropout.
    """

    omega: float = 1.0
    kappa: float = 0.5
    low: float = 0.0
    high: float = 1.0
    velocity: VelocitySource = Conditional()

    @property
    def needs_path(self) -> bool:
        """Whether what guidance is added to does."""
        return needs_path(self.velocity)

    def __post_init__(self) -> None:
        if self.kappa == 1 or not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"guidance needs kappa != 1 and 0 <= low <= high <= 1; got {self.kappa}, {self.low} and {self.high}."
            )

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The guided velocity at (x, s)."""
        w = self.velocity(model, pair, x, w, s)
        null = model.null_condition(len(x))
        if pair.cond is None or null is None:
            return w
        with stop_gradient():
            mine = model.velocity(x, s, pair.cond)
        with stop_gradient():  # the same dropout mask
            free = model.velocity(x, s, null)
        guided = self.omega * w + self.kappa * mine + (1 - self.omega - self.kappa) * free
        here = ~same_condition(pair.cond, null) & (s >= self.low) & (s <= self.high)
        return torch.where(expand_time(here, x), guided, w)
