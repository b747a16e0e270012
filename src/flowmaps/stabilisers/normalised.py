"""A correction of at most unit length."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.shapes import expand_time

__all__ = ["Normalised"]


@dataclass(frozen=True)
class Normalised:
    """The correction over its length: g / (|g| + offset), or with `mean` over its root mean square.

    Args:
        offset: the length below which it is left nearly as it is.
        mean: whether the length is per dimension, so that it does not depend on the number of dimensions.
    Source: Lu & Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2024, arXiv:2410.11081,
        Section 4.2, tangent normalization with c = 0.1.
    """

    offset: float = 0.1
    mean: bool = False

    def __post_init__(self) -> None:
        if self.offset <= 0:
            raise ValueError(f"offset must be > 0, so that no correction divides by zero; got {self.offset}.")

    def __call__(self, g: Tensor) -> Tensor:
        """The normalised correction [B, *]."""
        length = g.to(torch.promote_types(g.dtype, torch.float32)).flatten(1).norm(dim=1)
        if self.mean:
            length = length / g[0].numel() ** 0.5
        return g / (expand_time(length, g) + self.offset)
