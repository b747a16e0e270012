"""A flow map that gives many times in one pass."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time

__all__ = ["Trajectory"]


class Trajectory(FlowMap):
    """A network with M outputs: the mean velocities from s to M equally spaced times, of which the last is t.

    X_{s, s + (j/M)(t - s)}(x) = x + (j/M)(t - s) u_j, for j = 1 ... M.

    Args:
        net: module (x [B, *], s, t, cond) -> [B, M, *], such as the network "temporal".
    Cost: 1 network evaluation for all M.
    Source: Zheng, Nie, Vahdat, Azizzadenesheli & Anandkumar, Fast sampling of diffusion models via operator learning,
        2022, arXiv:2211.13449.
    Differs: any departure and arrival, and equally spaced times between them.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def _velocities(self, x: Tensor, s: Tensor, t: Tensor, cond: Any) -> Tensor:
        y = self.net(x, s, t, cond)
        if y.shape == x.shape:
            raise ValueError("the network must have an output for each time; got one. Set net.outputs to 2 or more.")
        return y

    def trajectory(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The states at the M times [B, M, *]."""
        y = self._velocities(x, s, t, cond).to(x.dtype)
        share = torch.arange(1, y.shape[1] + 1, device=x.device, dtype=x.dtype) / y.shape[1]
        span = expand_time(t - s, x).to(x.dtype)[:, None]
        return x[:, None] + span * share.reshape(1, -1, *[1] * (x.ndim - 1)) * y

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self._velocities(x, s, t, cond)[:, -1]

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)
