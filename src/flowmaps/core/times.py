"""Laws of the training times: one time t, or a pair s <= t."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .random import Random, uniform


class TimeLaw(ABC):
    """A law of one time t in [0, 1]; its quantile function draws training times and lays out grids alike."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a share u of the mass lies; u and result in [0, 1], any shape."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Probability density at times t, any shape; integrates to one over [0, 1]."""

    def __call__(self, n: int, like: Tensor, generator: Random = None) -> Tensor:
        """N training times [n], independent, on the device of `like` and at least float32."""
        return self.quantile(uniform((n,), like, generator))


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """t uniform on [0, 1]."""

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class PairLaw(ABC):
    """A law of departure and arrival times s <= t."""

    @abstractmethod
    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        """N pairs (s, t), each [n], on the device of `like` and at least float32; `step` counts images seen."""


@dataclass(frozen=True)
class UniformPair(PairLaw):
    """(s, t) uniform on the triangle 0 <= s <= t <= 1.

    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Section 3, "Temporal sampling".
    """

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        both = uniform((n, 2), like, generator)
        return both.amin(1), both.amax(1)


@dataclass(frozen=True)
class DyadicPair(PairLaw):
    """t - s = 2^-j with j uniform in 0, ..., levels - 1, and s uniform on the multiples of the span.

    Args:
        levels: number of spans; the shortest is 2^-(levels - 1).
    Source: Frans, Hafner, Levine & Abbeel, One step diffusion via shortcut models, 2024, arXiv:2410.12557, Section 3
        and Algorithm 1, with 7 levels above the finest step of 1/128.
    """

    levels: int = 7

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1; got {self.levels}.")

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        u = uniform((n, 2), like, generator)
        span = torch.exp2(-(u[:, 0] * self.levels).floor())
        s = (u[:, 1] / span).floor() * span
        return s, s + span
