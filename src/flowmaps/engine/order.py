"""Which data each step sees: a function of the seed and of the images seen, so that nothing needs to be stored."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..core.random import fold_in


@dataclass(frozen=True)
class Order:
    """Batches of indices from one shuffled pass over the data after another; usable as a batch sampler.

    Args:
        size: number of data.
        batch: images per step, over all processes.
        total: images at which the run ends.
        start: images seen before.
        seed: of the shuffles.
        rank: this process.
        world: number of processes; divides batch.
    """

    size: int
    batch: int
    total: int
    start: int = 0
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return max(0, -(-(self.total - self.start) // self.batch))

    def __iter__(self) -> Iterator[list[int]]:
        epoch, shuffled = -1, torch.empty(0)
        for first in range(self.start, self.total, self.batch):
            indices: list[int] = []
            position = first
            while position < first + self.batch:
                if position // self.size != epoch:
                    epoch = position // self.size
                    shuffled = torch.randperm(self.size, generator=fold_in(self.seed, epoch))
                end = min(first + self.batch, (epoch + 1) * self.size)
                indices += shuffled[position - epoch * self.size : end - epoch * self.size].tolist()
                position = end
            yield indices[self.rank :: self.world]
