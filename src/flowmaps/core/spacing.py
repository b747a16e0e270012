"""How far apart the two times are at which a consistency model is compared with itself."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .noise import noise_level, time_of_noise


class Spacing(Protocol):
    """Two neighbouring times.

    Args:
        t: times drawn from a law [B].
        step: images seen.
    Returns:
        Times s < t, [B] each: t's own place and the next towards the data, or the two ends of the cell that t lies in.
    """

    def __call__(self, t: Tensor, step: int) -> tuple[Tensor, Tensor]: ...


def cell(t: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The two edges, of increasing ones from 0 to 1 [N + 1], between which times t [B] lie: [B] each."""
    i = (torch.searchsorted(edges, t, right=True) - 1).clamp(0, len(edges) - 2)
    return edges[i], edges[i + 1]


def noise_cell(
    t: Tensor, cells: int, least: float = 0.002, most: float = 80.0, rho: float = 7.0
) -> tuple[Tensor, Tensor]:
    """The cell of t when sigma^(1/rho) is cut into equal parts; the outermost edges are moved to t = 0 and t = 1."""
    low, high = least ** (1 / rho), most ** (1 / rho)
    edges = time_of_noise(torch.linspace(high, low, cells + 1, dtype=t.dtype, device=t.device) ** rho)
    edges[0], edges[-1] = 0.0, 1.0
    return cell(t, edges)


@dataclass(frozen=True)
class Doubling:
    """Cells of equal width in sigma^(1/7), sigma from 80 to 0.002, whose number doubles with training.

    first 2^floor(k / K') cells, at most `last`, after k images, with K' such that `last` is reached in the last stage,
    also where it is no power of two times `first`.

    Args:
        first: cells at the start.
        last: cells at the end.
        images: length of the training.
    Source: Song & Dhariwal, Improved techniques for training consistency models, 2023, arXiv:2310.14189, the
        exponential schedule of discretisations.
    Differs: the grid ends in t = 0 and t = 1, noise and data themselves, not in sigma = 80 and 0.002.
    """

    first: int = 10
    last: int = 1280
    images: int = 409_600_000

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last or self.images < 1:
            raise ValueError(
                f"cells must be 1 <= first <= last, and images at least 1; got {self.first}, {self.last} and "
                f"{self.images}."
            )

    def __call__(self, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The edges of the cell of t [B]."""
        stages = math.ceil(math.log2(self.last / self.first)) + 1
        return noise_cell(t, min(self.first * 2 ** (step * stages // self.images), self.last))


@dataclass(frozen=True)
class Ratio:
    """The nearer noise level is a share of the farther.

    r = max(0, sigma [1 - g (1 + boost sigmoid(-steepness sigma))]), with
    g = max(base^-(j + 1), least) in stage j, which is `first` at the start and rises by one every `images`.

    Args:
        base: by which the gap shrinks from stage to stage.
        boost: how much wider the gap is close to the data.
        steepness: where that begins.
        images: length of a stage.
        first: the stage to begin with.
        least: smallest g.
    Source: Geng, Pokle, Luo, Lin & Kolter, Consistency models made easy, 2024, arXiv:2406.14548, the continuous
        schedule with the sigmoid; `least`: Lee, Xu, Geffner & others, Truncated consistency models, 2024,
        arXiv:2410.14895, released code, with 0.001 on CIFAR-10.
    Differs: the length of a stage is ours.
    """

    base: float = 2.0
    boost: float = 8.0
    steepness: float = 1.0
    images: int = 1_600_000
    first: int = 0
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.base <= 1 or self.images < 1:
            raise ValueError(f"base must be > 1 and images at least 1; got {self.base} and {self.images}.")

    def __call__(self, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """T [B], and the time of the nearer noise level."""
        gap = max(self.base ** -(self.first + step // self.images + 1.0), self.least)
        sigma = noise_level(t, 1e6)
        nearer = sigma * (1 - gap * (1 + self.boost * torch.sigmoid(-self.steepness * sigma))).clamp_min(0)
        return t, time_of_noise(nearer)
