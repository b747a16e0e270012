"""Between the square and the length."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PseudoHuber"]


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(|a - b|^2 + c^2) - c with c = scale sqrt(D): the square for small errors, the length for large ones.

    Args:
        scale: c per square root of the dimension; towards 0 it is the plain length.
    Source: Song & Dhariwal, Improved techniques for training consistency models, 2023, arXiv:2310.14189, Section 3.3,
        with c = 0.00054 sqrt(D).
    """

    scale: float = 0.00054

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0, or the gradient at a perfect fit is undefined; got {self.scale}.")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [B], a sum over dimensions under the root."""
        c = self.scale * a[0].numel() ** 0.5
        square = (a - b).to(torch.promote_types(a.dtype, torch.float32)).square().flatten(1).sum(1)
        return (square + c**2).sqrt() - c
