"""The midpoint method."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.shapes import step_size

__all__ = ["Midpoint"]


@dataclass(frozen=True)
class Midpoint:
    """The slope half-way, reached by half an Euler step: x <- x + h b_{s + h/2}(x + h/2 b_s(x)), h = t - s.

    Cost: 2 network evaluations per step.
    Source: Runge, Über die numerische Auflösung von Differentialgleichungen, 1895; Hairer, Nørsett & Wanner, Solving
        ordinary differential equations I, 1993, Section II.1, Eq. (1.3).
    """

    order = 2

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step of order 2."""
        h = step_size(s, t, x)
        half = x + h / 2 * model.velocity(x, s, cond)
        return x + h * model.velocity(half, (s + t) / 2, cond), None
