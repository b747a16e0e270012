"""A transformer on patches."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._embedding import Condition, TwoTimes, wave_features

__all__ = ["DiT"]


class _Block(nn.Module):
    """Attention, then a perceptron, each scaled, shifted and gated by the condition (adaptive norm, zero at start)."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(ratio * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)[:, None].chunk(6, -1)
        x = x + gate1 * self._attend(self.norm(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        # Fused outside a derivative; core.calculus swaps it for a form with a forward derivative inside one.
        y = F.scaled_dot_product_attention(self.query_norm(q), self.key_norm(k), v)
        return self.project(y.transpose(1, 2).reshape(x.shape))


class DiT(nn.Module):
    """net(x, s, t, label) for images: patches, adaptive-norm transformer blocks, patches back.

    Args:
        shape: of one image, (C, H, W).
        classes: number of labels; 0 for none.
        patch: side of a patch; divides H and W.
        width: of the tokens.
        depth: number of blocks.
        heads: number of attention heads; divides width.
        ratio: hidden width of the perceptrons over width.
        dropout: share of hidden units dropped in training.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Source: Peebles & Xie, Scalable diffusion models with transformers, 2022, arXiv:2212.09748, Section 3.
    Differs: two times; queries and keys are normalised (Dehghani & others, Scaling vision transformers to 22 billion
        parameters, 2023, arXiv:2302.05442), which keeps tangents bounded.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, patch: int = 2, width: int = 192, depth: int = 6, heads: int = 6,
        ratio: float = 4.0, dropout: float = 0.0, numbers: Sequence[str] = (),
        vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, side = shape
        if height % patch or side % patch or width % heads:
            raise ValueError(
                f"patch must divide the image and heads the width; got patch {patch} for {height} x {side} and "
                f"{heads} heads for width {width}."
            )
        self.patch, self.grid = patch, (height // patch, side // patch)
        self.times, self.labels = TwoTimes(width), Condition(classes, width, numbers, vocabulary)
        self.enter = nn.Linear(channels * patch**2, width)
        self.place = nn.Parameter(_places(*self.grid, width))
        self.blocks = nn.ModuleList(_Block(width, heads, ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.leave, self.outputs = nn.Linear(width, channels * outputs * patch**2), outputs
        for layer in (self.modulation, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        return self.body(x, [self.embed(s, t, cond)] * (self.depth + 1))

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and the tokens [B, places, width] after the block of that number, from 1 to `depth`."""
        kept: list[Tensor] = []
        y = self.body(x, [self.embed(s, t, cond)] * (self.depth + 1), kept)
        return y, kept[block - 1]

    def embed(self, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """What the blocks are told of times [B] and condition: [B, width]."""
        return F.silu(self.times(s, t) + self.labels(cond, len(s)))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def body(self, x: Tensor, told: Sequence[Tensor], kept: list[Tensor] | None = None) -> Tensor:
        """The network with what each block is told, and what the last layer is: depth + 1 of [B, width].

        The tokens after each block are appended to `kept`, if that is given.
        """
        h = self.enter(F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)) + self.place
        for block, c in zip(self.blocks, told[:-1], strict=True):
            h = block(h, c)
            if kept is not None:
                kept.append(h)
        shift, scale = self.modulation(told[-1])[:, None].chunk(2, -1)
        h = self.leave(self.norm(h) * (1 + scale) + shift)
        y = F.pixel_shuffle(h.transpose(1, 2).reshape(len(x), -1, *self.grid), self.patch)
        return y if self.outputs == 1 else y.unflatten(1, (self.outputs, -1))

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)


def _places(rows: int, columns: int, width: int) -> Tensor:
    """Fixed waves of row and column as the first guess of the place of each token [rows * columns, width]."""
    count = math.ceil(width / 4)
    row, column = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    waves = [wave_features(z.flatten() / max(rows, columns), count, 3.0 * max(rows, columns)) for z in (row, column)]
    return torch.cat(waves, 1)[:, :width] / math.sqrt(width)
