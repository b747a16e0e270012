"""Sequences of data of one class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.random import Random, normal, uniform
from ..core.types import Pair
from ._transport import alike

__all__ = ["SameClassSequence"]


@dataclass(frozen=True)
class SameClassSequence:
    """For each datum a sequence of S data with its condition, itself the first, each with noise of its own.

    The others are drawn from the batch, without repetition where it has S of a condition, else in turns. For networks
    that look at noisier data of the same class; S times the data go through them, so that batches are S times smaller.

    Args:
        length: S.
    Cost: no network evaluation of its own, and S times those of the loss.
    Source: Hui, Zhu, Yang & others, ARFlow: autoregressive flow with hybrid linear attention, 2025, arXiv:2501.16085,
        with sequences of 5 from one class in the released code.
    Differs: there a sequence is drawn from the whole of a class that is drawn first; here from the class's part of the
        batch, around each datum.
    """

    makes_sequences: ClassVar[bool] = True

    length: int = 5

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1; got {self.length}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """Pairs of source and data [B, S, *] with conditions [B], from data [B, *] and theirs.

        Raises:
            ValueError: if there are no conditions.
        """
        if cond is None:
            raise ValueError("sequences of one class must have labels; got cond = None. Train with conditional=true.")
        key = uniform((len(x1), len(x1)), x1, generator)
        index = torch.empty(len(x1), self.length, dtype=torch.long, device=x1.device)
        for i in alike(cond, x1):
            order = key[i][:, i].fill_diagonal_(-1).argsort(1)
            turns = torch.arange(self.length, device=x1.device) % len(i)
            index[i] = i[order[:, turns]]
        some = x1[index]
        return Pair(normal(some.shape, x1, generator), some, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        return normal(shape, like, generator)
