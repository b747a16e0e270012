"""Flow-anchored consistency: MeanFlow's identity towards the data, and flow matching at the same point."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square, Stabiliser, Unchanged
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from .mean_flow import eulerian

__all__ = ["FACM"]


@dataclass(frozen=True)
class FACM:
    """Learn to jump to the data, anchored at every point by the velocity there.

    cos(pi s / 2) E |u_{s,1}(I_s) - sg [u_{s,1} + (1 - s^power) T(g)]|^2 + E d(b_s(I_s), w), with g = w - u_{s,1} +
    (1 - s) (d_s u_{s,1} + grad u_{s,1} w), T the stabiliser, d the distance and w = dI_s/ds, or what `velocity` makes
    of it.

    Only t = 1 and t = s are learned: sample in one jump, or in several with a sampler that returns to earlier times.

    Args:
        power: how early the correction fades: it is taken times 1 - s^power.
        interpolant: the path.
        times: law of s.
        velocity: w; Teacher distils, Guided folds guidance in.
        stabiliser: T; Clamped, which is published, biases the fixed point unless w is a function of I_s.
        distance: d.
        weighting: what the error of the jump counts. The anchor is not weighted.
        jvp: how the derivative is taken.
    Cost: 2 evaluations with gradient, 1 derivative without, and those of `velocity`.
    Source: Peng & others, Flow-anchored consistency models, 2025, arXiv:2507.03738, and the released code (losses.py).
    Differs: the anchor is the diagonal of the map, where the release gives the flow a time code of its own, 2 - s.
    Published: times.name=log_normal_angle times.mean=-0.8 times.std=1.6 stabiliser.name=clamped stabiliser.limit=1.0
        distance.name=square_and_cosine distance.weight=1.0 weighting.name=adaptive_power weighting.power=0.5
        weighting.offset=1e-3
    """

    power: float = 0.5
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    stabiliser: Stabiliser = Unchanged()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power must be > 0; got {self.power}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean squares per dimension by default."""
        pair = told(self.velocity, model, pair, generator)
        s = self.times(len(pair), pair.x0, generator)
        one = torch.ones_like(s)
        x, w = self.interpolant.draw(pair, s, generator)
        w = self.velocity(model, pair, x, w, s)
        fade = expand_time(1 - s**self.power, x)
        u, target = eulerian(model, x, w, s, one, pair.cond, self.jvp, lambda g: fade.to(g.dtype) * self.stabiliser(g))
        jump = square_error(u, target)
        anchor = self.distance(model.velocity(x, s, pair.cond), w)
        report("jump", jump)
        report("flow_matching", anchor)
        return torch.cos(math.pi / 2 * s) * self.weighting(jump, s, one) + anchor
