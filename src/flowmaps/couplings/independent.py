"""Source and data drawn independently."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.random import Random, normal
from ..core.types import Pair

__all__ = ["Independent"]


@dataclass(frozen=True)
class Independent:
    """x0 ~ N(0, scale^2 I), independent of the data.

    Args:
        scale: standard deviation of the source.
    Cost: no network evaluation.
    Source: Lipman, Chen, Ben-Hamu, Nickel & Le, Flow matching for generative modeling, 2022, arXiv:2210.02747, Section
        3.1 and Eq. (14).
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0; got {self.scale}.")

    @property
    def gaussian(self) -> bool:
        """With unit scale."""
        return self.scale == 1

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *]."""
        return Pair(self.source(x1.shape, x1, cond, generator=generator), x1, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        n = normal(shape, like, generator)
        return n if self.scale == 1 else self.scale * n

    def mean_length(self, shape: Sequence[int]) -> float:
        """Of source draws of a shape [B, *]."""
        return self.scale * gaussian_length(math.prod(shape[1:]))


def gaussian_length(dimensions: int) -> float:
    """E|n| = sqrt(2) Gamma((D + 1) / 2) / Gamma(D / 2) of n ~ N(0, I) in D dimensions."""
    return math.sqrt(2) * math.exp(math.lgamma((dimensions + 1) / 2) - math.lgamma(dimensions / 2))
