"""A perceptron that gives many times of a trajectory at once."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._embedding import Condition, wave_features
from ._temporal import TemporalConvolution

__all__ = ["Temporal"]


class Temporal(nn.Module):
    """net(x, s, t, label) for a few dimensions: one perceptron for M times between s and t, mixed over the times.

    Args:
        shape: of one state.
        classes: number of labels; 0 for none.
        width: of the hidden layers.
        depth: number of hidden layers, each followed by a temporal convolution.
        modes: Fourier modes that the convolutions keep.
        dropout: share of hidden units dropped in training.
        frequencies: number of frequencies per time.
        highest: highest frequency, radians per unit of time.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: M; with more than one the result is [B, M, *].
    Cost: of a perceptron for each of the M times, which one evaluation gives together.
    Source: Zheng, Nie, Vahdat, Azizzadenesheli & Anandkumar, Fast sampling of diffusion models via operator learning,
        2022, arXiv:2211.13449, there around the blocks of a U-Net.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, width: int = 256, depth: int = 4, modes: int = 2,
        dropout: float = 0.0, frequencies: int = 4, highest: float = 8.0, numbers: Sequence[str] = (),
        vocabulary: int = 0, outputs: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.frequencies, self.highest, self.outputs = frequencies, highest, outputs
        d = math.prod(shape)
        self.labels = Condition(classes, width, numbers, vocabulary)
        self.enter = nn.Linear(d + 4 * frequencies, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.mix = nn.ModuleList(TemporalConvolution(width, modes) for _ in range(depth))
        self.leave = nn.Linear(width, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, *], s [B], t [B], condition -> [B, M, *], or [B, *] for one output."""
        m = self.outputs
        share = torch.arange(1, m + 1, device=x.device, dtype=t.dtype) / m
        spans, starts = ((t - s)[:, None] * share).flatten(), s.repeat_interleave(m)
        waves = [wave_features(z, self.frequencies, self.highest).to(x.dtype) for z in (starts, spans)]
        states = x.flatten(1).repeat_interleave(m, 0)
        h = self.enter(torch.cat([states, *waves], 1)).reshape(len(x), m, -1) + self.labels(cond, len(x))[:, None]
        for layer, mix in zip(self.hidden, self.mix, strict=True):
            h = mix(h + layer(self.dropout(nn.functional.silu(h))))
        y = self.leave(nn.functional.silu(h))
        return y.reshape(x.shape if m == 1 else (len(x), m, *x.shape[1:]))

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
