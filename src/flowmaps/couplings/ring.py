"""A source in the plane that looks like a Gaussian of many dimensions does from afar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.random import Random, normal
from ..core.types import Pair
from .independent import gaussian_length

__all__ = ["Ring"]


@dataclass(frozen=True)
class Ring:
    """Points in the plane, as long as n ~ N(0, I) in D dimensions: a thin ring of radius sqrt(D).

    With the data "ring_modes" it simulates in two dimensions what source and data look like in many.

    Args:
        dimensions: D.
    Cost: no network evaluation; D draws for a point.
    Source: Lee, Kim & Lee, Is there a better source distribution than Gaussian? Exploring source distributions for
        image flow matching, 2025, arXiv:2512.18184, the two-dimensional simulation, with D = 3072 in the released code
        (simulations/run_whole_simulation.py).
    """

    gaussian = False

    dimensions: int = 3072

    def __post_init__(self) -> None:
        if self.dimensions < 2:
            raise ValueError(f"dimensions must be at least 2; got {self.dimensions}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, 2], independent of it."""
        return Pair(self.source(x1.shape, x1, cond, generator=generator), x1, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, 2].

        Raises:
            ValueError: if the shape is another.
        """
        if tuple(shape[1:]) != (2,):
            raise ValueError(f"a ring must lie in the plane, shape (B, 2); got {tuple(shape)}. Use another coupling.")
        n = normal((shape[0], self.dimensions), like, generator)
        # The direction of two coordinates is uniform and independent of all lengths.
        return n[:, :2] * (n.norm(dim=1) / n[:, :2].norm(dim=1))[:, None]

    def mean_length(self, shape: Sequence[int]) -> float:
        """Of source draws."""
        return gaussian_length(self.dimensions)
