"""MeanFlow: the Eulerian identity with the conditional velocity."""

from dataclasses import dataclass

from torch import Tensor

from ..core.calculus import JVP, Exact, derivative_along, stop_gradient
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import FlowMatching

__all__ = ["MeanFlow"]


@dataclass(frozen=True)
class MeanFlow:
    """Regress the mean velocity on what the Eulerian identity makes of the conditional velocity.

    E |u_{s,t}(I_s) - sg [w + (t - s) (d_s u_{s,t} + grad u_{s,t} w)]|^2, with w = dI_s/ds; for t = s this
    is flow matching.

    Args:
        diagonal: share of the batch with t = s.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        weighting: what the error of a sample counts; AdaptivePower is the paper's.
        jvp: how the derivative is taken.
    Cost: on the diagonal 1 evaluation with gradient; off it 1 with gradient and 1 derivative without.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Eq. (9)
        and Algorithm 1.
    Differs: time reversed with respect to the paper; the derivative is taken only where t != s, and under no graph.
    """

    diagonal: float = 0.75
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        matching = FlowMatching(self.interpolant, self.diagonal_times, self.weighting)
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: matching(model, on, generator=generator),
            lambda off: self._off(model, off, generator),
        )

    def _off(self, model: FlowMap, off: Pair, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator)
        x, w = self.interpolant.draw(off, s, generator)
        with stop_gradient():
            mean_velocity = lambda x, s, t: model.mean_velocity(x, s, t, off.cond)  # noqa: E731
            _, du = derivative_along(mean_velocity, x, s, t, dx=w, ds=1.0, jvp=self.jvp)
            target = w + expand_time(t - s, x) * du
        error = square_error(model.mean_velocity(x, s, t, off.cond), target)
        report("mean_flow", error)
        return self.weighting(error, s, t)
