"""Pairs on a grid of halves, quarters, eighths, ..."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.random import Random, uniform
from ..core.times import PairLaw

__all__ = ["DyadicPair"]


@dataclass(frozen=True)
class DyadicPair(PairLaw):
    """t - s = 2^-j with j uniform in 0, ..., levels - 1, and s uniform on the multiples of the span.

    Args:
        levels: number of spans; the shortest is 2^-(levels - 1).
    Source: Frans, Hafner, Levine & Abbeel, One step diffusion via shortcut models, 2024, arXiv:2410.12557, Section 3
        and Algorithm 1, with 7 levels above the finest step of 1/128.
    """

    levels: int = 7

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1; got {self.levels}.")

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        u = uniform((n, 2), like, generator)
        span = torch.exp2(-(u[:, 0] * self.levels).floor())
        s = (u[:, 1] / span).floor() * span
        return s, s + span
