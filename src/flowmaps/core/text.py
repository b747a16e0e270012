"""Short texts as vectors: what networks and critics that are told token ids begin with."""

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


class Text(nn.Module):
    """Embeds short texts, [B, L] -> [B, width]: a perceptron of the mean over words of silu(word + place).

    Words are token ids from 1 to vocabulary - 1; 0 stands for no word. Words add up after the silu, not before it, so
    that their order counts; what stands at the place of no word does not, so that texts may be padded to any length.

    Args:
        vocabulary: number of token ids, with the 0.
        width: of the embedding.
    Source: Zaheer, Kottur, Ravanbakhsh, Poczos, Salakhutdinov & Smola, Deep sets, 2017, arXiv:1703.06114, Theorem 2,
        for the sum inside a perceptron, here a mean over pairs of word and place.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.place = nn.Linear(16, width, bias=False)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [B, L] -> [B, width]."""
        each, said = self.each(tokens)
        said = said.to(each.dtype)[..., None]
        return self.mix((each * said).sum(1) / said.sum(1).clamp_min(1))

    def each(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] -> words at their places [B, L, width], and where there are words [B, L]."""
        place = torch.arange(tokens.shape[1], device=tokens.device, dtype=self.place.weight.dtype)
        each = nn.functional.silu(self.words(tokens) + self.place(wave_features(place / 64, 8, 64.0)))
        return each, tokens != 0
