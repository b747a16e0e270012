"""Data paired with themselves a little noisier: one link of a chain of flows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.random import Random, normal, uniform
from ..core.types import NoSource, Pair
from ._transport import alike

__all__ = ["OrnsteinUhlenbeck"]


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """x0 = exp(-time) x1 + sqrt(1 - exp(-2 time)) n: one step of the Ornstein-Uhlenbeck process.

    A flow between laws so close is nearly the identity, and a small network learns it. Local flow matching trains a
    chain of them, from data to noise: each link on the data that the flow of the link before has carried back from
    t = 1 to t = 0, and the last with the coupling "independent". `core.chain.Chain` composes the flows, last one first;
    examples/local_flow_matching.py does it, and distils the chain.

    Args:
        time: of the step.
        independent: make x0 from another datum of the batch, so that only the two laws are paired.
    Cost: no network evaluation.
    Source: Xu, Cheng & Xie, Local flow matching generative models, 2024, arXiv:2410.02548. In the released code pairs
        are dependent unless asked for otherwise, the times of its eight links in the plane grow as .025 1.25^k, and
        each link starts from the weights of the one before.
    Differs: time reversed; the other data are a permutation of those with the same condition, where the released code
        has no conditions and draws anew.
    """

    gaussian = False

    time: float = 0.1
    independent: bool = False

    def __post_init__(self) -> None:
        if self.time <= 0:
            raise ValueError(f"time must be > 0; got {self.time}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *]."""
        origin = x1
        if self.independent:
            origin, key = x1.clone(), uniform((len(x1),), x1, generator)
            for i in alike(cond, x1):
                origin[i] = x1[i[key[i].argsort()]]
        n = normal(x1.shape, x1, generator)
        return Pair(math.exp(-self.time) * origin + math.sqrt(-math.expm1(-2 * self.time)) * n, x1, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """There is none: a link starts where the link before it ends.

        Raises:
            NoSource: always.
        """
        raise NoSource("a link has no source of its own. Sample the chain of all links, whose source is N(0, I).")
