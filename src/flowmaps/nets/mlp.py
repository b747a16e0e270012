"""A multilayer perceptron for data of a few dimensions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._embedding import Condition, Waves

__all__ = ["MLP"]


class MLP(nn.Module):
    """net(x, s, t, label) by fully connected layers on the flattened state and waves of s and t - s.

    Args:
        shape: of one state.
        classes: number of labels; 0 for none.
        width: of the hidden layers.
        depth: number of hidden layers.
        residual: add each hidden layer to its input, after normalising it.
        dropout: share of hidden units dropped in training.
        frequencies: number of frequencies per time.
        highest: highest frequency, radians per unit of time.
        waves: number of random waves of the state beside the state itself, for laws with sharp edges.
        wave_scale: standard deviation of their wave vectors, radians per unit of the state.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Cost: grows with depth width^2, and with width times the dimension of a state.
    Source: for the waves of the state, Tancik et al., Fourier features let networks learn high frequency functions in
        low dimensional domains, 2020, arXiv:2006.10739, Gaussian mapping.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, width: int = 256, depth: int = 4, residual: bool = False,
        dropout: float = 0.0, frequencies: int = 4, highest: float = 8.0, waves: int = 0, wave_scale: float = 2.0,
        numbers: Sequence[str] = (), vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.residual, self.times = tuple(shape), residual, Waves(frequencies, highest)
        d = math.prod(shape)
        self.labels, self.outputs = Condition(classes, width, numbers, vocabulary), outputs
        self.register_buffer("waves", wave_scale * torch.randn(d, waves) if waves else None)
        self.enter = nn.Linear(d + 2 * waves + 4 * frequencies, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) if residual else nn.Identity() for _ in range(depth - 1))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.leave = nn.Linear(width, d * outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, *], s [B], t [B], condition -> [B, *]."""
        inputs = [x.flatten(1), self.times(s, t).to(x.dtype)]
        if self.waves is not None:
            angle = inputs[0] @ self.waves.to(x.dtype)
            inputs += [angle.sin(), angle.cos()]
        h = self.enter(torch.cat(inputs, 1)) + self.labels(cond, len(x))
        for norm, layer in zip(self.norms, self.hidden, strict=True):
            new = layer(self.dropout(nn.functional.silu(norm(h))))
            h = h + new if self.residual else new
        y = self.leave(nn.functional.silu(h))
        return y.reshape(x.shape if self.outputs == 1 else (len(x), self.outputs, *x.shape[1:]))

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)

    waves: Tensor | None
