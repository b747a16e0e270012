"""Many steps at once, by Picard iteration."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random, Tape
from ..core.sampling import Euler
from ..core.types import Sampler, map_condition

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard:
    """All steps from s to t in parallel, again and again until the states of a window agree with the round before.

    x_{j+1} <- x_k + sum_{i=k}^{j} [step(x_i) - x_i] for j in the window of steps k, ..., k + window - 1, evaluated as
    one batch. Then k moves past the states that changed by at most the tolerance, and the one after them, whose value
    they have settled. At tolerance 0 the result is that of the steps one after the other. Each sample has its own
    window.

    Args:
        sampler: how a step is taken: a method without memory or noise.
        steps: equal steps of one call.
        window: how many are evaluated together, at most; left out, all.
        tolerance: root mean square change per dimension, in units of the state.
    Cost: window times the sampler's evaluations per round, in one batch; the state that is handed on counts the rounds
        of each sample so far [B], at most `steps` a call: so many evaluations follow each other, times the sampler's.
    Source: Shih, Belkhale, Ermon, Sadigh & Anari, Parallel sampling of diffusion models, 2023, arXiv:2305.16317,
        ParaDiGMS and its code.
    Differs: the tolerance is in units of the state, theirs of the noise of a step; windows of their own for all
        samples.
    """

    sampler: Sampler = Euler()
    steps: int = 16
    window: int | None = None
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tolerance < 0 or (self.window is not None and self.window < 1):
            raise ValueError(
                "steps and window must be at least 1 and tolerance at least 0; got "
                f"{self.steps}, {self.window} and {self.tolerance}."
            )

    @property
    def order(self) -> int | None:
        """That of the sampler, at tolerance 0 only."""
        return getattr(self.sampler, "order", None) if self.tolerance == 0 else None

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Tensor | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """From s to t.

        Raises:
            ValueError: if the sampler in it hands on a state.
            TapeError: if it draws.
        """
        every = torch.arange(self.steps + 1, device=x.device)
        offset = every[: min(self.window or self.steps, self.steps)]
        times = torch.lerp(s[:, None], t[:, None], every.to(s.dtype) / self.steps)
        path = x[:, None].expand(-1, self.steps + 1, *x.shape[1:]).clone()
        start = torch.zeros(len(x), dtype=torch.long, device=x.device)
        rounds = start.clone() if state is None else state.clone()
        rows = torch.arange(len(x), device=x.device)
        while len(rows) > 0:
            at = start[rows, None] + offset
            within = at < self.steps
            at = at.clamp_max(self.steps - 1)
            here, row = path[rows[:, None], at], rows[:, None].expand_as(at)
            delta = self._moves(model, here, times[row, at], times[row, at + 1], cond, rows)
            # Places beyond the last step repeat its state.
            new = here[:, :1] + (delta * _like(within, delta)).cumsum(1)
            change = (new - path[row, at + 1]).flatten(2).square().mean(2)
            settled = ((change <= self.tolerance**2) | ~within).long().cumprod(1).sum(1)
            later = every > at[:, -1:] + 1
            path[rows] = torch.where(_like(later, path), new[:, -1:], path[rows])
            path[row, at + 1] = new
            start[rows] += (settled + 1).clamp_max(len(offset))
            rounds[rows] += 1
            rows = rows[start[rows] < self.steps]
        return path[:, -1], rounds

    def _moves(self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Any, rows: Tensor) -> Tensor:
        """What a step adds to states [n, w, *] from times s to t [n, w], all in one batch."""

        def repeated(c: Tensor) -> Tensor:
            return c[rows].repeat_interleave(x.shape[1], 0)

        told, without = map_condition(repeated, cond), Tape([], [])  # from which a sampler that draws gets an error
        y, state = self.sampler(model, x.flatten(0, 1), s.flatten(), t.flatten(), cond=told, generator=without)
        if state is not None:
            raise ValueError(
                "picard takes steps at once, and its sampler must have no memory of those before; got "
                f"{type(self.sampler).__name__}. Use 'euler', 'midpoint', 'heun' or 'runge_kutta4'."
            )
        return y.reshape(x.shape) - x


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
