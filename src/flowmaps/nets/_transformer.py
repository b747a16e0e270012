"""What the transformers share: patches, places, and blocks that are told through adaptive norms."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_block, check_image
from ._embedding import wave_features


class KeepsTokens(nn.Module, ABC):
    """A network of images whose `run` notes down the image's tokens after each of its `blocks`."""

    blocks: nn.ModuleList

    @abstractmethod
    def run(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, kept: list[Tensor]) -> Tensor:
        """The result [B, C, H, W]; the image's tokens after each block are appended to `kept`."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        return self.run(x, s, t, cond, [])

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and the image's tokens [B, places, width] after the block of that number, from 1 on."""
        check_block(block, len(self.blocks))
        kept: list[Tensor] = []
        return self.run(x, s, t, cond, kept), kept[block - 1]


def patched(shape: Sequence[int], patch: int, width: int, heads: int) -> tuple[int, int]:
    """Rows and columns of patches of an image (C, H, W).

    Raises:
        ValueError: if the shape is not an image's, patch does not divide it, or heads not the width.
    """
    _, height, side = check_image(shape)
    if height % patch or side % patch or width % heads:
        raise ValueError(
            f"patch must divide the image and heads the width; got patch {patch} for {height} x {side} and "
            f"{heads} heads for width {width}."
        )
    return height // patch, side // patch


