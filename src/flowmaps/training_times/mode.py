"""One time, most or least often in the middle, by a law with a closed quantile."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.times import TimeLaw

__all__ = ["Mode"]


@dataclass(frozen=True)
class Mode(TimeLaw):
    """t = u + scale (cos^2(pi u / 2) - 1 + u) with u uniform: mass in the middle without neglect of the ends.

    Args:
        scale: 0 is uniform, positive leans to the middle, negative to the ends; from -1 to below 2 / (pi - 2).
    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, Section 3.1, mode sampling with heavy tails.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale < 2 / (math.pi - 2):
            raise ValueError(f"scale must lie from -1 to below 2 / (pi - 2) = 1.75; got {self.scale}.")

    def quantile(self, u: Tensor) -> Tensor:
        return u + self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)

    def density(self, t: Tensor) -> Tensor:
        return 1 / (1 + self.scale * (1 - math.pi / 2 * torch.sin(math.pi * self.cumulative(t))))
