"""One time, of which shares lie at the ends."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.times import TimeLaw, Uniform, refuse_learning

__all__ = ["BoundaryMixed"]


@dataclass(frozen=True)
class BoundaryMixed(TimeLaw):
    """A mixture: uniform on [0, width] or [1 - width, 1] with given probabilities, else a law restricted to between.

    Where a few steps start and end, errors count most, and most laws hardly go there.

    Args:
        start: probability of the band at the noise.
        end: probability of the band at the data.
        width: of the bands; 0 puts the mass on t = 0 and t = 1 themselves, which the density does not show.
        times: the law between the bands.
    Source: ours. Lee, Lin & Fanti, Improving the training of rectified flows, 2024, arXiv:2405.20320, find the losses
        of reflow largest at both ends and sample times from a U-shaped density.
    """

    start: float = 0.05
    end: float = 0.05
    width: float = 0.01
    times: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if min(self.start, self.end) < 0 or self.start + self.end >= 1 or not 0 <= self.width < 0.5:
            raise ValueError(
                "start and end must be >= 0 with a sum below 1, and width lie in [0, 0.5); got "
                f"{self.start}, {self.end} and {self.width}."
            )
        refuse_learning(self.times, "a mixture")

    def _between(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The mass of the law below the inner interval, and in it."""
        low, high = self.times.cumulative(like.new_tensor([self.width, 1 - self.width]))
        return low, high - low

    def quantile(self, u: Tensor) -> Tensor:
        low, mass = self._between(u)
        inner = ((u - self.start) / (1 - self.start - self.end)).clamp(0, 1)
        t = self.times.quantile(low + mass * inner)
        t = torch.where(u < self.start, self.width * u / max(self.start, 1e-12), t)
        return torch.where(u >= 1 - self.end, 1 - self.width * (1 - u) / max(self.end, 1e-12), t)

    def density(self, t: Tensor) -> Tensor:
        p = (1 - self.start - self.end) * self.times.density(t) / self._between(t)[1]
        if self.width == 0:
            return p
        p = torch.where(t < self.width, self.start / self.width, p)
        return torch.where(t >= 1 - self.width, self.end / self.width, p)
