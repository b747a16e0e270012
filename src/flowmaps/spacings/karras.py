"""Cells whose number grows like a square root."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.spacing import noise_cell

__all__ = ["Karras"]


@dataclass(frozen=True)
class Karras:
    """Cells of equal width in sigma^(1/7), sigma from 80 to 0.002, whose number grows like a root of training.

    N = ceil(sqrt(k / K ((last + 1)^2 - first^2) + first^2) - 1) cells after k of K images.

    Args:
        first: grid points at the start, one more than cells; 1 cell at least.
        last: cells at the end.
        images: length K of the training.
    Source: Song, Dhariwal, Chen & Sutskever, Consistency models, 2023, arXiv:2303.01469, the schedule N(k) with 2 and
        150; the grid: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models,
        2022, arXiv:2206.00364, the time steps with rho = 7.
    Differs: the grid ends in t = 0 and t = 1, noise and data themselves, not in sigma = 80 and 0.002.
    """

    first: int = 2
    last: int = 150
    images: int = 409_600_000

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.last or self.images < 1:
            raise ValueError(
                f"the grid must have 2 <= first <= last, and images be at least 1; got {self.first}, {self.last} and "
                f"{self.images}."
            )

    def __call__(self, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The edges of the cell of t [B]."""
        done = min(1.0, step / self.images)
        return noise_cell(t, math.ceil(math.sqrt(done * ((self.last + 1) ** 2 - self.first**2) + self.first**2) - 1))
