"""A path with latent noise in the middle."""

from dataclasses import dataclass

from torch import Tensor

from ..core.interpolant import Interpolant, Linear

__all__ = ["Stochastic"]


@dataclass(frozen=True)
class Stochastic(Interpolant):
    """Any path with latent noise added between its ends.

    gamma(t) = scale [t (1 - t)]^power.

    The power 1/2 is the Brownian bridge, whose velocity has infinite variance at the ends; the power 1 has not.

    Args:
        base: the path without latent noise.
        scale: size of the noise.
        power: shape of the noise near the ends, at least 1/2.
    Source: Albergo, Boffi & Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions,
        2023, arXiv:2303.08797, Section 4.3 and Table 8.
    """

    base: Interpolant = Linear()
    scale: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.power < 0.5:
            raise ValueError(f"scale must be > 0 and power >= 0.5; got {self.scale} and {self.power}.")

    def alpha(self, t: Tensor) -> Tensor:
        return self.base.alpha(t)

    def beta(self, t: Tensor) -> Tensor:
        return self.base.beta(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.base.alpha_dot(t)

    def beta_dot(self, t: Tensor) -> Tensor:
        return self.base.beta_dot(t)

    def gamma(self, t: Tensor) -> Tensor:
        return self.scale * (t * (1 - t)) ** self.power

    def gamma_dot(self, t: Tensor) -> Tensor:
        inside = (t * (1 - t)).clamp_min(1e-8)  # a law of times may draw an end
        return self.scale * self.power * inside ** (self.power - 1) * (1 - 2 * t)
