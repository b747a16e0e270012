"""One time, uniform in a root of the noise level."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.noise import noise_level, time_of_noise
from ..core.times import TimeLaw

__all__ = ["PowerNoise"]


@dataclass(frozen=True)
class PowerNoise(TimeLaw):
    """sigma^(1/rho) uniform between its values at `least` and `most`, with sigma = (1 - t) / t.

    Args:
        least: lowest sigma.
        most: highest sigma.
        rho: power; 7 puts most times close to the data.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, there the grid of sampling; as training times: Song, Dhariwal, Chen & Sutskever,
        Consistency models, 2023, arXiv:2303.01469.
    """

    least: float = 0.002
    most: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.least < self.most or self.rho <= 0:
            raise ValueError(
                f"noise levels must be 0 < least < most, and rho > 0; got {self.least}, {self.most} and {self.rho}."
            )

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self.least ** (1 / self.rho), self.most ** (1 / self.rho)
        return time_of_noise((high + u * (low - high)) ** self.rho)

    def density(self, t: Tensor) -> Tensor:
        sigma = noise_level(t)
        width = self.most ** (1 / self.rho) - self.least ** (1 / self.rho)
        inside = (sigma >= self.least) & (sigma <= self.most)
        return torch.where(inside, sigma ** (1 / self.rho - 1) / (self.rho * width * t**2), 0.0)
