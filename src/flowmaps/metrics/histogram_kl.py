"""How far two samples in the plane are apart, by counting them in cells."""

import torch
from torch import Tensor

__all__ = ["histogram_kl"]


def histogram_kl(data: Tensor, samples: Tensor, bins: int = 50, low: float = -1.0, high: float = 1.0) -> float:
    """KL divergence from the histogram of data to the histogram of samples, sum p log(p / q), nats.

    Cells that no sample hits count as if 1e-10 of the samples did. Finite samples alone give a positive value: report
    it beside that of two independent samples of the data.

    Args:
        data: points [N, 2].
        samples: points [M, 2].
        bins: cells along each side.
        low: lower edge of the square on both axes.
        high: upper edge. Points outside the square are not counted.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Appendix G.1, "KL computation", Eq. (103) (50 x 50 cells on [-1, 1]^2, 64,000
        samples).
    Differs: the data's law is a histogram too, there the exact density at the cells' centres.
    """

    def histogram(x: Tensor) -> Tensor:
        cell = ((x.double() - low) / (high - low) * bins).floor().long()
        inside = ((cell >= 0) & (cell < bins)).all(1)
        count = torch.bincount(cell[inside] @ torch.tensor([bins, 1], device=x.device), minlength=bins * bins)
        return count.double() / len(x)

    p, q = histogram(data), histogram(samples).clamp_min(1e-10)
    return float(torch.where(p > 0, p * (p.clamp_min(1e-300) / q).log(), 0.0).sum())
