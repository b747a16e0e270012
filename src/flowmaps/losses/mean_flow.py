"""MeanFlow: the Eulerian identity with the conditional velocity."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.calculus import JVP, Exact, stop_gradient, stopped_derivative
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square, Stabiliser, Unchanged, ramp
from ..core.report import report
from ..core.shapes import expand_time
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching

__all__ = ["MeanFlow"]


@dataclass(frozen=True)
class MeanFlow:
    """Regress the mean velocity on what the Eulerian identity makes of the conditional velocity.

    E |u_{s,t}(I_s) - sg [w + r (t - s) (d_s u_{s,t} + grad u_{s,t} w)]|^2, with w = dI_s/ds, or what `velocity` makes
    of it, and r = 1 after the warm-up; for t = s this is flow matching.

    Args:
        diagonal: share of the batch with t = s.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: w; Guided folds guidance in, PlugIn lowers its variance, Teacher distils.
        stabiliser: what is done to target minus prediction off the diagonal.
        warmup: images over which r rises from 0 to 1.
        distance: between prediction and target.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: on the diagonal 1 evaluation with gradient; off it 1 with gradient and 1 derivative without; and those of
        `velocity`.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Eq. (9)
        and Algorithm 1.
    Differs: time reversed with respect to the paper; the derivative is taken only where t != s, and under no graph;
        stabiliser and warm-up, off by default, are later additions of others. As published, the offset is that of the
        paper's sum, 0.01 over 4096 latent dimensions, and t = s, there the noisier of two draws, has their law's mean
        and deviation.
    Published: weighting.name=adaptive_power weighting.power=1.0 weighting.offset=2.4e-6 times.name=logit_normal_pair
        times.mean=0.4 times.std=1.0 diagonal_times.name=logit_normal diagonal_times.mean=-0.16 diagonal_times.std=0.83
    """

    diagonal: float = 0.75
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    stabiliser: Stabiliser = Unchanged()
    warmup: int = 0
    distance: Distance = Square()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
        pair = told(self.velocity, model, pair, generator)
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: flow_matching(
                model,
                on,
                self.interpolant,
                self.diagonal_times,
                self.weighting,
                generator,
                self.velocity,
                self.distance,
            ),
            lambda off: self._off(model, off, step, generator),
        )

    def _off(self, model: FlowMap, off: Pair, step: int, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator, step=step)
        x, w = self.interpolant.draw(off, s, generator)
        w = self.velocity(model, off, x, w, s)
        error = self.distance(
            *eulerian(model, x, w, s, t, off.cond, self.jvp, self.stabiliser, ramp(step, self.warmup))
        )
        report("mean_flow", error)
        return self.weighting(error, s, t)


def eulerian(
    model: FlowMap, x: Tensor, w: Tensor, s: Tensor, t: Tensor, cond: Any, jvp: JVP,
    stabiliser: Stabiliser = Unchanged(), rate: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The mean velocity u at x, and its target, what the Eulerian identity makes of a velocity w there: [B, *] each.

    The target is u + stabiliser(w + rate (t - s) (d_s u + grad u w) - u), stopped.
    """
    u, du = stopped_derivative(lambda x, s, t: model.mean_velocity(x, s, t, cond), x, s, t, dx=w, ds=1.0, jvp=jvp)
    with stop_gradient():
        return u, u + stabiliser(w + rate * expand_time(t - s, x) * du - u)
