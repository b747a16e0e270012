"""One time, whose ratio of noise to data is that of the cosine schedule."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.times import TimeLaw

__all__ = ["CosMap"]


@dataclass(frozen=True)
class CosMap(TimeLaw):
    """t / (1 - t) = tan(pi u / 2) with u uniform: on the linear path, the noise levels of the cosine schedule.

    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, Section 3.1, CosMap.
    """

    def quantile(self, u: Tensor) -> Tensor:
        data, noise = torch.sin(math.pi / 2 * u), torch.cos(math.pi / 2 * u)
        return data / (data + noise)

    def density(self, t: Tensor) -> Tensor:
        return 2 / (math.pi * (t**2 + (1 - t) ** 2))

    def cumulative(self, t: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan2(t, 1 - t)