def to_tokens(x: Tensor, patch: int) -> Tensor:
    """Patches of images as tokens: [B, C, H, W] -> [B, L, C patch^2]."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def to_image(h: Tensor, patch: int, grid: tuple[int, int], outputs: int = 1) -> Tensor:
    """Tokens as images: [B, L, outputs C patch^2] -> [B, C, H, W], or [B, outputs, C, H, W] for more than one."""
    y = F.pixel_shuffle(h.transpose(1, 2).reshape(len(h), -1, *grid), patch)
    return y if outputs == 1 else y.reshape(len(y), outputs, -1, *y.shape[2:])


def places(rows: int, columns: int, width: int) -> Tensor:
    """Fixed waves of row and column as the first guess of the place of each token [rows * columns, width]."""
    count = math.ceil(width / 4)
    row, column = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    waves = [wave_features(z.flatten() / max(rows, columns), count, 3.0 * max(rows, columns)) for z in (row, column)]
    return torch.cat(waves, 1)[:, :width] / math.sqrt(width)


def rotations(rows: int, columns: int, head: int) -> Tensor:
    """Cosines and sines that turn pairs of a head's channels by row and by column [2, rows * columns, head / 2].

    Source: Su, Lu, Pan & others, RoFormer: enhanced transformer with rotary position embedding, 2021, arXiv:2104.09864,
        Eq. (15), here with half of the channels for each direction.
    Raises:
        ValueError: if head is not a multiple of 4.
    """
    if head % 4:
        raise ValueError(f"width over heads must be a multiple of 4, to be turned by two places; got {head}.")
    rate = 10000 ** -(torch.arange(head // 4) / (head // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angle = torch.cat([row.flatten()[:, None] * rate, column.flatten()[:, None] * rate], 1)
    return torch.stack([angle.cos(), angle.sin()])


def turned(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Each pair of channels of x [B, heads, L, head] turned by its angle."""
    if rotation is None:
        return x
    cos, sin = rotation.to(x.dtype)
    a, b = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class SwiGLU(nn.Module):
    """A perceptron with a gate: W3 (silu(W1 x) * W2 x), as large as a plain one of the same ratio.

    Source: Shazeer, GLU variants improve transformer, 2020, arXiv:2002.05202, Eq. (6).
    """

    def __init__(self, width: int, ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(ratio * width * 2 / 3)
        self.enter, self.leave = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[*, width] -> [*, width]."""
        gate, value = self.enter(x).chunk(2, -1)
        return self.leave(self.dropout(F.silu(gate) * value))


def perceptron(width: int, ratio: float, dropout: float) -> nn.Module:
    """A perceptron of one hidden layer, [*, width] -> [*, width]."""
    hidden = int(ratio * width)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(hidden, width))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zero at the start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Attention, then a perceptron, each scaled, shifted and gated by the condition (adaptive norm, zero at start).

    Args:
        width: of the tokens.
        heads: number of attention heads; divides width.
        ratio: hidden width of the perceptron over width.
        dropout: share of hidden units dropped in training.
        modern: RMS norms with weights and a SwiGLU, in place of layer norms without and a GELU.
        modulation: makes shifts, scales and gates [.., 6 width] of what the block is told; a linear layer by default.
    Source: Peebles & Xie, Scalable diffusion models with transformers, 2022, arXiv:2212.09748, Section 3.
    Differs: queries and keys are normalised (Dehghani & others, Scaling vision transformers to 22 billion parameters,
        2023, arXiv:2302.05442), which keeps tangents bounded.
    """

    def __init__(
        self, width: int, heads: int, ratio: float, dropout: float, *, modern: bool = False,
        modulation: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = heads
        self.modulation = zero_linear(width, 6 * width) if modulation is None else modulation
        norm = nn.RMSNorm(width) if modern else nn.LayerNorm(width, elementwise_affine=False)
        self.norm, self.second_norm = norm, nn.RMSNorm(width) if modern else norm
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = (SwiGLU if modern else perceptron)(width, ratio, dropout)

    def forward(self, x: Tensor, cond: Tensor, rotation: Tensor | None = None, shared: Tensor | float = 0.0) -> Tensor:
        """Tokens [B, L, width], told [B, 1 or L, *] -> [B, L, width]; `shared` is added to shifts, scales and gates."""
        told = (self.modulation(cond) + shared).chunk(6, -1)
        # Fused outside a derivative; core.calculus swaps it for a form with a forward derivative inside one.
        return self.finish(x, joined(F.scaled_dot_product_attention(*self.split(x, told, rotation))), told)

    def split(self, x: Tensor, told: Sequence[Tensor], rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens [B, L, width], [B, heads, L, width / heads] each."""
        qkv = self.qkv(self.norm(x) * (1 + told[1]) + told[0])
        q, k, v = apart(qkv, 3, self.heads)
        return turned(self.query_norm(q), rotation), turned(self.key_norm(k), rotation), v

    def finish(self, x: Tensor, heard: Tensor, told: Sequence[Tensor]) -> Tensor:
        """Add what attention heard [B, L, width], then the perceptron, by the six parts of the modulation."""
        _, _, gate1, shift2, scale2, gate2 = told
        x = x + gate1 * self.project(heard)
        return x + gate2 * self.mlp(self.second_norm(x) * (1 + scale2) + shift2)


def apart(z: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """Tokens [B, L, count width] as `count` of [B, heads, L, width / heads]."""
    # Not by unflatten, which the compiler cannot follow inside a derivative; and for batches of none, no -1.
    return z.reshape(*z.shape[:2], count, heads, z.shape[2] // (count * heads)).permute(2, 0, 3, 1, 4).unbind(0)


def joined(y: Tensor) -> Tensor:
    """The heads side by side again: [B, heads, L, width / heads] -> [B, L, width]."""
    return y.transpose(1, 2).flatten(2)


class Leave(nn.Module):
    """The last layer: norm, shift and scale by the condition, and a linear map, zero at the start.

    Args:
        width: of the tokens.
        told: width of what it is told.
        outputs: width of what it gives.
        modern: an RMS norm with weights in place of a layer norm without.
    """

    def __init__(self, width: int, told: int, outputs: int, modern: bool = False) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width) if modern else nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.linear = zero_linear(told, 2 * width), zero_linear(width, outputs)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Tokens [B, L, width], told [B, 1 or L, told] -> [B, L, outputs]."""
        shift, scale = self.modulation(cond).chunk(2, -1)
        return self.linear(self.norm(x) * (1 + scale) + shift)
