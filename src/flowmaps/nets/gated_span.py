"""A network of one time, opened to a second one through a gate."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..core.flow_map import net_with_features

__all__ = ["GatedSpan"]


class _Gated(nn.Module):
    """(1 - g) e(s, s) + g e'(t, t): an embedding of two times, its copy, and the gate between them."""

    def __init__(self, times: nn.Module, gate: float) -> None:
        super().__init__()
        self.base, self.copy = times, copy.deepcopy(times)
        self.gate = nn.Parameter(torch.tensor(float(gate)))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        departure = self.base(s, s)
        return departure + self.gate.to(departure.dtype) * (self.copy(t, t) - departure)


class GatedSpan(nn.Module):
    """Another network, in which the departure time is mixed with the arrival time through a learned gate.

    The times' embedding e(s, t) becomes (1 - g) e(s, s) + g e'(t, t), e' a copy of e. A network that knows velocities
    only, u_{s,s} = b_s, thus starts as u_{s,t} = b_s for g = 0, and keeps u_{s,s} = b_s for any g while e' = e.

    Args:
        net: a network of this package that embeds its times, such as mlp, dit or unet.
        gate: g at the start.
    Cost: of the network inside; times are embedded twice.
    Source: Gu, Fang, Jiang & others, AnyFlow: any-step video diffusion model with on-policy flow map distillation,
        2026, arXiv:2605.13724, which starts from a copied embedding with a gate of 0.25.
    Differs: g is learned, and 0 at the start; the embedding of an MLP has no weights, so that its copy has none.
    """

    def __init__(self, net: nn.Module, gate: float = 0.0) -> None:
        super().__init__()
        times = getattr(net, "times", None)
        if not isinstance(times, nn.Module):
            raise ValueError(f"net must embed its times: an mlp, dit or unet; got {type(net).__name__}.")
        self.net: Any = net
        net.times = _Gated(times, gate)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, *], s [B], t [B], condition -> [B, *]."""
        return self.net(x, s, t, cond)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and the features of a block of the network inside."""
        return net_with_features(self.net, x, s, t, cond, block)

    def null_condition(self, batch: int) -> Any:
        """That of the network inside."""
        return self.net.null_condition(batch)

    def adopt(self, net: nn.Module) -> None:
        """Take over the weights of a network without the gate; the embedding's go to both copies."""
        state = dict(net.state_dict())
        for key in [k for k in state if k.startswith("times.")]:
            weight, rest = state.pop(key), key.removeprefix("times.")
            state |= {f"times.base.{rest}": weight, f"times.copy.{rest}": weight}
        self.net.load_state_dict(state | {"times.gate": self.net.state_dict()["times.gate"]})
