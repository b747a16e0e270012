"""An adaptive Runge-Kutta pair, with a step size of its own for every sample."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.shapes import expand_time, fill_time, square_error
from ._dormand_prince import LEAST, Control, Progress, complaint, interpolated, walk

__all__ = ["DormandPrince"]


@dataclass(frozen=True)
class DormandPrince:
    """Order 5 with an error estimate of order 4: as many steps from s to t as the tolerance asks for.

    A step is accepted if its error, the root mean square of e / (absolute + relative max(|x|, |x_new|)) over the
    dimensions of a sample, is at most 1. The next is h times 0.9 err^-0.17 err_last^0.04 long, between h / 5 and 10 h.
    Every sample has its own steps and does not depend on the others; finished ones leave the batch when they are half
    of it. The last slope of a step is the first of the next, also from call to call.

    Args:
        relative: tolerance of a step's error, relative to the state.
        absolute: tolerance in units of the state; infinite to take one step per call.
        steps: most steps of one call, accepted or not; more are an error.
    Cost: 6 network evaluations per step and 2 before the first; the state that is handed on counts them in
        `evaluations`.
    Source: Dormand & Prince, A family of embedded Runge-Kutta formulae, 1980; the control of steps: Hairer, Nørsett &
        Wanner, Solving ordinary differential equations I, 1993, Section II.4, and their code DOPRI5; dense output:
        Shampine, Some practical Runge-Kutta formulas, 1986.
    """

    relative: float = 1e-5
    absolute: float = 1e-5
    steps: int = 1000

    order = 5

    def __post_init__(self) -> None:
        if self.relative < 0 or self.absolute <= 0 or self.steps < 1:
            raise ValueError(
                "relative must be at least 0, absolute > 0 and steps at least 1; got "
                f"{self.relative}, {self.absolute} and {self.steps}."
            )

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Progress | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, Progress]:  # fmt: skip
        """From s to t.

        Raises:
            RuntimeError: if a sample needs more steps than allowed, or its state or velocity is not finite.
        """
        state = walk(model, self._begin(model, x, s, t, cond, state), s, t, cond, self._control)
        return state.x, state

    def trajectory(
        self, model: FlowMap, x: Tensor, times: Tensor, *, cond: Any = None
    ) -> tuple[Tensor, Progress]:  # fmt: skip
        """States at given times, from one solve whose steps do not know of them; order 4 between its steps.

        Args:
            model: the flow map.
            x: states at times[0] [B, *].
            times: in order, up or down, [T] or one row per time [T, B].
            cond: condition, batch first.
        Returns:
            States [T, B, *], and what the last call of the sampler would hand on.
        """
        grid = torch.stack([fill_time(t, x) for t in times])
        out = x.expand(len(grid), *x.shape).clone()

        def record(rows: Tensor, s: Tensor, end: Tensor, h: Tensor, x: Tensor, slopes: Tensor) -> None:
            wanted, way = grid[:, rows], h.sign()
            i, j = torch.nonzero(((wanted - s) * way > 0) & ((wanted - end) * way <= 0), as_tuple=True)
            share = (wanted[i, j] - s[j]) / h[j]
            out[i, rows[j]] = interpolated(x[j], h[j], slopes[:, j], share)

        start = self._begin(model, x, grid[0], grid[-1], cond, None)
        return out, walk(model, start, grid[0], grid[-1], cond, self._control, record)

    @property
    def _control(self) -> Control:
        return Control(self.relative, self.absolute, self.steps)

    def _begin(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Any, state: Progress | None
    ) -> Progress:  # fmt: skip
        if state is not None and state.x is x:
            return state
        slope = model.velocity(x, s, cond)
        if state is not None:  # the state has been moved since
            return replace(state, x=x, slope=slope, evaluations=state.evaluations + 1)
        error, one = torch.full_like(s, LEAST), torch.ones_like(s, dtype=torch.long)
        if math.isinf(self.absolute):
            return Progress(x, slope, torch.full_like(s, math.inf), error, one)
        scale, nothing = self.absolute + self.relative * x.abs(), torch.zeros_like(x)
        state_size, speed = (square_error(v / scale, nothing).sqrt() for v in (x, slope))
        small = (state_size < 1e-5) | (speed < 1e-5)
        first = torch.where(small, 1e-6, 0.01 * state_size / speed).minimum((t - s).abs()).clamp_min(1e-12)
        h = first.copysign(t - s).to(s.dtype)
        ahead = model.velocity(x + expand_time(h, x).to(x.dtype) * slope, s + h, cond)
        bend = square_error(ahead / scale, slope / scale).sqrt() / first
        size = torch.minimum(100 * first, (0.01 / torch.maximum(speed, bend).clamp_min(1e-15)) ** 0.2)
        lost = ~size.isfinite()
        if bool(lost.any()):
            rows = torch.arange(len(x), device=x.device)
            raise RuntimeError(complaint(lost, rows, s, "have a finite state and velocity to begin with"))
        return Progress(x, slope, size.detach().to(s.dtype), error, 2 * one)
