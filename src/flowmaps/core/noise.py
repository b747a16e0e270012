"""The noise level sigma of the linear path, whose state at t is t (x1 + sigma x0), and laws of it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .times import TimeLaw, normal_quantile


def noise_level(t: Tensor, most: float = math.inf) -> Tensor:
    """Sigma = (1 - t) / t at times t, infinite at 0 or, with t in the denominator no less than 1 / most, `most`."""
    return (1 - t) / t.clamp_min(1 / most)


def time_of_noise(sigma: Tensor) -> Tensor:
    """T = 1 / (1 + sigma)."""
    return 1 / (1 + sigma)


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
        return torch.sigmoid(self.std * normal_quantile(u) - self.mean)

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) + self.mean) / self.std
        p = (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))
        return torch.where((t > 0) & (t < 1), p, 0.0)  # its limit at both ends


@dataclass(frozen=True)
class LogNormalAngle(TimeLaw):
    """ln tan(a) ~ N(mean, std^2), with a = pi (1 - t) / 2: tan(a) is the noise level of the trigonometric path.

    Args:
        mean: of ln tan(a); negative leans to the data.
        std: of ln tan(a).
    Source: Lu & Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2024, arXiv:2410.11081,
        the proposal of times, with mean -1 and deviation 1.4 on CIFAR-10.
    """

    mean: float = -1.0
    std: float = 1.4

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be > 0; got {self.std}.")

    def quantile(self, u: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(self.std * normal_quantile(u) - self.mean))

    def density(self, t: Tensor) -> Tensor:
        z = (torch.log(torch.tan(math.pi / 2 * t)) + self.mean) / self.std
        p = (-(z**2) / 2).exp() * math.pi / (math.sqrt(2 * math.pi) * self.std * torch.sin(math.pi * t))
        return torch.where((t > 0) & (t < 1), p, 0.0)  # its limit at both ends


@dataclass(frozen=True)
class StudentNoise(TimeLaw):
    """ln sigma ~ Student's t, centred at `mean` and cut to [ln least, ln most], with sigma = (1 - t) / t.

    With few degrees of freedom most samples lie close to `mean` and the rest spread far.

    Args:
        mean: centre of ln sigma.
        scale: of ln sigma.
        freedom: degrees of freedom.
        least: lowest sigma.
        most: highest sigma.
    Source: Lee, Xu, Geffner & others, Truncated consistency models, 2024, arXiv:2410.14895, released code, with these
        defaults on CIFAR-10.
    """

    mean: float = 0.0
    scale: float = 0.2
    freedom: float = 0.01
    least: float = 1.0
    most: float = 80.0

    def __post_init__(self) -> None:
        if min(self.scale, self.freedom, self.least) <= 0 or self.most <= self.least:
            raise ValueError(
                f"scale, freedom and least must be > 0 and most > least; got {self.scale}, {self.freedom}, "
                f"{self.least} and {self.most}."
            )

    @property
    def _width(self) -> float:
        return self.scale * math.sqrt(self.freedom)

    def _table(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """A grid of y = asinh((ln sigma - mean) / width), whose density is cosh(y)^-freedom, and the mass below it."""
        low, high = (math.asinh((math.log(z) - self.mean) / self._width) for z in (self.least, self.most))
        y = torch.linspace(low, high, 4097, dtype=torch.float64, device=like.device)
        return y, torch.cat([y.new_zeros(1), torch.cumulative_trapezoid(torch.cosh(y) ** -self.freedom, y)])

    def quantile(self, u: Tensor) -> Tensor:
        y, mass = self._table(u)
        goal = (1 - u.double()) * mass[-1]
        i = torch.searchsorted(mass, goal.detach()).clamp(1, len(y) - 1)
        share = (goal.detach() - mass[i - 1]) / (mass[i] - mass[i - 1])
        at = torch.lerp(y[i - 1], y[i], share)
        at = at + (goal - goal.detach()) * torch.cosh(at) ** self.freedom  # the derivative that a table has not
        return torch.sigmoid(-self.mean - self._width * torch.sinh(at)).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        log = -torch.logit(t)
        z = (log - self.mean) / self._width
        inside = (log >= math.log(self.least)) & (log <= math.log(self.most))
        p = (1 + z**2) ** (-(self.freedom + 1) / 2) / (self._width * t * (1 - t) * self._table(t)[1][-1])
        return torch.where(inside, p, 0.0).to(t.dtype)
