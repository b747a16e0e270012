"""Inversion by repeated substitution."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.inversion import FAILED, allowed, inverted, largest
from ..core.shapes import expand_time
from ..core.types import chosen

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint:
    """x <- y - (t - s) u_{s,t}(x), which converges where (t - s) times the slope of u is below 1: for short jumps.

    Args:
        iterations: most of them.
        tolerance: change of a coordinate at which a sample is done, over 1 + the largest coordinate of y; not below 16
            roundings of y's type.
        failed: "raise", or "nan" to return samples that do not settle as not a number.
    Cost: 1 network evaluation per iteration, of the samples that are not done.
    Source: Banach's fixed point theorem; for residual networks: Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen,
        Invertible residual networks, 2018, arXiv:1811.00995, Algorithm 1.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    failed: str = "raise"

    def __post_init__(self) -> None:
        check_choice("failed", self.failed, FAILED)
        if self.iterations < 1 or self.tolerance <= 0:
            raise ValueError(
                f"iterations must be at least 1 and tolerance > 0; got {self.iterations}, {self.tolerance}."
            )

    @torch.no_grad()
    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The state at time s [B, *].

        Raises:
            NotInverted: a ValueError, if some samples have not settled after the last iteration.
        """
        h, x, limit = expand_time(t - s, y).to(y.dtype), y.clone(), allowed(y, self.tolerance)
        change, left = torch.full_like(limit, torch.inf), torch.arange(len(y), device=y.device)
        for _ in range(self.iterations):
            if len(left) == 0:
                break
            u = model.mean_velocity(x[left], s[left], t[left], chosen(cond, left))
            new = y[left] - h[left] * u.to(y.dtype)
            change[left] = largest(new - x[left])
            x[left] = new
            left = left[~(change[left] <= limit[left])]
        fix = f"Use shorter jumps, Newton's method (newton_krylov), or more than {self.iterations} iterations."
        return inverted(x, change, limit, self.failed, fix)
