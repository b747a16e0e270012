"""The solver behind reference maps."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.shapes import expand_time


@dataclass(frozen=True)
class Extrapolated:
    """Midpoint rules of 2, 4, ..., 2 k substeps, extrapolated to step zero: order 2 k.

    Cost: k (k + 1) + 1 network evaluations per step.
    Source: Gragg, On extrapolation algorithms for ordinary initial value problems, 1965; Hairer, Nørsett & Wanner,
        Solving ordinary differential equations I, 1993, Section II.9.
    """

    columns: int = 4

    @property
    def order(self) -> int:
        return 2 * self.columns

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step."""
        start = model.velocity(x, s, cond)
        row: list[Tensor] = []
        for j in range(1, self.columns + 1):
            n = 2 * j
            h = (t - s) / n
            before, now = x, x + expand_time(h, x) * start
            for i in range(1, n):
                before, now = now, before + 2 * expand_time(h, x) * model.velocity(now, s + i * h, cond)
            new = [now]  # Aitken-Neville in the square of the step
            for i, old in enumerate(row):
                new.append(new[-1] + (new[-1] - old) / ((n / (n - 2 * (i + 1))) ** 2 - 1))
            row = new
        return row[-1], None
