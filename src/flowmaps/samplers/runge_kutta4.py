"""The classical Runge-Kutta method."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.shapes import expand_time

__all__ = ["RungeKutta4"]


@dataclass(frozen=True)
class RungeKutta4:
    """Four slopes per step, combined 1:2:2:1.

    Cost: 4 network evaluations per step.
    Source: Kutta, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen, 1901.
    """

    order = 4

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step of order 4."""
        h, middle = expand_time(t - s, x), (s + t) / 2
        k1 = model.velocity(x, s, cond)
        k2 = model.velocity(x + h / 2 * k1, middle, cond)
        k3 = model.velocity(x + h / 2 * k2, middle, cond)
        k4 = model.velocity(x + h * k3, t, cond)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None
