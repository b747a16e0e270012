"""Pairs whose span grows with training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.random import Random
from ..core.times import PairLaw, UniformPair

__all__ = ["Annealed"]


@dataclass(frozen=True)
class Annealed(PairLaw):
    """Pairs of another law with t <- min(t, s + d), where d grows from `least` to 1 over the first images.

    Args:
        images: over which the longest span grows.
        least: longest span at the start.
        times: the law of the pairs.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, the annealing of t - s that the text suggests.
    """

    images: int = 1_000_000
    least: float = 0.0
    times: PairLaw = UniformPair()

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1; got {self.images}.")

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        s, t = self.times(n, like, generator, step=step)
        longest = self.least + (1 - self.least) * min(1.0, step / self.images)
        return s, torch.minimum(t, s + longest)
