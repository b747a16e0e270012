"""Inversion by repeated substitution."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time

__all__ = ["FixedPoint"]


@dataclass(frozen=True)
class FixedPoint:
    """x <- y - (t - s) u_{s,t}(x), which converges where (t - s) times the slope of u is below 1: for short jumps.

    Args:
        iterations: most of them.
        tolerance: largest change of a coordinate at which it stops, for the whole batch.
    Cost: 1 network evaluation per iteration.
    Source: Banach's fixed point theorem; for residual networks: Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen,
        Invertible residual networks, 2018, arXiv:1811.00995, Algorithm 1.
    """

    iterations: int = 50
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.tolerance <= 0:
            raise ValueError(
                f"iterations must be at least 1 and tolerance > 0; got {self.iterations}, {self.tolerance}."
            )

    @torch.no_grad()
    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The state at time s [B, *].

        Raises:
            ValueError: if it has not settled after the last iteration.
        """
        h, x = expand_time(t - s, y).to(y.dtype), y
        change = float("inf")
        for _ in range(self.iterations):
            new = y - h * model.mean_velocity(x, s, t, cond).to(y.dtype)
            change, x = float((new - x).abs().max()), new
            if change <= self.tolerance:
                return x
        raise ValueError(
            f"the fixed point must settle within {self.tolerance:g}; after {self.iterations} iterations it still moves "
            f"by {change:.2g}. Use shorter jumps, or Newton's method (newton_krylov)."
        )
