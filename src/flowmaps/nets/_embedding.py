"""What every network does with its two times and with its labels."""

import math

import torch
from torch import Tensor, nn


def wave_features(t: Tensor, count: int, highest: float) -> Tensor:
    """Sines and cosines of t [B] at `count` frequencies spread geometrically from 1 to `highest` rad: [B, 2 count].

    Low frequencies on purpose: time derivatives are part of the losses, and grow with the frequency.
    """
    rate = torch.exp(torch.linspace(0, math.log(highest), count, device=t.device, dtype=t.dtype))
    angle = t[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


class TwoTimes(nn.Module):
    """Embeds departure time and span: MLP(waves of s) + MLP(waves of t - s), [B], [B] -> [B, width].

    Args:
        width: of the embedding.
        count: frequencies per time.
        highest: highest frequency in radians per unit of time.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Section
        4.3 and Table 1c (embedding the time of the state and the span is best).
    """

    def __init__(self, width: int, count: int = 16, highest: float = 32.0) -> None:
        super().__init__()
        self.count, self.highest = count, highest
        self.departure = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))
        self.span = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        """[B], [B] -> [B, width]."""
        return self.departure(wave_features(s, self.count, self.highest)) + self.span(
            wave_features(t - s, self.count, self.highest)
        )


class Labels(nn.Module):
    """Embeds labels 0 ... classes - 1, and the null label `classes`; no condition at all is the null label.

    Args:
        classes: number of classes.
        width: of the embedding.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.3)

    def forward(self, cond: Tensor | None, batch: int) -> Tensor:
        """[B] or None -> [B, width]."""
        return self.table(self.null(batch) if cond is None else cond)

    def null(self, batch: int) -> Tensor:
        """The null label for a batch [B]."""
        return torch.full((batch,), self.classes, device=self.table.weight.device)
