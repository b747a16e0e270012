"""AlphaFlow: from trajectory flow matching to MeanFlow."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.calculus import JVP, Exact, stop_gradient
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching
from .mean_flow import eulerian

__all__ = ["AlphaFlow"]


@dataclass(frozen=True)
class AlphaFlow:
    """Step a share a of the way with the conditional velocity, jump the rest; a falls from 1 to 0 in training.

    1/a E |u_{s,t}(I_s) - sg [a w + (1 - a) u_{m,t}(I_s + (m - s) w)]|^2, with m = s + a (t - s) and w = dI_s/ds, or
    what `velocity` makes of it. a = 1 is flow matching at every t, a = 1/2 a midpoint, and a -> 0 has the gradient of
    MeanFlow, which takes over at a = 0.

    a = 1 / (1 + exp(slope p)), with p from -1/2 to 1/2 between the images `begin` and `end`; within 0.005 of 0 or 1 it
    is 0 or 1.

    Args:
        diagonal: share of the batch with t = s.
        begin: images after which a begins to fall.
        end: images at which it has fallen; 0 is MeanFlow from the start.
        slope: of the sigmoid.
        limit: largest absolute entry of the target for a > 0; 0 sets none.
        rescale: whether the weighting sees the error over a^2, which has the size of MeanFlow's at every a, or else the
            error itself as in the release; the loss is a times its result.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: w; Guided folds guidance in.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken at a = 0.
    Cost: on the diagonal 1 evaluation with gradient; off it 1 with gradient, and 1 without for 0 < a < 1 or 1
        derivative for a = 0; and those of `velocity`.
    Source: Zhang, Siarohin, Menapace & others, AlphaFlow: understanding and improving MeanFlow models, 2025,
        arXiv:2510.20771, the alpha-Flow loss, and the released code (src/training/loss.py).
    Differs: time reversed with respect to the paper; the schedule counts images, its default being the release's 400k
        steps of 256; without rescaling, as published, the offset outweighs the error where a is small.
    Published: weighting.name=adaptive_power weighting.power=1.0 weighting.offset=1e-3 rescale=false limit=4.0
    """

    diagonal: float = 0.5
    begin: int = 0
    end: int = 102_400_000
    slope: float = 25.0
    limit: float = 0.0
    rescale: bool = True
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        if not 0 <= self.begin <= self.end:
            raise ValueError(f"begin and end must satisfy 0 <= begin <= end; got {self.begin} and {self.end}.")

    def ratio(self, step: int) -> float:
        """The share a after so many images."""
        if self.begin == self.end:
            return float(step < self.end)
        p = min(0.5, max(-0.5, (step - self.begin) / (self.end - self.begin) - 0.5))
        a = 1 / (1 + math.e ** (self.slope * p))
        return 0.0 if a < 0.005 else 1.0 if a > 0.995 else a

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension over a."""
        pair = told(self.velocity, model, pair, generator)
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: flow_matching(
                model, on, self.interpolant, self.diagonal_times, self.weighting, generator, self.velocity
            ),
            lambda off: self._off(model, off, step, generator),
        )

    def _off(self, model: FlowMap, off: Pair, step: int, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator, step=step)
        x, w = self.interpolant.draw(off, s, generator)
        w = self.velocity(model, off, x, w, s)
        a = self.ratio(step)
        if a == 0:
            u, target = eulerian(model, x, w, s, t, off.cond, self.jvp)
        else:
            target = stepped_target(model, x, w, s, t, off.cond, a)
            target = target.clamp(-self.limit, self.limit) if self.limit else target
            u = model.mean_velocity(x, s, t, off.cond)
        error = square_error(u, target)
        report("alpha_flow", error)
        if a == 0:
            return self.weighting(error, s, t)
        return a * self.weighting(error / a**2 if self.rescale else error, s, t)


def stepped_target(model: FlowMap, x: Tensor, w: Tensor, s: Tensor, t: Tensor, cond: Any, a: float) -> Tensor:
    """Mean velocity of a step of a (t - s) with velocity w and the map's jump from there to t, stopped, [B, *]."""
    if a == 1:
        return w
    m = s + a * (t - s)
    with stop_gradient():
        y = x + expand_time(m - s, x) * w
        return a * w + (1 - a) * model.mean_velocity(y, m, t, cond)
