"""Two times with most of their mass in the middle."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.random import Random, normal
from ..core.times import PairLaw

__all__ = ["LogitNormalPair"]


@dataclass(frozen=True)
class LogitNormalPair(PairLaw):
    """Two independent logit-normal times, sorted: s, t = sort(sigmoid(mean + std n)), n ~ N(0, I_2).

    Args:
        mean: of the logit; positive leans to the data.
        std: of the logit.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Section
        4.3 and Table 1d; their mean -0.4 on the reversed clock is 0.4 here.
    Differs: time reversed with respect to the paper; the share of s = t is an option of the loss, not of the law.
    """

    mean: float = 0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be > 0; got {self.std}.")

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        both = torch.sigmoid(self.mean + self.std * normal((n, 2), like, generator))
        return both.amin(1), both.amax(1)
