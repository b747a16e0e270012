"""Direct flow map matching."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, d_dt, derivative_along
from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.report import report
from ..core.shapes import square_error
from ..core.times import PairLaw, UniformPair
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["FMM"]


@dataclass(frozen=True)
class FMM:
    """Go back in time and forth again: the velocity of arrival is that of the path, and one arrives where one was.

    With y = X_{t,s}(I_t), for s before and after t: E |d_t X_{s,t}(y) - dI_t/dt|^2 + |X_{s,t}(y) - I_t|^2, where y is
    held in the derivative. Route "eulerian" takes -grad X_{s,t}(y) d_t X_{t,s}(I_t), the derivative of the inverse in
    its departure time, for the first d_t X_{s,t}(y); both are the velocity at I_t for a true map.

    No teacher and no stopped gradient: the minimum over all maps is the flow map.

    Args:
        route: "lagrangian" or "eulerian".
        inverse: what the second term counts.
        interpolant: the path.
        times: law of the two times, of which either may come first, by the toss of a coin.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 evaluation and 1 derivative with gradient ("lagrangian"), or 2 derivatives with gradient ("eulerian").
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, the direct objective; the Eulerian route is ours, by
        differentiating X_{s,t}(X_{t,s}(y)) = y.
    Differs: gradient flows through y in both terms.
    """

    route: str = "lagrangian"
    inverse: float = 1.0
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_choice("route", self.route, ("lagrangian", "eulerian"))

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        low, high = self.times(len(pair), pair.x0, generator, step=step)
        swap = uniform((len(pair),), pair.x0, generator) < 0.5
        s, t = torch.where(swap, high, low), torch.where(swap, low, high)
        x, w = self.interpolant.draw(pair, t, generator)
        if self.route == "lagrangian":
            back, arrival = d_dt(model, model(x, t, s, pair.cond), s, t, pair.cond, self.jvp)
        else:
            carry = lambda x, s, t: model(x, s, t, pair.cond)  # noqa: E731
            y, dy = derivative_along(carry, x, t, s, ds=1.0, jvp=self.jvp)
            back, slope = derivative_along(carry, y, s, t, dx=dy, jvp=self.jvp)
            arrival = -slope
        error = square_error(arrival, w)
        report("arrival", error)
        inverse = square_error(back, x)
        report("inverse", inverse)
        return self.weighting(error + self.inverse * inverse, s, t)
