"""Data paired with themselves a little noisier: one link of a chain of flows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.random import Random, normal, uniform
from ..core.types import Pair

__all__ = ["OrnsteinUhlenbeck"]


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """x0 = exp(-time) x1 + sqrt(1 - exp(-2 time)) n: one step of the Ornstein-Uhlenbeck process.

    A flow between laws so close is nearly the identity, and a small network learns it. Local flow matching trains a
    chain of them, each on the data that the one before has pushed on, the last with the coupling "independent";
    `core.chain.Chain` composes the flows.

    Args:
        time: of the step.
        independent: make x0 from another datum of the batch, so that only the two laws are paired.
    Source: Xu, Cheng & Xie, Local flow matching generative models, 2024, arXiv:2410.02548; the steps of the released
        code grow geometrically, .025 1.25^k.
    """

    time: float = 0.1
    independent: bool = False

    def __post_init__(self) -> None:
        if self.time <= 0:
            raise ValueError(f"time must be > 0; got {self.time}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *]."""
        origin = x1
        if self.independent:
            origin = x1[uniform((len(x1),), x1, generator).argsort()]
        n = normal(x1.shape, x1, generator)
        return Pair(math.exp(-self.time) * origin + math.sqrt(-math.expm1(-2 * self.time)) * n, x1, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """There is none: a link starts where the link before it ends.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a link of a chain has no source of its own. Sample the chain of all links, whose source is N(0, I)."
        )
