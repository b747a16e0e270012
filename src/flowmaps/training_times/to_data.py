"""Pairs of which a share arrives at the data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import check_share
from ..core.random import Random, uniform
from ..core.times import PairLaw, UniformPair

__all__ = ["ToData"]


@dataclass(frozen=True)
class ToData(PairLaw):
    """Pairs (s, t) of another law, of which a share has t = 1, wherever in the batch.

    The share is constant, or with `until` falls as arccos(k / until) / (pi / 2) of `share`, with k images seen.

    Args:
        share: of the pairs whose arrival is the data; 1 gives consistency models.
        until: images after which the share is zero; 0 keeps it.
        times: the law of the pairs.
    Source: the falling share: Lin, Hu, Ren & others, On the design of one-step diffusion via shortcutting flow paths,
        2025, arXiv:2512.11831 (released code, loss/esc_loss.py).
    Differs: the share is exact, where the released code draws a coin per sample; where it falls is drawn, so that it is
        independent of what others, such as the velocity "plug_in", do to a part of the batch.
    """

    share: float = 1.0
    until: int = 0
    times: PairLaw = UniformPair()

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        s, t = self.times(n, like, generator, step=step)
        share = self.share * math.acos(min(1.0, step / self.until)) / (math.pi / 2) if self.until else self.share
        rank = uniform((n,), like, generator).argsort().argsort()
        return s, torch.where(rank < round(share * n), torch.ones_like(t), t)
