"""Adams-Bashforth methods on any grid."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.sampling import Heun, RungeKutta4
from ..core.shapes import step_size
from ._multistep import History, mean_weights, mixed, remember

__all__ = ["AdamsBashforth"]


@dataclass(frozen=True)
class AdamsBashforth:
    """The last slopes, extrapolated: x <- x + int_s^t p, where p is the polynomial through the last `order` slopes.

    The weights are those of the grid as it is, of equal steps or not. The first order - 1 steps, for which there are
    too few slopes, are Runge-Kutta steps.

    Args:
        order: 2, 3 or 4.
    Cost: 1 network evaluation per step; 2 in the first step of order 2, 4 in the first order - 1 steps of higher ones.
    Source: Hairer, Nørsett & Wanner, Solving ordinary differential equations I, 1993, Section III.1, Eq. (1.5), and
        Section III.5 for variable steps.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (2, 3, 4):
            raise ValueError(f"order must be 2, 3 or 4; got {self.order}. Order 1 is euler.")

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: History | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, History]:  # fmt: skip
        """One step."""
        slope = model.velocity(x, s, cond)
        state = remember(state, s, slope, self.order)
        if len(state) < self.order:
            start = Heun() if self.order == 2 else RungeKutta4()
            return start.from_slope(model, x, s, t, slope, cond), state
        return x + step_size(s, t, x) * mixed(state.values, mean_weights(state.nodes, s, t)), state
