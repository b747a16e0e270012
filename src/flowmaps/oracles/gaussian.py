"""Gaussian data: velocity, score, density and map, all affine."""

import math
from typing import Any

from torch import Tensor

from ..core.calculus import divided_difference
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time

__all__ = ["Gaussian"]


class Gaussian(FlowMap):
    """The exact flow map between N(0, I) and N(mean, diag(std^2)), coupled independently.

    X_{s,t}(x) = b_t mean + (S_t / S_s) (x - b_s mean), with S_t^2 = a_t^2 + b_t^2 std^2 + c_t^2 for a path with
    coefficients a of the source, b of the data and c of latent noise.

    Args:
        mean: mean of the data [*].
        std: standard deviation of the data [*], positive.
        interpolant: the path.
    Cost: no network.
    """

    def __init__(self, mean: Tensor, std: Tensor, interpolant: Interpolant = Linear()) -> None:
        super().__init__()
        if mean.shape != std.shape or not bool((std > 0).all()):
            raise ValueError(
                f"mean and std must have one shape and std be positive; got {tuple(mean.shape)}, {tuple(std.shape)} "
                f"and least std {float(std.min()):g}."
            )
        self.interpolant = interpolant
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def _spread(self, t: Tensor) -> Tensor:
        p = self.interpolant
        return (p.alpha(t) ** 2 + (p.beta(t) * self.std) ** 2 + p.gamma(t) ** 2).sqrt()

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        p, t = self.interpolant, expand_time(t, x)
        rate = p.alpha(t) * p.alpha_dot(t) + p.beta(t) * p.beta_dot(t) * self.std**2 + p.gamma(t) * p.gamma_dot(t)
        return (p.beta_dot(t) * self.mean + rate / self._spread(t) ** 2 * (x - p.beta(t) * self.mean)).to(x.dtype)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if s is t:  # the velocity
            return self._velocity(x, t)
        s, t = expand_time(s, x), expand_time(t, x)
        drift = divided_difference(self.interpolant.beta, s, t) * self.mean
        growth = divided_difference(self._spread, s, t) / self._spread(s)
        return (drift + growth * (x - self.interpolant.beta(s) * self.mean)).to(x.dtype)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Grad log rho_t(x) [B, *]."""
        t = expand_time(t, x)
        return -(x - self.interpolant.beta(t) * self.mean) / self._spread(t) ** 2

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """Log rho_t(x) [B], nats."""
        t = expand_time(t, x)
        spread = self._spread(t).expand(x.shape)
        z = (x - self.interpolant.beta(t) * self.mean) / spread
        return -(z**2 / 2 + spread.log() + math.log(2 * math.pi) / 2).flatten(1).sum(1)

    def sample(self, n: int, generator: Random = None) -> Tensor:
        """N data [n, *]."""
        return self.mean + self.std * normal((n, *self.mean.shape), self.mean, generator).to(self.mean.dtype)

    mean: Tensor
    std: Tensor
