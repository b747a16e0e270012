"""Decoupled MeanFlow, the loss: every sample matches the flow and obeys MeanFlow's identity."""

from dataclasses import dataclass

from torch import Tensor

from ..core.calculus import JVP, Exact
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import square_error
from ..core.times import LogitNormal, LogitNormalPair, PairLaw, TimeLaw
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from .flow_matching import flow_matching
from .mean_flow import eulerian

__all__ = ["DecoupledMeanFlow"]


@dataclass(frozen=True)
class DecoupledMeanFlow:
    """Flow matching and MeanFlow on every sample, at times of their own.

    1/2 E |b_r(I_r) - w_r|^2 + 1/2 E |u_{s,t}(I_s) - sg [w_s + (t - s) (d_s u_{s,t} + grad u_{s,t} w_s)]|^2, with
    w = dI/dt, or what `velocity` makes of it.

    Args:
        interpolant: the path.
        times: law of (s, t).
        diagonal_times: law of r.
        velocity: w; Guided(kappa=0.6, low=0.3) is the paper's model guidance, Teacher its distillation.
        weighting: what either error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 2 evaluations with gradient, 1 derivative without, and those of `velocity` twice.
    Source: Lee, Yu & Shin, Decoupled MeanFlow: turning flow models into flow maps for accelerated sampling, 2025,
        arXiv:2510.24474, the training loss, and the released code (loss.py; the laws of times in train_dmf.py).
    Differs: time reversed with respect to the paper; both terms share the noise of a sample; the paper's error,
        ln(e exp(-v) + 0.01) + v with a learned v, equals ln(e + 0.01 exp(v)), which has the gradient of AdaptivePower
        with offset 0.01 exp(v), but no learned v, which in that formula only ever falls; the network whose late blocks
        alone see t, and its start from a flow, are not part of it.
    Published: weighting.name=adaptive_power weighting.power=1.0 weighting.offset=0.01
    """

    interpolant: Interpolant = Linear()
    times: PairLaw = LogitNormalPair((-0.4, 1.2))
    diagonal_times: TimeLaw = LogitNormal()
    velocity: VelocitySource = Conditional()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        pair = told(self.velocity, model, pair, generator)
        on = flow_matching(model, pair, self.interpolant, self.diagonal_times, self.weighting, generator, self.velocity)
        s, t = self.times(len(pair), pair.x0, generator, step=step)
        x, w = self.interpolant.draw(pair, s, generator)
        w = self.velocity(model, pair, x, w, s)
        error = square_error(*eulerian(model, x, w, s, t, pair.cond, self.jvp))
        report("mean_flow", error)
        return (on + self.weighting(error, s, t)) / 2
