"""Maps that remember: what a network has seen on its way is a state, handed from one step of sampling to the next."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from .flow_map import FlowMap, net_with_features


class RecurrentNet(nn.Module, ABC):
    """A network with a memory; without one it is a network as any other."""

    @abstractmethod
    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        """Its output [B, *] for x [B, *], s [B], t [B] and what it remembers, None at first; and what it then does."""

    @abstractmethod
    def null_condition(self, batch: int) -> Any:
        """The condition that says nothing, for a batch."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, *], s [B], t [B], condition -> [B, *], without memory."""
        return self.advance(x, s, t, cond, None)[0]


class Recurrent(FlowMap):
    """The mean velocity is a network with a memory, to be sampled with the sampler "recurrent".

    Any other sampler, and any loss of single states, sees the network without its memory.

    Args:
        net: a recurrent network, such as arflow or blockwise_dit.
    Cost: 1 network evaluation.
    Source: Hui, Zhu, Yang & others, ARFlow: autoregressive flow with hybrid linear attention, 2025, arXiv:2501.16085,
        where the memory is the state of the linear attention; Park, Lee, Joo & Kim, Blockwise flow matching: improving
        flow matching models for efficient high-quality generation, 2025, arXiv:2510.21167, where it is the features of
        a segment.
    Raises:
        ValueError: if the network has no memory.
    """

    def __init__(self, net: RecurrentNet) -> None:
        super().__init__()
        if not isinstance(net, RecurrentNet):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"a recurrent map needs a network with a memory; got {type(net).__name__}. Use net.name='arflow' or "
                "'blockwise_dit', or map.name='mean_velocity'."
            )
        self.net = net

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.net(x, s, t, cond)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        return net_with_features(self.net, x, s, t, cond, block)

    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        """U_{s,t}(x) [B, *] given the memory, and the memory after it."""
        u, memory = self.net.advance(x, s, t, cond, memory)
        return u.to(x.dtype), memory

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)
