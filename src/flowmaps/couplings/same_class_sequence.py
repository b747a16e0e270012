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

    The others are drawn from the batch, without repetition: a network that sees noisier data of the same class must not
    see among them the datum that it is asked for. So the batch must have S data of every condition that occurs; to pass
    over conditions with fewer would make rare ones rarer. S times the data go through the network.

    Args:
        length: S.
    Cost: no network evaluation of its own, and S times those of the loss.
    Source: Hui, Zhu, Yang & others, ARFlow: autoregressive flow with hybrid linear attention, 2025, arXiv:2501.16085,
        with sequences of 5 from one class in the released code.
    Differs: there a sequence is drawn from the whole of a class that is drawn first; here from the class's part of the
        batch, around each datum.
    """

    gaussian = True
    makes_sequences: ClassVar[bool] = True

    length: int = 5

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be at least 1; got {self.length}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """Pairs of source and data [B, S, *] with conditions [B], from data [B, *] and theirs.

        Raises:
            ValueError: if there are no conditions, or some has less than S data.
        """
        if cond is None:
            raise ValueError("sequences of one class must have labels; got cond = None. Train with conditional=true.")
        key = uniform((len(x1), len(x1)), x1, generator)
        index = torch.empty(len(x1), self.length, dtype=torch.long, device=x1.device)
        groups = alike(cond, x1)
        least = min(map(len, groups))
        if least < self.length:
            raise ValueError(
                f"a batch must have at least {self.length} data of every condition that occurs, or sequences repeat "
                f"the datum that is asked for; one of {len(groups)} has {least} of {len(x1)}. Raise batch, to some "
                f"{max(30, 4 * self.length)} for each condition, or lower coupling.length."
            )
        for i in groups:
            index[i] = i[key[i][:, i].fill_diagonal_(-1).argsort(1)[:, : self.length]]
        some = x1[index]
        return Pair(normal(some.shape, x1, generator), some, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        return normal(shape, like, generator)
