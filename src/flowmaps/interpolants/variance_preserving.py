"""The path of variance preserving diffusion with linear rate (DDPM)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interpolant import Interpolant

__all__ = ["VariancePreserving"]


@dataclass(frozen=True)
class VariancePreserving(Interpolant):
    """The path of a diffusion with linear noise rate.

    I_t = sqrt(1 - e^{-B}) x0 + e^{-B/2} x1, with the accumulated rate B(r) = rate_min r + (rate_max - rate_min) r^2 / 2
    at diffusion time r = 1 - (1 - cut) t.

    Both ends are approximate: the source keeps a trace e^{-B(1)/2} of the data (0.0066 by default), and the data end
    stops at diffusion time `cut`, where noise of standard deviation about sqrt(rate_min cut) is left (0.0032).

    Args:
        rate_min: noise rate at the data end.
        rate_max: noise rate at the source end.
        cut: diffusion time at which the path ends, short of data, where its speed would be infinite.
    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole, Score-based generative modeling through stochastic
        differential equations, 2020, arXiv:2011.13456, Appendix C, the perturbation kernel of the VP SDE, Eq. (33).
    Differs: time reversed with respect to the paper.
    """

    rate_min: float = 0.1
    rate_max: float = 20.0
    cut: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.rate_min < self.rate_max:
            raise ValueError(f"rates must satisfy 0 < rate_min < rate_max; got {self.rate_min} and {self.rate_max}.")
        if not 0 < self.cut < 1:
            raise ValueError(f"cut must lie in (0, 1); got {self.cut}.")

    def _accumulated(self, t: Tensor) -> Tensor:
        r = 1 - (1 - self.cut) * t
        return self.rate_min * r + (self.rate_max - self.rate_min) * r**2 / 2

    def _accumulated_dot(self, t: Tensor) -> Tensor:
        r = 1 - (1 - self.cut) * t
        return -(1 - self.cut) * (self.rate_min + (self.rate_max - self.rate_min) * r)

    def alpha(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._accumulated(t))).sqrt()

    def beta(self, t: Tensor) -> Tensor:
        return (-self._accumulated(t) / 2).exp()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self._accumulated_dot(t) * self.beta(t) ** 2 / (2 * self.alpha(t))

    def beta_dot(self, t: Tensor) -> Tensor:
        return -self._accumulated_dot(t) * self.beta(t) / 2

    def time_at(self, log_snr: Tensor) -> Tensor:
        # e^{-B} is the share of data in the variance, sigmoid(2 log_snr); then B(r) = B is a quadratic equation in r.
        accumulated = torch.nn.functional.softplus(-2 * log_snr.double(), threshold=100)
        slope = self.rate_max - self.rate_min
        r = 2 * accumulated / (self.rate_min + (self.rate_min**2 + 2 * slope * accumulated).sqrt())
        return ((1 - r) / (1 - self.cut)).clamp(0, 1)
