"""One flow map made of several, each on its part of the time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .flow_map import FlowMap
from .shapes import expand_time


class Chain(FlowMap):
    """X_{s,t} = the maps of the blocks that lie between s and t, one after the other.

    Block k of K carries the state over [k / K, (k + 1) / K], which is [0, 1] in its own time; either order of times.
    Between two knots it is the block's map, and as cheap.

    Args:
        blocks: flow maps, from noise to data.
    Cost: 1 evaluation of each block that lies between some s and t of the batch.
    Source: Xu, Cheng & Xie, Local flow matching generative models, 2024, arXiv:2410.02548, the composed model.
    """

    def __init__(self, blocks: Sequence[FlowMap]) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("a chain must have at least one block; got none.")
        self.blocks = nn.ModuleList(blocks)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        count, total = len(self.blocks), torch.zeros_like(x)
        # The knot below s is where a span of length zero belongs; at t = 1 it is the last one.
        home = (s * count).detach().floor().clamp(0, count - 1)
        span, still = t - s, t == s
        for forward in (True, False):
            mine = (t >= s) if forward else (t < s)
            if not bool(mine.any()):
                continue
            for k in range(count) if forward else reversed(range(count)):
                block = self.blocks[k]
                inner, outer = ((time * count - k).clamp(0, 1) for time in (s, t))
                share = torch.where(
                    still, (home == k).to(s.dtype), (outer - inner) / count / torch.where(still, 1, span)
                )
                share = torch.where(mine, share, 0)
                if not bool((share != 0).any()):
                    continue
                assert isinstance(block, FlowMap)
                y = x + expand_time(span, x).to(x.dtype) * total
                u = count * block.mean_velocity(y, inner, outer, cond)
                total = total + expand_time(share, x).to(x.dtype) * u.to(x.dtype)
        return total

    def null_condition(self, batch: int) -> Any:
        first = self.blocks[0]
        assert isinstance(first, FlowMap)
        return first.null_condition(batch)
