"""How far samples in the plane are from others, or from a known law, by counting them in cells."""

import torch
from torch import Tensor

__all__ = ["histogram_kl"]


def histogram_kl(data: Tensor, samples: Tensor, bins: int = 50, low: float = -1.0, high: float = 1.0) -> float:
    """KL divergence from the law of the data to the histogram of samples, sum p log(p / q) over cells, nats.

    Cells that no sample hits count as if 1e-10 of the samples did. Finite samples alone give a positive value: report
    it beside the one that as many data have.

    Args:
        data: points [N, 2], whose histogram is taken, or the exact masses of the cells [bins, bins].
        samples: points [M, 2].
        bins: cells along each side.
        low: lower edge of the square on both axes.
        high: upper edge. Points outside the square are not counted.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Appendix G.1, "KL computation", Eq. (103) (50 x 50 cells on [-1, 1]^2, 64,000
        samples).
    Differs: the exact law is that of the cells, there the density at their centres.
    """

    def histogram(x: Tensor) -> Tensor:
        cell = ((x.double() - low) / (high - low) * bins).floor().long()
        inside = ((cell >= 0) & (cell < bins)).all(1)
        count = torch.bincount(cell[inside] @ torch.tensor([bins, 1], device=x.device), minlength=bins * bins)
        return count.double() / len(x)

    known = bins > 2 and data.shape == (bins, bins)
    p, q = data.double().flatten() if known else histogram(data), histogram(samples).clamp_min(1e-10)
    return float(torch.where(p > 0, p * (p.clamp_min(1e-300) / q).log(), 0.0).sum())
