"""Laws of the training times: one time t, or a pair s <= t."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .random import Random, normal, uniform


def normal_quantile(u: Tensor) -> Tensor:
    """The number below which a standard normal lies with probability u."""
    return torch.special.ndtri(u)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def normal_cumulative(z: Tensor) -> Tensor:
    """The probability that a standard normal lies below z."""
    return torch.special.ndtr(z)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class TimeLaw(ABC):
    """A law of one time t in [0, 1]; its quantile function draws training times and lays out grids alike."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The time below which a share u of the mass lies; u and result in [0, 1], any shape."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Probability density at times t, any shape; integrates to one over [0, 1]."""

    def cumulative(self, t: Tensor) -> Tensor:
        """The share of the mass below times t, any shape: by bisection of the quantile, unless a law knows better."""
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(54):  # the bits of a float64
            middle = (low + high) / 2
            below = self.quantile(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    @property
    def learns(self) -> bool:
        """Whether the law changes with the losses that `reweighted` tells it."""
        return False

    @property
    def heard(self) -> bool:
        """Whether a law that learns has been told any loss; without, it is of no effect."""
        return True

    def reweighted(self, t: Tensor, loss: Tensor) -> Tensor:
        """The losses [n] at times [n] that the law has drawn: as they are, unless the law learns from them."""
        return loss

    def __call__(self, n: int, like: Tensor, generator: Random = None) -> Tensor:
        """N training times [n] on the device of `like` and at least float32; independent unless the law says else."""
        return self.quantile(uniform((n,), like, generator))


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """t uniform on [0, 1]."""

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def cumulative(self, t: Tensor) -> Tensor:
        return t


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
        return torch.sigmoid(self.mean + self.std * normal_quantile(u))

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        p = (-(z**2) / 2).exp() / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))
        return torch.where((t > 0) & (t < 1), p, 0.0)  # its limit at both ends

    def cumulative(self, t: Tensor) -> Tensor:
        return normal_cumulative((torch.logit(t) - self.mean) / self.std)


def refuse_learning(law: TimeLaw, around: str) -> None:
    """Raise ValueError if a law learns, for a law around it whose times are not its own."""
    if law.learns:
        raise ValueError(
            f"a law that learns from losses must be told those at its own times, which those of {around} are not; got "
            f"{type(law).__name__}. Use it alone, or in 'segment'."
        )


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


@dataclass(frozen=True)
class LogitNormalPair(PairLaw):
    """Two independent logit-normal times, sorted: s, t = sort(sigmoid(mean + std n)), n ~ N(0, I_2).

    Args:
        mean: of the logit, for both times or for each; positive leans to the data.
        std: of the logit, for both times or for each.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Section
        4.3 and Table 1d; their mean -0.4 on the reversed clock is 0.4 here. A mean for each: Lee, Yu & Shin, Decoupled
        MeanFlow: turning flow models into flow maps for accelerated sampling, 2025, arXiv:2510.24474 (released code).
    Differs: time reversed with respect to the papers; the share of s = t is an option of the loss, not of the law.
    """

    mean: float | tuple[float, float] = 0.4
    std: float | tuple[float, float] = 1.0

    def __post_init__(self) -> None:
        if min(_both(self.std)) <= 0:
            raise ValueError(f"std must be > 0; got {self.std}.")

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        z = normal((n, 2), like, generator)
        mean, std = (torch.tensor(_both(v), dtype=z.dtype, device=z.device) for v in (self.mean, self.std))
        times = torch.sigmoid(mean + std * z)
        return times.amin(1), times.amax(1)


def _both(value: float | tuple[float, float]) -> tuple[float, float]:
    return (value, value) if isinstance(value, (int, float)) else value


@dataclass(frozen=True)
class SpanPair(PairLaw):
    """t - s = d from a law of one time, and t from another one, restricted to [d, 1].

    With t uniform there, s is uniform on [0, 1 - d].

    Args:
        span: law of the span d.
        arrival: law of t before the restriction.
    Source: Sabour, Fidler & Kreis, Align your flow: scaling continuous-time flow map distillation, 2025,
        arXiv:2506.14603, Algorithm 1, with a logit-normal span; Zhou, Parger, Haque & Song, Terminal velocity matching,
        2025, arXiv:2511.19797, with t logit-normal too (released code, training/loss.py).
    """

    span: TimeLaw = Uniform()
    arrival: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        for law in (self.span, self.arrival):
            refuse_learning(law, "pairs")

    def __call__(self, n: int, like: Tensor, generator: Random = None, *, step: int = 0) -> tuple[Tensor, Tensor]:
        d = self.span(n, like, generator)
        before = self.arrival.cumulative(d)
        t = self.arrival.quantile(before + (1 - before) * uniform((n,), like, generator))
        t = torch.maximum(t, d)  # rounding
        return t - d, t
