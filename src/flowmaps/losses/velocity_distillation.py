"""Marginal-data transport distillation: match the mean velocity on data, and distil it on one's own samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, derivative_along, stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.regression import Stabiliser, Unchanged
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["VelocityDistillation"]


@dataclass(frozen=True)
class VelocityDistillation:
    """The Eulerian identity of the map to the data, on paths from noise to data and to one's own samples.

    T(x) = b_s(x) + (1 - s) (d_s u_{s,1} + grad u_{s,1} b_s)(x), b the teacher's velocity. Velocity matching:
    |u_{s,1}(I_s) - sg T(I_s)|^2. Velocity distillation: |u - sg(u - [u_{s,1}(J_s) - T(J_s)])|^2 for u = u_{0,1}(x0),
    J_s on the path from fresh noise to the sample x0 + u: the map's own error there stands in for a difference of
    scores.

    Only arrivals at the data are learned: use the restart sampler for more than one step. The second term vanishes at
    the truth but does not pull u_{0,1} back to it: start from a trained map, or set `distillation` to 0 for a first
    part of the training.

    Args:
        teacher: the flow map whose velocity is distilled.
        matching: weight of velocity matching.
        distillation: weight of velocity distillation.
        interpolant: the path.
        times: law of s.
        stabiliser: what is done to the derivative.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 2 evaluations with gradient, 2 derivatives and 2 evaluations of the teacher.
    Source: Zhou, Yi, Fang & others, Few-step flow for 3D generation via marginal-data transport distillation, 2025,
        arXiv:2509.04406, Eq. (13), (17) and (18), Algorithm 1.
    Differs: time reversed with respect to the paper; as published are the released code's logit-normal s, normalised
        derivative and difference, there one-sided, of which the paper's text has none; guidance is the teacher's
        business.
    Published: times.name=logit_normal times.mean=-1.0 times.std=1.0 stabiliser.name=normalised stabiliser.offset=0.1
        jvp.name=central jvp.step=0.01
    """

    teacher: FlowMap
    matching: float = 1.0
    distillation: float = 1.0
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    stabiliser: Stabiliser = Unchanged()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    @property
    def needs_gaussian(self) -> bool:
        """With paths from fresh noise to samples."""
        return self.distillation > 0

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        s = self.times(len(pair), pair.x0, generator)
        one = torch.ones_like(s)
        x, _ = self.interpolant.draw(pair, s, generator)
        with stop_gradient():
            target = self._residual(model, x, s, pair)[1]
        matching = square_error(model.mean_velocity(x, s, one, pair.cond), target)
        start = self.interpolant.start(pair.x0)
        u = model.mean_velocity(start, torch.zeros_like(s), one, pair.cond)
        noise = normal(start.shape, start, generator).to(start.dtype)
        y, _ = self.interpolant.draw(Pair(noise, (start + u).detach()), s, generator)
        with stop_gradient():
            mine, target = self._residual(model, y, s, pair)
        distillation = square_error(u, u.detach() - (mine - target))
        report("velocity_matching", matching)
        report("velocity_distillation", distillation)
        return self.weighting(self.matching * matching + self.distillation * distillation, s, one)

    def _residual(self, model: FlowMap, x: Tensor, s: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        """u_{s,1}(x), and what the identity makes of the teacher's velocity."""
        mean_velocity = lambda x, s, t: model.mean_velocity(x, s, t, pair.cond)  # noqa: E731
        v = self.teacher.velocity(x, s, pair.cond)
        u, du = derivative_along(mean_velocity, x, s, torch.ones_like(s), dx=v, ds=1.0, jvp=self.jvp)
        return u, v + expand_time(1 - s, x) * self.stabiliser(du)
