"""One time, spread evenly over segments within every batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.random import Random, uniform
from ..core.times import TimeLaw, Uniform

__all__ = ["Segment"]


@dataclass(frozen=True)
class Segment(TimeLaw):
    """Times of another law, drawn from each of its segments of equal mass in turn: stratified sampling.

    Each time has the law as it was; a batch covers it more evenly than independent draws do. For a uniform law the
    segments are [k / M, (k + 1) / M], the blocks of blockwise flow matching. Neighbours in the batch lie in different
    segments, so that any part of it is spread too.

    Args:
        segments: M.
        times: the law.
    Source: Park, Lee, Joo & Kim, Blockwise flow matching: improving flow matching models for efficient high-quality
        generation, 2025, arXiv:2510.21167, where the batch is split evenly over the blocks.
    """

    segments: int = 6
    times: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments must be at least 1; got {self.segments}.")

    def quantile(self, u: Tensor) -> Tensor:
        return self.times.quantile(u)

    def density(self, t: Tensor) -> Tensor:
        return self.times.density(t)

    def cumulative(self, t: Tensor) -> Tensor:
        return self.times.cumulative(t)

    @property
    def learns(self) -> bool:
        return self.times.learns

    def reweighted(self, t: Tensor, loss: Tensor) -> Tensor:
        return self.times.reweighted(t, loss)

    def __call__(self, n: int, like: Tensor, generator: Random = None) -> Tensor:
        u = uniform((n, 2), like, generator)
        # A random first segment: where n is no multiple of M, none gets more than its share on average.
        first = (u[:1, 1] * self.segments).floor()
        segment = (torch.arange(n, device=u.device) + first) % self.segments
        below_one = 1 - torch.finfo(u.dtype).eps
        return self.quantile(((segment + u[:, 0]) / self.segments).clamp_max(below_one))
