"""A plain transformer on large patches of pixels, whose output is a prediction of the data."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._embedding import Condition, TwoTimes
from ._transformer import Block, KeepsTokens, Leave, patched, places, rotations, to_image, to_tokens

__all__ = ["JiT"]


class JiT(KeepsTokens):
    """net(x, s, t, label) for images: just an image transformer, to be used with the map "data_prediction".

    Patches pass a bottleneck on their way in: data lie near few dimensions, and noise, which fills all, need not get
    through when the network tells data. Blocks have RMS norms, SwiGLU perceptrons and rotary places; from block `start`
    on, tokens of the condition stand before those of the image.

    Args:
        shape: of one image, (C, H, W).
        classes: number of labels; 0 for none.
        patch: side of a patch; divides H and W; 16 or 32 for images of 256 or 512 pixels.
        width: of the tokens.
        depth: number of blocks.
        heads: number of attention heads; width over heads is a multiple of 4.
        bottleneck: dimensions that patches are projected on before they become tokens.
        context: number of tokens of the condition.
        start: block before which they join; depth / 3 in the published networks.
        ratio: hidden width of the perceptrons over width, before the third that the gate costs is taken off.
        dropout: share of hidden units dropped in training.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Cost: grows with the number of patches, attention with its square; the size of a patch hardly matters.
    Source: Li & He, Back to basics: let denoising generative models denoise, 2025, arXiv:2511.13720, Section 4.
    Differs: two times; places are learned beside the rotary ones, where the release has fixed waves; dropout after the
        gate in all blocks, there in the middle half and after projections too.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, patch: int = 4, width: int = 192, depth: int = 6, heads: int = 6,
        bottleneck: int = 128, context: int = 8, start: int = 2, ratio: float = 4.0, dropout: float = 0.0,
        numbers: Sequence[str] = (), vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if context and not 0 <= start < depth:
            raise ValueError(f"start must be one of the {depth} blocks, from 0 on; got {start}. Or set context to 0.")
        self.patch, self.grid, self.outputs, self.start = patch, patched(shape, patch, width, heads), outputs, start
        self.times, self.labels = TwoTimes(width), Condition(classes, width, numbers, vocabulary)
        pixels = shape[0] * patch**2
        self.enter = nn.Sequential(nn.Linear(pixels, bottleneck, bias=False), nn.Linear(bottleneck, width))
        self.place = nn.Parameter(places(*self.grid, width))
        self.context = nn.Parameter(0.02 * torch.randn(context, width)) if context else None
        turn = rotations(*self.grid, width // heads)
        still = torch.stack([turn.new_ones(context, turn.shape[2]), turn.new_zeros(context, turn.shape[2])])
        self.register_buffer("rotation", torch.cat([still, turn], 1), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, ratio, dropout, modern=True) for _ in range(depth))
        self.leave = Leave(width, width, pixels * outputs, modern=True)

    def run(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, kept: list[Tensor]) -> Tensor:
        """The result; the image's tokens after each block are appended to `kept`."""
        label = self.labels(cond, len(x))
        c = F.silu(self.times(s, t) + label)[:, None]
        h = self.enter(to_tokens(x, self.patch)) + self.place
        patches = h.shape[1]
        for i, block in enumerate(self.blocks):
            if self.context is not None and i == self.start:
                h = torch.cat([self.context + label[:, None], h], 1)
            h = block(h, c, self.rotation[:, -h.shape[1] :])
            kept.append(h[:, -patches:])
        return to_image(self.leave(kept[-1], c), self.patch, self.grid, self.outputs)

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)

    rotation: Tensor
