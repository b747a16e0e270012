"""Sampling to a tolerance: whole trajectories, each more accurate than the last, until two of them agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .flow_map import Counted, FlowMap
from .sampling import Jump, RungeKutta4, sample
from .shapes import square_error
from .types import Sampler, chosen


@dataclass(frozen=True)
class Adapted:
    """What tolerance sampling returns.

    Args:
        x: states at time 1 [B, *].
        evaluations: of the map, per sample [B].
        error: estimate of the error of x [B], root mean square per dimension, in float32 or better.
    """

    x: Tensor
    evaluations: Tensor
    error: Tensor


@dataclass(frozen=True)
class Rung:
    """One way of going from time 0 to 1, and what its distance d from the way before it says.

    Args:
        sampler: how a step is taken.
        steps: number of equal steps.
        accept: the result is taken if d <= accept.
        scale, power: its error is estimated as scale d^power.
    """

    sampler: Sampler
    steps: int
    accept: float = math.inf
    scale: float = 1.0
    power: float = 1.0

    def __str__(self) -> str:
        return f"{type(self.sampler).__name__} x {self.steps}"

    def climb(self, model: FlowMap, x: Tensor, cond: Any = None) -> tuple[Tensor, int]:
        """The state at time 1 [B, *] from that at time 0, and how often the map was called for it."""
        counted, grid = Counted(model), torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        return sample(counted, x, grid, sampler=self.sampler, cond=cond), counted.calls


def uncalibrated(tolerance: float) -> tuple[Rung, ...]:
    """Four jumps, then 2, 4, ... 32 Runge-Kutta steps of the velocity, until two differ by at most the tolerance.

    Jumps are not compared with each other: training makes them agree, and what they get wrong together cannot be seen
    that way. They must agree with the first solution twice as well, for neither has shown yet what it is worth. The
    error estimate is the distance, or twice it: about the error of the worse of the two, and more a bound than a guess.

    Args:
        tolerance: root mean square per dimension, in units of the data.
    Cost: 12 evaluations for the first check, then 28, 60, 124 and 252 in all.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0; got {tolerance}.")
    first = Rung(RungeKutta4(), 2, accept=tolerance / 2, scale=2)
    return Rung(Jump(), 4), first, *(Rung(RungeKutta4(), k, tolerance) for k in (4, 8, 16, 32))


@torch.no_grad()
def sample_to_tolerance(
    model: FlowMap, x: Tensor, tolerance: float | Sequence[Rung], *, cond: Any = None
) -> Adapted:  # fmt: skip
    """Carry each sample from time 0 to 1 in dearer and dearer ways, until one agrees with the way before.

    d_k = |x_k - x_{k-1}|, root mean square per dimension; x_k is the sample if d_k <= accept_k or no way is left, and
    scale_k d_k^power_k its estimated error: the distance to the many-step solution of the map's own velocity.
    Whether that velocity is right, no check of this kind can see.

    Args:
        model: the flow map; its diagonal must have been trained.
        x: states at time 0 [B, *].
        tolerance: of a sample, in units of the data, for the rungs of `uncalibrated`; or rungs, as from `calibrate`.
        cond: condition, batch first.
    Raises:
        ValueError: if the tolerance is not positive, or there are fewer than two rungs.
    Cost: the sum over the rungs that a sample climbs, returned.
    Source: ours; comparing two solutions of different accuracy is classical, for example Hairer, Nørsett & Wanner,
        Solving ordinary differential equations I, 1993, Section II.4.
    """
    rungs = uncalibrated(tolerance) if isinstance(tolerance, (int, float)) else tolerance
    if len(rungs) < 2:
        raise ValueError(f"there must be at least two rungs, one to be compared with the other; got {len(rungs)}.")
    out, before, left = x.clone(), x, torch.arange(len(x), device=x.device)
    evaluations = torch.zeros_like(left)
    error = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for i, rung in enumerate(rungs):
        end, calls = rung.climb(model, x[left], chosen(cond, left))
        out[left] = end
        evaluations[left] += calls
        if i > 0:
            distance = square_error(end, before).sqrt()
            error[left] = rung.scale * distance**rung.power
            more = ~(distance <= rung.accept)  # a distance that is not a number is no agreement
            left, end = left[more], end[more]
        if len(left) == 0:
            break
        before = end
    return Adapted(out, evaluations, error)
