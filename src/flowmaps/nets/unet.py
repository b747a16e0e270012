"""A convolutional network with skips between equal resolutions."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_image
from ._convolutional import Attention, Residual, group_norm, image_features
from ._embedding import Condition, TwoTimes

__all__ = ["UNet"]


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
        channels, height, side = check_image(shape)
        halvings = 2 ** (len(multipliers) - 1)
        if height % halvings or side % halvings or width * multipliers[-1] % heads:
            raise ValueError(
                f"the image must halve {len(multipliers) - 1} times and heads divide the lowest level's channels; got "
                f"{height} x {side}, and {heads} heads for {width * multipliers[-1]} channels."
            )
        embed = 4 * width
        self.times, self.labels = TwoTimes(embed), Condition(classes, embed, numbers, vocabulary)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up, stack, now = nn.ModuleList(), nn.ModuleList(), [width], width
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(nn.Conv2d(now, now, 3, padding=1))
                stack.append(now)
            for _ in range(blocks):
                self.down.append(Residual(now, width * multiplier, embed, dropout))
                now = width * multiplier
                stack.append(now)
        self.middle = nn.ModuleList([Residual(now, now, embed, dropout), Residual(now, now, embed, dropout)])
        self.attention = Attention(now, heads)
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(Residual(now + stack.pop(), width * multiplier, embed, dropout))
                now = width * multiplier
            if level:
                self.up.append(nn.Conv2d(now, now, 3, padding=1))
        self.leave, self.outputs = nn.Conv2d(now, channels * outputs, 3, padding=1), outputs
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        return self.body(x, [self.embed(s, t, cond)] * (self.depth + 1))

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and what the block of that number, from 1 to `depth`, has made of it: [B, places, channels]."""
        return image_features(self, x, s, t, cond, block)

    def embed(self, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """What the blocks are told of times [B] and condition: [B, 4 width]."""
        return F.silu(self.times(s, t) + self.labels(cond, len(s)))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(isinstance(layer, Residual) for layer in (*self.down, *self.middle, *self.up))

    def body(self, x: Tensor, told: Sequence[Tensor], kept: list[Tensor] | None = None) -> Tensor:
        """The network with what each block is told: the first `depth` of these [B, 4 width], from first to last.

        What each block makes of the state is appended to `kept`, if that is given.
        """
        skips, kept = [self.enter(x)], [] if kept is None else kept
        return self._left(self._inner(0, len(self.up), skips, iter(told), kept))

    @property
    def halfway(self) -> int:
        """Number of blocks on the way down."""
        return sum(isinstance(layer, Residual) for layer in self.down)

    def reusing(
        self, x: Tensor, s: Tensor, t: Tensor, cond: Any, outer: int, inner: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The result, and what comes up to the last blocks, one per skip of the first `outer`; or that is given."""
        down, up = ([i for i, layer in enumerate(way) if isinstance(layer, Residual)] for way in (self.down, self.up))
        first = down[outer - 1] + 1 if outer else 0
        last, skips, c = up[-first - 1], [self.enter(x)], repeat(self.embed(s, t, cond))
        self._descend(self.down[:first], skips, c, [])
        if inner is None:
            inner = self._inner(first, last, skips, c, [])
        return self._left(self._ascend(self.up[last:], inner, skips, c, [])), inner

    def _inner(self, first: int, last: int, skips: list[Tensor], c: Iterator[Tensor], kept: list[Tensor]) -> Tensor:
        """From before the layer `first` on the way down to before the layer `last` on the way up."""
        self._descend(self.down[first:], skips, c, kept)
        kept.append(self.middle[0](skips[-1], next(c)))
        kept.append(self.middle[1](self.attention(kept[-1]), next(c)))
        return self._ascend(self.up[:last], kept[-1], skips, c, kept)

    def _descend(self, way: Iterable[nn.Module], skips: list[Tensor], c: Iterator[Tensor], kept: list[Tensor]) -> None:
        for layer in way:
            if isinstance(layer, Residual):
                skips.append(layer(skips[-1], next(c)))
                kept.append(skips[-1])
            else:
                skips.append(layer(F.avg_pool2d(skips[-1], 2)))

    def _ascend(
        self, way: Iterable[nn.Module], h: Tensor, skips: list[Tensor], c: Iterator[Tensor], kept: list[Tensor]
    ) -> Tensor:
        for layer in way:
            if isinstance(layer, Residual):
                h = layer(torch.cat([h, skips.pop()], 1), next(c))
                kept.append(h)
            else:
                h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return h

    def _left(self, h: Tensor) -> Tensor:
        y = self.leave(F.silu(group_norm(h)))
        return y if self.outputs == 1 else y.unflatten(1, (self.outputs, -1))

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
