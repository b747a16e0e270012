"""The default weighting of errors: none."""

from dataclasses import dataclass

from torch import Tensor

from .noise import noise_level


@dataclass(frozen=True)
class Unweighted:
    """The error of every sample counts as it is."""

    of_times = True

    def __call__(self, error: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The error [B], unchanged."""
        return error


@dataclass(frozen=True)
class NoiseGap:
    """The error over the gap of noise levels between the two times: e / (sigma_s - sigma_t), sigma = (1 - t) / t.

    Args:
        most: sigma where t = 0, which has none.
    Source: Song & Dhariwal, Improved techniques for training consistency models, 2023, arXiv:2310.14189, the weight of
        consistency training; Geng, Pokle, Luo, Lin & Kolter, Consistency models made easy, 2024, arXiv:2406.14548.
    """

    of_times = True

    most: float = 80.0

    def __call__(self, error: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Weighted loss [B] from errors and times [B]."""
        return error / (noise_level(s, self.most) - noise_level(t, self.most)).clamp_min(1e-4)
