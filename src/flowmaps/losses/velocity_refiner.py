"""A small network that knows how the velocity changes over a short step."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.refiner import offset
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["VelocityRefiner"]


@dataclass(frozen=True)
class VelocityRefiner:
    """Regress the change of a teacher's velocity along its Euler step, for the sampler "flow_turbo".

    E |v + r_t([y, v]) - b_t(y)|^2 with v = b_s(I_s), y = I_s + (t - s) v and t - s uniform up to `longest`. The model r
    sees states with velocities beside them. Its network has twice the channels of the flow, which a run sees to, and
    may be small, in the paper one block of the teacher's 28. No samples can be drawn from it alone.

    Args:
        teacher: the flow map whose velocity is refined, with guidance if it will be sampled with it.
        longest: span t - s, at most.
        interpolant: the path.
        times: law of s.
        weighting: what the error of a sample counts.
    Cost: 2 evaluations of the teacher without gradient, and 1 of the refiner with gradient.
    Source: Zhao, Shi, Yu, Zhou & Lu, FlowTurbo: towards real-time flow-based image generation with velocity refiner,
        2024, arXiv:2409.18128, the velocity refiner; the span of 0.12 and the step are its released code's.
    Differs: a span for every sample, where the released code has one for the batch, and none beyond the data.
    """

    learns_map: ClassVar[bool] = False  # what it trains corrects velocities, and is no map
    refines: ClassVar[bool] = True

    teacher: FlowMap
    longest: float = 0.12
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if not 0 < self.longest <= 1:
            raise ValueError(f"longest must lie in (0, 1]; got {self.longest}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        s = self.times(len(pair), pair.x0, generator)
        t = (s + self.longest * uniform((len(pair),), pair.x0, generator)).clamp_max(1)
        x, _ = self.interpolant.draw(pair, s, generator)
        with stop_gradient():
            v = self.teacher.velocity(x, s, pair.cond)
            y = torch.addcmul(x, expand_time(t - s, x).to(x.dtype), v)
            change = self.teacher.velocity(y, t, pair.cond) - v
        error = square_error(offset(model, y, v, t, pair.cond), change)
        report("velocity_refiner", error)
        return self.times.reweighted(s, self.weighting(error, s, t))
