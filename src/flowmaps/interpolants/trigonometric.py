"""The path along a quarter circle."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interpolant import Interpolant

__all__ = ["Trigonometric"]


@dataclass(frozen=True)
class Trigonometric(Interpolant):
    """A path that keeps the variance when source and data have the same.

    I_t = cos(pi t / 2) x0 + sin(pi t / 2) x1.

    Source: Albergo & Vanden-Eijnden, Building normalizing flows with stochastic interpolants, 2022, arXiv:2209.15571,
        the trigonometric interpolant; Albergo, Boffi & Vanden-Eijnden, 2023, arXiv:2303.08797, Eq. (4.10) with gamma =
        0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

    def beta(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.beta(t)

    def beta_dot(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.alpha(t)

    def time_at(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * log_snr.double().exp().atan()
