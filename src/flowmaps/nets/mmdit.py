"""A transformer of two streams, image and text, that attend to each other."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._embedding import Condition, TwoTimes
from ._transformer import Block, KeepsTokens, Leave, apart, joined, patched, places, to_image, to_tokens, zero_linear

__all__ = ["MMDiT"]


class _Joint(nn.Module):
    """A block for each stream, around one attention over both."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.image, self.text = (Block(width, heads, ratio, dropout) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor, cond: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Image tokens [B, N, width] and text tokens [B, L, width] -> the same."""
        told_x, told_y = (stream.modulation(cond).chunk(6, -1) for stream in (self.image, self.text))
        both = zip(self.image.split(x, told_x), self.text.split(y, told_y), strict=True)
        heard = joined(F.scaled_dot_product_attention(*(torch.cat(z, 2) for z in both), attn_mask=mask))
        n = x.shape[1]
        return self.image.finish(x, heard[:, :n], told_x), self.text.finish(y, heard[:, n:], told_y)


class _Last(nn.Module):
    """The last block: the text is listened to, and does not change, since nobody would read it."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.image = heads, Block(width, heads, ratio, dropout)
        self.norm, self.modulation = nn.LayerNorm(width, elementwise_affine=False), zero_linear(width, 2 * width)
        self.key_value, self.key_norm = nn.Linear(width, 2 * width), nn.RMSNorm(width // heads)

    def forward(self, x: Tensor, y: Tensor, cond: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Image tokens [B, N, width] and text tokens [B, L, width] -> the image's, and the text as it was."""
        told = self.image.modulation(cond).chunk(6, -1)
        shift, scale = self.modulation(cond).chunk(2, -1)
        key, value = apart(self.key_value(self.norm(y) * (1 + scale) + shift), 2, self.heads)
        q, k, v = self.image.split(x, told)
        k, v = torch.cat([k, self.key_norm(key)], 2), torch.cat([v, value], 2)
        return self.image.finish(x, joined(F.scaled_dot_product_attention(q, k, v, mask)), told), y


class MMDiT(KeepsTokens):
    """net(x, s, t, text) for images: patches and words in two streams of their own, joined by attention.

    A condition is a text: token ids, or tokens that a text encoder has made, of which those of zeros are no words. A
    label is a text of one word. Times and the text as a whole, by the mean of its words, modulate both streams.

    Args:
        shape: of one image, (C, H, W).
        classes: number of labels; 0 for none.
        patch: side of a patch; divides H and W.
        width: of the tokens; the published networks have 64 depth.
        depth: number of blocks.
        heads: number of attention heads; divides width; depth in the published networks.
        ratio: hidden width of the perceptrons over width.
        dropout: share of hidden units dropped in training.
        numbers: names of numbers that a condition may hold beside the text, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are not.
        context: width of tokens from a text encoder, when conditions are [B, L, context]; 0 when they are not.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Cost: grows with the number of patches and words together, their attention with its square.
    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, Section 4 and Figure 2, with normalised queries and keys as in Section 5.3.2.
    Differs: two times; no words are masked, where the released code attends to padding; the text as a whole is the mean
        of its tokens, there the pooled output of two encoders; places of patches are learned; the queries of the text
        in the last block, which nothing uses, are left out.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, patch: int = 2, width: int = 384, depth: int = 6, heads: int = 6,
        ratio: float = 4.0, dropout: float = 0.0, numbers: Sequence[str] = (), vocabulary: int = 0, context: int = 0,
        outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, the block that listens to the text; got {depth}.")
        self.patch, self.grid, self.outputs = patch, patched(shape, patch, width, heads), outputs
        self.times, self.labels = TwoTimes(width), Condition(classes, width, numbers, vocabulary, context)
        self.enter = nn.Linear(shape[0] * patch**2, width)
        self.place = nn.Parameter(places(*self.grid, width))
        kinds = [_Joint] * (depth - 1) + [_Last]
        self.blocks = nn.ModuleList(kind(width, heads, ratio, dropout) for kind in kinds)
        self.leave = Leave(width, width, shape[0] * outputs * patch**2)

    def run(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, kept: list[Tensor]) -> Tensor:
        """The result; the image's tokens after each block are appended to `kept`."""
        c = F.silu(self.times(s, t) + self.labels(cond, len(x)))[:, None]
        words, said = self.labels.tokens(cond, len(x))
        h, y, mask = self.enter(to_tokens(x, self.patch)) + self.place, words, None
        if said is not None:
            mask = torch.cat([said.new_ones(h.shape[:2]), said], 1)[:, None, None]
        for block in self.blocks:
            h, y = block(h, y, c, mask)
            kept.append(h)
        return to_image(self.leave(h, c), self.patch, self.grid, self.outputs)

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
