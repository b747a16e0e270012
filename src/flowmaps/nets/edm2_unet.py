"""A convolutional network in which signals, weights and steps keep their magnitude."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import check_image
from ._convolutional import image_features
from ._embedding import Condition
from ._magnitude import Block, Times, Weighted, beside, mixed, normalised, silu

__all__ = ["EDM2UNet"]


class EDM2UNet(nn.Module):
    """net(x, s, t, label) for images: the magnitude-preserving U-Net, without biases or learned norms.

    Every operation keeps unit variance; weights have unit norm and are put back to it after each step, so that the
    learning rate alone says how far they turn: decay it as 1 / sqrt(steps). The output is zero at the start. All this
    but for the embedding of conditions, whose weights and biases are free, and whose result is normalised.

    Args:
        shape: of one image, (C, H, W), of unit variance: use the map "preconditioned".
        classes: number of labels; 0 for none.
        width: channels at full resolution; 192 in the published network S, 128 in XS.
        multipliers: channels over width at each resolution, from full to lowest; 1, 2, 3, 4 as published.
        blocks: residual blocks per resolution; 3 as published.
        attention: shorter sides of the resolutions with attention; the middle always has it.
        head: channels per attention head.
        dropout: share of channels' values dropped in training.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Cost: grows with the pixels and with width^2, attention with the square of its places.
    Source: Karras, Aittala, Lehtinen, Hellsten, Aila & Laine, Analyzing and improving the training dynamics of
        diffusion models, 2023, arXiv:2312.02696, configuration G, Figure 21 of Appendix B.
    Differs: two times, in place of the logarithm of the noise; conditions are embedded as in the other networks here
        and then normalised, where the release has a layer of unit weights without bias on one-hot labels, and no
        condition has an embedding of its own, which is zero there; weights are put back
        after a step, there before an evaluation, which makes no difference to what is computed.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, width: int = 64, multipliers: Sequence[int] = (1, 2),
        blocks: int = 2, attention: Sequence[int] = (16, 8), head: int = 64, dropout: float = 0.0,
        numbers: Sequence[str] = (), vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, side = check_image(shape)
        halvings, sizes = 2 ** (len(multipliers) - 1), [width * m for m in multipliers]
        attends = [min(height, side) >> level in attention for level in range(len(sizes))]
        uneven = any(size % head for size, attention_here in zip(sizes, attends, strict=True) if attention_here)
        if height % halvings or side % halvings or uneven or sizes[-1] % max(1, sizes[-1] // head):
            raise ValueError(
                f"the image must halve {len(sizes) - 1} times and head divide the channels where there is attention, "
                f"as there is in the middle; got {height} x {side}, and heads of {head} for {sizes} channels."
            )
        told = max(sizes)
        self.times, self.labels = Times(width, told), Condition(classes, told, numbers, vocabulary)
        self.enter = Weighted(channels + 1, width, 3)
        self.down, self.up, stack, now = nn.ModuleList(), nn.ModuleList(), [width], width
        for level, size in enumerate(sizes):
            heads = size // head if attends[level] else 0
            if level:
                self.down.append(Block(now, now, told, dropout, decodes=False, resample="down"))
                stack.append(now)
            for _ in range(blocks):
                self.down.append(Block(now, size, told, dropout, decodes=False, attends=heads))
                stack.append(now := size)
        self.up.append(Block(now, now, told, dropout, decodes=True, attends=max(1, now // head)))
        self.up.append(Block(now, now, told, dropout, decodes=True))
        for level, size in reversed(list(enumerate(sizes))):
            heads = size // head if attends[level] else 0
            if level < len(sizes) - 1:
                self.up.append(Block(now, now, told, dropout, decodes=True, resample="up"))
            for _ in range(blocks + 1):
                wide = now + stack.pop()
                self.up.append(Block(wide, size, told, dropout, decodes=True, attends=heads, joins=True))
                now = size
        self.leave, self.gain = Weighted(now, channels * outputs, 3), nn.Parameter(torch.zeros([]))
        self.outputs = outputs

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        return self.body(x, [self.embed(s, t, cond)] * (self.depth + 1))

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and what the block of that number, from 1 to `depth`, has made of it: [B, places, channels]."""
        return image_features(self, x, s, t, cond, block)

    def embed(self, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """What the blocks are told of times [B] and condition: [B, width of the widest]."""
        return silu(mixed(self.times(s, t), normalised(self.labels(cond, len(s)), 1)))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.down) + len(self.up)

    def body(self, x: Tensor, told: Sequence[Tensor], kept: list[Tensor] | None = None) -> Tensor:
        """The network with what each block is told: the first `depth` of these, from first to last.

        What each block makes of the state is appended to `kept`, if that is given.
        """
        c, kept = iter(told), [] if kept is None else kept
        skips = [self.enter(torch.cat([x, torch.ones_like(x[:, :1])], 1))]
        for block in self.down:
            skips.append(block(skips[-1], next(c)))
        kept.extend(skips[1:])
        h = skips[-1]
        for block in self.up:
            h = block(beside(h, skips.pop()) if block.joins else h, next(c))
            kept.append(h)
        y = self.leave(h, self.gain)
        return y if self.outputs == 1 else y.reshape(len(y), self.outputs, -1, *y.shape[2:])

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
