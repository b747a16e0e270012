"""A transformer on patches."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_block
from ._embedding import Condition, TwoTimes
from ._transformer import Block, patched, places, to_image, to_tokens, zero_linear

__all__ = ["DiT"]


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
    Cost: grows with the number of patches, attention with its square.
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
        self.patch, self.grid = patch, patched(shape, patch, width, heads)
        self.times, self.labels = TwoTimes(width), Condition(classes, width, numbers, vocabulary)
        self.enter = nn.Linear(shape[0] * patch**2, width)
        self.place = nn.Parameter(places(*self.grid, width))
        self.blocks = nn.ModuleList(Block(width, heads, ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero_linear(width, 2 * width)
        self.leave, self.outputs = zero_linear(width, shape[0] * outputs * patch**2), outputs

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        return self.body(x, [self.embed(s, t, cond)] * (self.depth + 1))

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and the tokens [B, places, width] after the block of that number, from 1 to `depth`."""
        check_block(block, self.depth)
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
        h = self._entered(x)
        for block, c in zip(self.blocks, told[:-1], strict=True):
            h = block(h, c[:, None])
            if kept is not None:
                kept.append(h)
        return self._left(h, told[-1])

    @property
    def halfway(self) -> int:
        """Most blocks at each end that leave one between them."""
        return (self.depth - 1) // 2

    def reusing(
        self, x: Tensor, s: Tensor, t: Tensor, cond: Any, outer: int, inner: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The result, and what the blocks between first and last `outer` add to the tokens; or that is given."""
        c, end = self.embed(s, t, cond), self.depth - outer
        h = self._through(self._entered(x), c, 0, outer)
        if inner is None:
            before, h = h, self._through(h, c, outer, end)
            inner = h - before
        else:
            h = h + inner
        return self._left(self._through(h, c, end, self.depth), c), inner

    def _entered(self, x: Tensor) -> Tensor:
        return self.enter(to_tokens(x, self.patch)) + self.place

    def _through(self, h: Tensor, c: Tensor, first: int, end: int) -> Tensor:
        for block in self.blocks[first:end]:
            h = block(h, c[:, None])
        return h

    def _left(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)[:, None].chunk(2, -1)
        h = self.leave(self.norm(h) * (1 + scale) + shift)
        return to_image(h, self.patch, self.grid, self.outputs)

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
