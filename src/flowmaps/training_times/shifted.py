"""One time of another law, shifted towards the noise."""

from dataclasses import dataclass

from torch import Tensor

from ..core.times import TimeLaw, Uniform, refuse_learning

__all__ = ["Shifted"]


@dataclass(frozen=True)
class Shifted(TimeLaw):
    """t <- t / (t + shift (1 - t)): every ratio of noise to data is multiplied by `shift`.

    More pixels hide the data less well, and call for more noise. For m pixels in place of the n that a law was made
    for, a shift of sqrt(m / n) leaves as much uncertainty about the mean colour. Shifts multiply: by a, then by b, is
    by a b.

    Args:
        shift: above 1 towards the noise, below 1 towards the data.
        times: the law that is shifted.
    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, the resolution-dependent shifting of timesteps, with 3 for 1024 x 1024 pixels, in
        training and in sampling.
    Differs: time reversed with respect to the paper.
    """

    shift: float = 3.0
    times: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be > 0; got {self.shift}.")
        refuse_learning(self.times, "a shifted law")

    def quantile(self, u: Tensor) -> Tensor:
        t = self.times.quantile(u)
        return t / (t + self.shift * (1 - t))

    def _back(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def density(self, t: Tensor) -> Tensor:
        return self.times.density(self._back(t)) * self.shift / (1 + (self.shift - 1) * t) ** 2

    def cumulative(self, t: Tensor) -> Tensor:
        return self.times.cumulative(self._back(t))
