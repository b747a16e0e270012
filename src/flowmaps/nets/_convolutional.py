"""Blocks of convolutional networks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_block


def group_norm(x: Tensor) -> Tensor:
    """Group norm of [B, C, H, W] in float32 or better, 16 channels to a group."""
    # Without affine parameters: an affine group norm under a forward derivative breaks the compiler.
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.group_norm(full, max(1, x.shape[1] // 16)).to(x.dtype)


class Residual(nn.Module):
    """Norm, convolution, scale and shift by the condition, norm, convolution, added to the input."""

    def __init__(self, channels: int, out: int, width: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * out)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.modulation(cond)[:, :, None, None].chunk(2, 1)
        h = group_norm(self.first(F.silu(group_norm(x)))) * (1 + scale) + shift
        return self.skip(x) + self.second(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over the places of an image, added to the input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        qkv = self.qkv(group_norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1).transpose(3, 4)
        q, k, v = qkv.unbind(1)
        q, k = (F.normalize(z, dim=-1) * z.shape[-1] ** 0.5 for z in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.project(y.reshape(x.shape))


def image_features(net: Any, x: Tensor, s: Tensor, t: Tensor, cond: Any, block: int) -> tuple[Tensor, Tensor]:
    """The result of a network of blocks, and the image that block made of the state: [B, *], [B, places, channels]."""
    check_block(block, net.depth)
    kept: list[Tensor] = []
    y = net.body(x, [net.embed(s, t, cond)] * (net.depth + 1), kept)
    return y, kept[block - 1].flatten(2).transpose(1, 2)
