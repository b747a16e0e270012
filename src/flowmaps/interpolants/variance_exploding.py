"""The path of variance exploding diffusion, with geometric noise levels."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interpolant import Interpolant

__all__ = ["VarianceExploding"]


@dataclass(frozen=True)
class VarianceExploding(Interpolant):
    """Data plus noise of geometric level.

    I_t = sigma(t) x0 + x1, sigma(t) = sigma_max (sigma_min / sigma_max)^t.

    Both ends are approximate: sampling starts from sigma_max x0, without the data that the path has there, and noise of
    standard deviation sigma_min is left at t = 1.

    Args:
        sigma_min: noise level at the data end.
        sigma_max: noise level at the source end; large against the spread of the data.
    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, Score-based generative modeling through stochastic
        differential equations, 2020, arXiv:2011.13456, Eq. (9) and Appendix C.
    Differs: time reversed with respect to the paper.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"noise levels must satisfy 0 < sigma_min < sigma_max; got {self.sigma_min} and {self.sigma_max}."
            )

    def alpha(self, t: Tensor) -> Tensor:
        return self.sigma_max * (math.log(self.sigma_min / self.sigma_max) * t).exp()

    def beta(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_min / self.sigma_max) * self.alpha(t)

    def beta_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def time_at(self, log_snr: Tensor) -> Tensor:
        t = (log_snr.double() + math.log(self.sigma_max)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp(0, 1)
