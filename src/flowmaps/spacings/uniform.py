"""Cells of equal length in time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.spacing import cell

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    """Cells of equal length in t, the same from first to last.

    Args:
        cells: how many.
    """

    cells: int = 32

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ValueError(f"cells must be at least 1; got {self.cells}.")

    def __call__(self, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The edges of the cell of t [B]."""
        return cell(t, torch.linspace(0, 1, self.cells + 1, dtype=t.dtype, device=t.device))
