"""Self-corrected flow distillation: consistency forwards and backwards in time, and with one's own samples."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.checks import check_share
from ..core.critic import SampleCritic, check_judges
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.regression import Distance, Square, ramp
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.target import Average, Target
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["SelfCorrected"]


@dataclass(frozen=True)
class SelfCorrected:
    """Agree with oneself a step further and a step back along a teacher, and on the way to one's own samples.

    With f_t = X_{t,1}, b the teacher's velocity, steps h ~ U(0, min(1 - t, reach)) and k ~ U(0, min(t, reach)):
    d(f_t(I_t), sg f_{t+h}(I_t + h b)) + reverse d(f_t(I_t), sg f_{t-k}(I_t - k b)) + reflow |f_t(J_t) - sg y|^2, with
    y = f_0(x0) and J_t on the path from x0 to it; where 1 - (t + h) < truncation the first target is the datum x1.

    Only arrivals at the data are learned: use the restart sampler for more than one step. The last term asks for the
    straight path, so that the truth is stationary only for a teacher whose trajectories are straight, as after reflow.

    Args:
        teacher: the flow map whose velocity is followed.
        reach: longest step.
        truncation: time before the data at which the datum itself becomes the target; 0 is never.
        reverse: weight of the step back.
        reflow: weight of the agreement on one's own samples.
        warmup: images over which the weights of both rise.
        critic: judges the samples y.
        interpolant: the path.
        times: law of t.
        target: weights that make the targets of the steps.
        distance: of the steps.
        weighting: what the error of a sample counts.
    Cost: 2 evaluations with gradient, 3 without, 1 of the teacher; with a critic y carries gradient too, and its own.
    Source: Dao, Phung, Dao, Metaxas & Tran, Self-corrected flow distillation for consistent one-step and few-step
        text-to-image generation, 2024, arXiv:2412.16906, the released training code (distill/flows.py).
    Differs: weights rise gradually where the release switches them on, after 1000 steps of 32 images; the critic is
        small; as published, steps are Euler's and the truncation brings in the mean of the data given the state.
    Published: reach=0.1 truncation=0.4 warmup=32_000 critic.name=discriminator critic.weight=0.1 target.name=average
        target.decay=0.9 distance.name=pseudo_huber distance.scale=0.01 distance.each=true
    """

    teacher: FlowMap
    reach: float = 0.2
    truncation: float = 0.5
    reverse: float = 0.1
    reflow: float = 0.1
    warmup: int = 0
    critic: SampleCritic | None = None
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    target: Target = field(default_factory=lambda: Average(0.95))
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_share("reach", self.reach)
        check_share("truncation", self.truncation)
        check_judges(self.critic)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        cond, t = pair.cond, self.times(len(pair), pair.x0, generator)
        x, _ = self.interpolant.draw(pair, t, generator)
        one, steady = torch.ones_like(t), self.target(model)
        forth = uniform((len(x),), x, generator) * (1 - t).clamp_max(self.reach)
        back = uniform((len(x),), x, generator) * t.clamp_max(self.reach)
        with stop_gradient():
            v = self.teacher.velocity(x, t, cond)
            further = steady(x + expand_time(forth, x).to(x.dtype) * v, t + forth, one, cond)
            near = expand_time(1 - (t + forth) < self.truncation, x)
            further = further if pair.x1 is None else torch.where(near, pair.x1.to(x.dtype), further)
            earlier = steady(x - expand_time(back, x).to(x.dtype) * v, t - back, one, cond)
        here = model(x, t, one, cond)
        start = self.interpolant.start(pair.x0)
        if self.critic is None:
            with stop_gradient():
                sample = model(start, torch.zeros_like(t), one, cond)
        else:
            sample = model(start, torch.zeros_like(t), one, cond)
        own, _ = self.interpolant.draw(Pair(pair.x0, sample.detach()), t, generator)
        forwards, backwards = self.distance(here, further), self.distance(here, earlier)
        agreement = square_error(model(own, t, one, cond), sample.detach())
        for name, error in (("consistency", forwards), ("reverse", backwards), ("reflow", agreement)):
            report(name, error)
        weight = ramp(step, self.warmup)
        error = forwards + weight * (self.reverse * backwards + self.reflow * agreement)
        loss = self.weighting(error, t, one)
        return loss if self.critic is None else loss + self.critic(sample, pair, generator=generator)
