"""SoFlow: the Eulerian identity as a difference that becomes shorter."""

from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import square_error
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .alpha_flow import stepped_target
from .flow_matching import flow_matching

__all__ = ["SoFlow"]


@dataclass(frozen=True)
class SoFlow:
    """Arrive where one would from a little further along the path.

    rho E |Q|^2 with Q = [X_{s,t}(I_s) - sg X_{l,t}(I_s + (l - s) w)] / (l - s), l = s + rho (t - s)
    and w = dI_s/ds, or what `velocity` makes of it. In mean velocities Q = (u_{s,t} - sg [rho w + (1 - rho) u_{l,t}])
    / rho, AlphaFlow with a = rho: the schedule differs.

    rho falls from `first` to `last` exponentially over the first `images`.

    Args:
        diagonal: share of the batch with t = s.
        first: rho at the start.
        last: rho in the end, > 0.
        images: over which it falls; 0 starts with the last.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: w; Guided folds guidance in.
        weighting: what |Q|^2 of a sample counts.
    Cost: on the diagonal 1 evaluation with gradient; off it 1 with gradient and 1 without; and those of `velocity`.
    Source: Luo, Yuan & Liu, SoFlow: solution flow models for one-step generative modeling, 2025, arXiv:2512.15657, the
        solution consistency loss.
    Differs: time reversed with respect to the paper; any path, of which the straight step leaves a curved one by
        O((l - s)^2), most where variance explodes; the loss is a square with the gradient of the release's inner
        product; fall of rho and share of the diagonal are as reported, not checked on the released code, and the fall's
        length is ours; no guidance that fades towards noise; the paper's laws of times are not known to us.
    Published: weighting.name=adaptive_power weighting.power=0.5
    """

    diagonal: float = 0.75
    first: float = 0.1
    last: float = 0.002
    images: int = 50_000_000
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        if not 0 < self.last <= self.first <= 1:
            raise ValueError(f"steps must satisfy 0 < last <= first <= 1; got {self.last} and {self.first}.")

    def ratio(self, step: int) -> float:
        """The share rho after so many images."""
        done = min(1.0, step / self.images) if self.images else 1.0
        return self.first * (self.last / self.first) ** done

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension times rho off the diagonal."""
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
        rho = self.ratio(step)
        target = stepped_target(model, x, w, s, t, off.cond, rho)
        error = square_error(model.mean_velocity(x, s, t, off.cond), target) / rho**2
        report("solution", error)
        return rho * self.weighting(error, s, t)
