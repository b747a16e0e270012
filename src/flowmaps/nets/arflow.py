"""A transformer on sequences of images of falling noise, each of which attends to those before it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.recurrent import RecurrentNet
from ._embedding import Condition, TwoTimes
from ._transformer import Leave, apart, joined, patched, perceptron, places, to_image, to_tokens, zero_linear

__all__ = ["ARFlow"]


class _HybridAttention(nn.Module):
    """Softmax attention inside an image, linear attention to the images before it, which fade by a learned gate."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.fade, self.gate = nn.Linear(width, heads, bias=False), nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width // heads, elementwise_affine=False)

    def forward(self, x: Tensor, cond: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, S, N, width], told [B, S, 1, width], memory [B, heads, d, d] -> the same tokens and memory."""
        batch, length = x.shape[:2]
        flat = x.flatten(0, 1)
        q, k, v = (self.norm(z) for z in apart(self.qkv(flat), 3, self.heads))
        k = k / k.shape[-1] ** 0.5
        inside = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        q, k, v = (z.reshape(batch, length, *z.shape[1:]) for z in (q, k, v))
        fade = F.logsigmoid(self.fade(x + cond)).movedim(-1, 2) / 16  # [B, S, heads, N]
        across, memory = _across(q, k.transpose(-1, -2) @ v, fade, memory)
        heard = joined(self.norm(inside + across.flatten(0, 1))).reshape(x.shape)
        return self.project(F.silu(self.gate(x)) * heard), memory


def _across(q: Tensor, seen: Tensor, fade: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """What queries [B, S, heads, N, d] read of earlier images, all at once, and the memory after the last.

    M_i = exp(mean of fade_i) M_{i-1} + seen_i; image i reads M_{i-1}, its tokens fading from first to last.
    """
    log = torch.cat([torch.zeros_like(fade[:, :1, :, 0]), fade.mean(-1)], 1).cumsum(1)  # [B, S + 1, heads]
    span = log[:, :, None] - log[:, None]
    later = torch.ones(span.shape[1:3], dtype=torch.bool, device=q.device).tril()[..., None]
    weight = torch.where(later, torch.where(later, span, 0).exp(), 0)
    all_memories = torch.einsum("bijh,bjhkv->bihkv", weight, torch.cat([memory[:, None], seen], 1))
    return (q * fade.cumsum(-1).exp()[..., None]) @ all_memories[:, :-1], all_memories[:, -1]


class _Block(nn.Module):
    """Hybrid attention, then a perceptron, each scaled, shifted and gated by the condition, zero at the start."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.modulation = zero_linear(width, 6 * width)
        self.norm, self.attend = nn.LayerNorm(width, elementwise_affine=False), _HybridAttention(width, heads)
        self.mlp = perceptron(width, ratio, dropout)

    def forward(self, x: Tensor, cond: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(cond)).chunk(6, -1)
        heard, memory = self.attend(self.norm(x) * (1 + scale1) + shift1, cond, memory)
        x = x + gate1 * heard
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2), memory


class ARFlow(RecurrentNet):
    """net(x, s, t, label) for images, which remembers the images that it has seen on the way from noise.

    It is trained on sequences of several data of one class, each at a later time than the one before, by the loss
    "autoregressive_flow_matching"; sampled by the sampler "recurrent", it sees the states of one path. The memory,
    one matrix per head and block, does not grow.

    Args:
        shape: of one image, (C, H, W).
        classes: number of labels, one for a sequence; 0 for none.
        patch: side of a patch; divides H and W.
        width: of the tokens.
        depth: number of blocks.
        heads: number of attention heads; divides width.
        ratio: hidden width of the perceptrons over width.
        dropout: share of hidden units dropped in training.
        numbers: names of numbers that a condition may hold beside the label, such as "guidance".
        vocabulary: number of token ids, with 0 for no word, when conditions are texts [B, L]; 0 when they are labels.
        outputs: fields that the network gives; with more than one the result is [B, outputs, *].
    Cost: grows with the length of a sequence, and attention with the square of the patches of one image.
    Source: Hui, Zhu, Yang & others, ARFlow: autoregressive flow with hybrid linear attention, 2025, arXiv:2501.16085;
        details as in the released code, such as the fading of queries and the 16 that logarithms are divided by.
    Differs: two times; queries, keys and values are normalised head by head; places are learned.
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 0, patch: int = 2, width: int = 192, depth: int = 6, heads: int = 6,
        ratio: float = 4.0, dropout: float = 0.0, numbers: Sequence[str] = (), vocabulary: int = 0, outputs: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.grid, self.outputs = patch, patched(shape, patch, width, heads), outputs
        self.heads, pixels = heads, shape[0] * patch**2
        self.times, self.labels = TwoTimes(width), Condition(classes, width, numbers, vocabulary)
        self.enter = nn.Linear(pixels, width)
        self.place = nn.Parameter(places(*self.grid, width))
        self.blocks = nn.ModuleList(_Block(width, heads, ratio, dropout) for _ in range(depth))
        self.leave = Leave(width, width, pixels * outputs)

    def sequence(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, S, C, H, W], s [B, S] and t [B, S] rising, condition -> [B, S, C, H, W], each knowing those before."""
        return self._run(x, s, t, cond, None)[0]

    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        y, memory = self._run(x[:, None], s[:, None], t[:, None], cond, memory)
        return y[:, 0], memory

    def _run(
        self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        batch, length = x.shape[:2]
        times = self.times(s.flatten(), t.flatten()).reshape(batch, length, 1, -1)
        c = times + self.labels(cond, batch)[:, None, None]
        h = self.enter(to_tokens(x.flatten(0, 1), self.patch)) + self.place
        h, d = h.reshape(batch, length, *h.shape[1:]), h.shape[-1] // self.heads
        old = memory or [h.new_zeros(batch, self.heads, d, d)] * len(self.blocks)
        new: list[Tensor] = []
        for block, m in zip(self.blocks, old, strict=True):
            h, m = block(h, c, m)
            new.append(m)
        y = to_image(self.leave(h, F.silu(c)).flatten(0, 1), self.patch, self.grid, self.outputs)
        return y.reshape(batch, length, *y.shape[1:]), new

    def null_condition(self, batch: int) -> Tensor:
        """The null label, or the text of no words, for a batch."""
        return self.labels.null(batch)
