"""Every pair of times gets the weight that its own errors call for."""

import math

import torch
from torch import Tensor, nn

__all__ = ["Learned"]


class Learned(nn.Module):
    """The error under a learned log-variance: exp(-w_{s,t}) e + w_{s,t}, so that w settles at log E[e | s, t].

    w is linear in low-frequency cosines of s and t - s, starts at zero and trains with the map.

    Args:
        features: number of frequencies per time.
        separate: give s = t a w of its own, since flow matching's error there does not vanish and the map's next to it
            does; then nothing holds the weight of what the map learns, which can grow until training explodes.
    Source: Karras, Aittala, Lehtinen, Hellsten, Aila & Laine, Analyzing and improving the training dynamics of
        diffusion models, 2023, arXiv:2312.02696v2, Appendix B.2, Eq. (21); for two times: Boffi, Albergo &
        Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation, 2025,
        arXiv:2505.18825v2, Section 3, Eq. (19).
    Differs: our errors are means over dimensions, theirs sums, which shifts w by the log of the dimension.
    """

    def __init__(self, features: int = 8, separate: bool = False) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1; got {features}.")
        self.features = features
        self.both = nn.Linear(features**2, 1)
        self.diagonal = nn.Linear(features, 1) if separate else None
        for head in filter(None, (self.both, self.diagonal)):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def log_variance(self, s: Tensor, t: Tensor) -> Tensor:
        """w_{s,t} [B]."""
        k = math.pi * torch.arange(self.features, device=s.device)
        departure, span = (s[:, None] * k).cos(), ((t - s)[:, None] * k).cos()
        both = (departure[:, :, None] * span[:, None, :]).flatten(1) / self.features
        w = self.both(both).squeeze(1)
        return w if self.diagonal is None else torch.where(s == t, self.diagonal(departure).squeeze(1), w)

    def forward(self, error: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Weighted loss [B] from errors and times [B]; its value can be negative."""
        w = self.log_variance(s, t)
        return (-w).exp() * error + w
