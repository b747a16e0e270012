"""One time, whose ratio of noise to data is log-normal."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.times import TimeLaw

__all__ = ["LogNormalNoise"]


@dataclass(frozen=True)
class LogNormalNoise(TimeLaw):
    """ln sigma ~ N(mean, std^2), with sigma = (1 - t) / t the noise level of the linear path: t = 1 / (1 + sigma).

    Args:
        mean: of ln sigma; negative leans to the data.
        std: of ln sigma.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Table 1 and Section 5, the noise distribution of training.
    Differs: on the linear path, whose state at t is t (x1 + sigma x0).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be > 0; got {self.std}.")

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.std * torch.special.ndtri(u) - self.mean)

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) + self.mean) / self.std
        return (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))
