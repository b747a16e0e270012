"""Flow matching: the velocity by regression."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted

__all__ = ["FlowMatching"]


@dataclass(frozen=True)
class FlowMatching:
    """Regress the diagonal of the map on the conditional velocity.

    E |b_t(I_t) - dI_t/dt|^2, whose minimum is the marginal velocity.

    Args:
        interpolant: the path.
        times: law of t.
        velocity: what is regressed on; conditional for flow matching itself.
        distance: between the diagonal and that velocity; only the square has the marginal velocity as its minimum.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, and those of `velocity`.
    Source: Lipman, Chen, Ben-Hamu, Nickel & Le, Flow matching for generative modeling, 2022, arXiv:2210.02747, Eq. (9);
        Albergo & Vanden-Eijnden, Building normalizing flows with stochastic interpolants, 2022, arXiv:2209.15571, the
        quadratic objective for the velocity.
    """

    learns_map: ClassVar[bool] = False  # the diagonal only: sampling takes solver steps

    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        pair = told(self.velocity, model, pair, generator)
        return flow_matching(
            model, pair, self.interpolant, self.times, self.weighting, generator, self.velocity, self.distance
        )


def flow_matching(
    model: FlowMap, pair: Pair, interpolant: Interpolant, times: TimeLaw, weighting: Weighting, generator: Random,
    velocity: VelocitySource = Conditional(), distance: Distance = Square(),
) -> Tensor:  # fmt: skip
    """The diagonal term of every loss that learns a map without a teacher: FlowMatching as a function, [B]."""
    t = times(len(pair), pair.x0, generator)
    x, w = interpolant.draw(pair, t, generator)
    v = velocity(model, pair, x, w, t)
    error = distance(model.velocity(x, t, pair.cond), v)
    report("flow_matching", error)
    return times.reweighted(t, weighting(error, t, t))
