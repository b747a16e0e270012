"""A convolutional network with skips between equal resolutions."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._embedding import Condition, TwoTimes

__all__ = ["UNet"]


def _norm(x: Tensor) -> Tensor:
    # Without affine parameters: an affine group norm under a forward derivative breaks the compiler.
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.group_norm(full, max(1, x.shape[1] // 16)).to(x.dtype)


class _Residual(nn.Module):
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
        h = _norm(self.first(F.silu(_norm(x)))) * (1 + scale) + shift
        return self.skip(x) + self.second(self.dropout(F.silu(h)))


class _Attention(nn.Module):
    """Self-attention over the places of an image, added to the input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        qkv = self.qkv(_norm(x)).reshape(batch, 3, self.heads, channels // self.heads, -1).transpose(3, 4)
        q, k, v = qkv.unbind(1)
        q, k = (F.normalize(z, dim=-1) * z.shape[-1] ** 0.5 for z in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return x + self.project(y.reshape(x.shape))


class UNet(nn.Module):
    """net(x, s, t, label) for images: residual blocks down and up the resolutions, attention at the lowest.

    Args:
        shape: of one image, (C, H, W).
        classes: number of labels; 0 for none.
        width: channels at full resolution; a multiple of 16 is best.
        multipliers: channels over width at each resolution, from full to lowest.
        blocks: residual blocks per resolution.
        heads: attention heads at the lowest resolution.
        dropout: share of channels' values dropped in training.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Source: Dhariwal & Nichol, Diffusion models beat GANs on image synthesis, 2021, arXiv:2105.05233, Section 3.
    Differs: two times; norms have no weights of their own, the condition scales and shifts; queries and keys are
        normalised; halved resolutions by averaging, doubled ones by repetition, then a convolution.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, width: int = 64, multipliers: Sequence[int] = (1, 2),
        blocks: int = 2, heads: int = 4, dropout: float = 0.0, numbers: Sequence[str] = (),
        vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, side = shape
        halvings = 2 ** (len(multipliers) - 1)
        if height % halvings or side % halvings or width * multipliers[-1] % heads:
            raise ValueError(
                f"the image must halve {len(multipliers) - 1} times and heads divide the lowest level's channels; got "
                f"{height} x {side}, and {heads} heads for {width * multipliers[-1]} channels."
            )
        embed = 4 * width
        self.times, self.labels = TwoTimes(embed), Condition(classes, embed, numbers, vocabulary)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        stack, now = [width], width
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(nn.Conv2d(now, now, 3, padding=1))
                stack.append(now)
            for _ in range(blocks):
                self.down.append(_Residual(now, width * multiplier, embed, dropout))
                now = width * multiplier
                stack.append(now)
        self.middle = nn.ModuleList([_Residual(now, now, embed, dropout), _Residual(now, now, embed, dropout)])
        self.attention = _Attention(now, heads)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(_Residual(now + stack.pop(), width * multiplier, embed, dropout))
                now = width * multiplier
            if level:
                self.up.append(nn.Conv2d(now, now, 3, padding=1))
        self.leave, self.outputs = nn.Conv2d(now, channels * outputs, 3, padding=1), outputs
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        return self.body(x, [self.embed(s, t, cond)] * (self.depth + 1))

    def embed(self, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """What the blocks are told of times [B] and condition: [B, 4 width]."""
        return F.silu(self.times(s, t) + self.labels(cond, len(s)))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(isinstance(layer, _Residual) for layer in (*self.down, *self.middle, *self.up))

    def body(self, x: Tensor, told: Sequence[Tensor]) -> Tensor:
        """The network with what each block is told: the first `depth` of these [B, 4 width], from first to last."""
        c = iter(told)
        h = self.enter(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, next(c)) if isinstance(layer, _Residual) else layer(F.avg_pool2d(h, 2))
            skips.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, next(c))), next(c))
        for layer in self.up:
            if isinstance(layer, _Residual):
                h = layer(torch.cat([h, skips.pop()], 1), next(c))
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        y = self.leave(F.silu(_norm(h)))
        return y if self.outputs == 1 else y.unflatten(1, (self.outputs, -1))

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
