"""One time, with most of its mass in the middle."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.times import TimeLaw

__all__ = ["LogitNormal"]


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """t = sigmoid(mean + std n), n ~ N(0, 1).

    Args:
        mean: of the logit; positive leans to the data.
        std: of the logit.
    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, Section 3.1.
    Differs: time reversed with respect to the paper, so that the sign of the mean is opposite.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be > 0; got {self.std}.")

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        return (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))
