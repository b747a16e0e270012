"""Progressive distillation: half as many steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.report import report
from ..core.sampling import Jump, sample
from ..core.shapes import square_error
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import Unweighted

__all__ = ["ProgressiveDistillation"]


@dataclass(frozen=True)
class ProgressiveDistillation:
    """One step of the map does what two steps of the teacher do, on a grid of `steps` steps.

    E c |X_{s,t}(I_s) - sg (X^T_{m,t} o X^T_{s,m})(I_s)|^2, s = k / N, t = (k + 1) / N, m between; c turns the error
    into the larger of those of data and noise: c = max(alpha_s, beta_s)^2 / (alpha_s beta_t - alpha_t beta_s)^2.

    This is one stage, from 2 N steps to N, and only jumps by 1 / N are learned: sample with N steps. The whole method
    is several runs, each with half the steps, with the last result as the teacher and as the start.

    Args:
        teacher: the flow map whose pairs of steps are followed.
        steps: N, the steps of the map; the teacher's are 2 N.
        sampler: the teacher's step: its jump, for the result of a stage before, or "euler" for a velocity.
        interpolant: the path.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, and 2 steps of the teacher's sampler.
    Source: Salimans & Ho, Progressive distillation for fast sampling of diffusion models, 2022, arXiv:2202.00512, the
        algorithm and its truncated weight on the signal-to-noise ratio.
    Differs: the grid is uniform on our clock, on any path; no cosine schedule; the network need not predict data; on
        the linear path an Euler step is the DDIM step, on others it is not.
    """

    teacher: FlowMap
    steps: int = 4
    sampler: Sampler = Jump()
    interpolant: Interpolant = Linear()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        k = (uniform((len(pair),), pair.x0, generator) * self.steps).floor()
        s, t = k / self.steps, (k + 1) / self.steps
        x, _ = self.interpolant.draw(pair, s, generator)
        with stop_gradient():
            grid = torch.stack([s, (s + t) / 2, t])
            target = sample(self.teacher, x, grid, sampler=self.sampler, cond=pair.cond, generator=generator)
        p = self.interpolant
        change = p.alpha(s) * p.beta(t) - p.alpha(t) * p.beta(s)
        scale = torch.maximum(p.alpha(s), p.beta(s)) / change
        error = scale.square() * square_error(model(x, s, t, pair.cond), target)
        report("progressive", error)
        return self.weighting(error, s, t)
