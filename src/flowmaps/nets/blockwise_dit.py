"""A transformer whose last blocks are different ones in each segment of time."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.checks import check_block
from ..core.recurrent import RecurrentNet
from ._embedding import Condition, TwoTimes
from ._transformer import Block, Leave, patched, rotations, to_image, to_tokens, zero_linear

__all__ = ["BlockwiseDiT"]


def _low_rank(told: int, rank: int, width: int) -> nn.Module:
    """The own part of a block's modulation; the rest is shared by all blocks."""
    return nn.Sequential(nn.Linear(told, rank), zero_linear(rank, 6 * width))


class BlockwiseDiT(RecurrentNet):
    """net(x, s, t, label) for images: one trunk for all times, and a small stack of blocks for each segment of time.

    A jump from s to t is made by the stack of the segment [m/M, (m+1)/M) that s lies in, which is told both times; the
    trunk is told s. Nothing keeps t inside the segment, but what a stack knows of times beyond is what it was trained
    on: for maps that go from segment to segment use grids that hold the multiples of 1/M.

    Its memory, for the sampler "recurrent", are the trunk's features at the first state of a segment. At the states
    that follow in it the trunk is not evaluated: f(x_s) ~ f(x_start) + (s - start) M g(x_s), with a small network g
    that the loss "feature_residual" trains when all else is done. Let the grid hold the multiples of 1/M here too.

    Args:
        shape: of one image, (C, H, W).
        classes: number of labels; 0 for none.
        patch: side of a patch; divides H and W.
        width: of the tokens.
        segments: M; 6 as published.
        trunk: blocks of the trunk; 20 as published.
        depth: blocks of each stack; 5 as published.
        residual: blocks of g; 4 as published.
        heads: number of attention heads; width over heads is a multiple of 4.
        rank: of the blocks' own modulations; a quarter of the width as published.
        ratio: hidden width of the perceptrons over width.
        dropout: share of hidden units dropped in training.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Cost: of trunk + depth blocks, whatever the number of segments; without the trunk, of residual + depth.
    Source: Park, Lee, Joo & Kim, Blockwise flow matching: improving flow matching models for efficient high-quality
        generation, 2025, arXiv:2510.21167, and its released code. Its semantic feature guidance, which aligns the
        trunk's last tokens with those of an encoder at weight 0.05, is the loss "representation_alignment" with block
        = trunk.
    Differs: two times. Compiled, every stack is evaluated on the whole batch.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, patch: int = 2, width: int = 192, segments: int = 6,
        trunk: int = 6, depth: int = 2, residual: int = 2, heads: int = 6, rank: int = 48, ratio: float = 4.0,
        dropout: float = 0.0, numbers: Sequence[str] = (), vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if segments < 1:
            raise ValueError(f"segments must be at least 1; got {segments}.")
        self.patch, self.grid = patch, patched(shape, patch, width, heads)
        self.outputs, self.segments = outputs, segments
        self.times, self.labels = TwoTimes(width), Condition(classes, width, numbers, vocabulary)
        self.register_buffer("rotation", rotations(*self.grid, width // heads), persistent=False)
        pixels, form = shape[0] * patch**2, (width, heads, ratio, dropout)
        self.trunk_enter, self.trunk_shared = nn.Linear(pixels, width), zero_linear(width, 6 * width)
        self.trunk = nn.ModuleList(Block(*form, modulation=_low_rank(width, rank, width)) for _ in range(trunk))
        self.enter, self.shared = nn.Linear(pixels, width), zero_linear(2 * width, 6 * width)
        self.stacks = nn.ModuleList(
            nn.ModuleList(Block(*form, modulation=_low_rank(2 * width, rank, width)) for _ in range(depth))
            for _ in range(segments)
        )
        self.leave = Leave(width, 2 * width, pixels * outputs)
        self.residual = nn.ModuleList(Block(*form) for _ in range(residual))

    def segment(self, s: Tensor) -> Tensor:
        """The number of the segment that times [B] lie in, [B]; a grid's rounding does not move its border points."""
        return (s * self.segments + 1e-4).long().clamp(0, self.segments - 1)

    def features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The trunk's tokens [B, L, width], which depend on the departure alone."""
        return self._through_trunk(x, s, cond)[-1]

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and the tokens [B, L, width] after that block of the trunk; the last ones drive the stacks."""
        check_block(block, len(self.trunk))
        after = self._through_trunk(x, s, cond)
        return self.drive(x, s, t, cond, after[-1]), after[block]

    def _through_trunk(self, x: Tensor, s: Tensor, cond: Any) -> list[Tensor]:
        """The tokens on their way in, and after each block of the trunk."""
        c = self._told(s, s, cond)
        after, shared = [self.trunk_enter(to_tokens(x, self.patch))], self.trunk_shared(c)
        for block in self.trunk:
            after.append(block(after[-1], c, self.rotation, shared))
        return after

    def approximate(self, x: Tensor, s: Tensor, cond: Any, start: Tensor) -> Tensor:
        """The trunk's tokens from those at the start of the segment [B, L, width]; g alone gets a gradient."""
        share = s * self.segments - self.segment(s)
        h, c = self.trunk_enter(to_tokens(x, self.patch)).detach(), self._told(s, s, cond).detach()
        for block in self.residual:
            h = block(h, c, self.rotation)
        return start.detach() + share[:, None, None].to(h.dtype) * h

    def drive(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, features: Tensor) -> Tensor:
        """The output [B, C, H, W] of the stacks, which the trunk's tokens modulate one by one."""
        c = self._told(s, t, cond).expand(-1, features.shape[1], -1)
        told = torch.cat([c, F.silu(features)], -1)
        h = self._in_segments(self.enter(to_tokens(x, self.patch)), told, self.shared(told), self.segment(s))
        return to_image(self.leave(h, told), self.patch, self.grid, self.outputs)

    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        segment = self.segment(s)
        if memory is not None and torch.equal(memory[1], segment):
            return self.drive(x, s, t, cond, self.approximate(x, s, cond, memory[0])), memory
        features = self.features(x, s, t, cond)
        return self.drive(x, s, t, cond, features), (features, segment)

    def _told(self, s: Tensor, t: Tensor, cond: Any) -> Tensor:
        return F.silu(self.times(s, t) + self.labels(cond, len(s)))[:, None]

    def _in_segments(self, h: Tensor, told: Tensor, shared: Tensor, segment: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # which cannot choose samples by what is in a tensor
            every = [self._through(stack, h, told, shared) for stack in self.stacks]
            return torch.stack(every, 1)[torch.arange(len(h), device=h.device), segment]
        # With gradients, stacks that no sample is for are run on none of them, so that all weights have a gradient.
        members = [(segment == m).nonzero()[:, 0] for m in range(self.segments)]
        parts = [
            self._through(stack, h[i], told[i], shared[i])
            for stack, i in zip(self.stacks, members, strict=True)
            if len(i) or torch.is_grad_enabled()
        ]
        return torch.cat(parts)[torch.cat(members).argsort()]

    def _through(self, stack: Any, h: Tensor, told: Tensor, shared: Tensor) -> Tensor:
        for block in stack:
            h = block(h, told, self.rotation, shared)
        return h

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)

    rotation: Tensor
