"""A network that is shown more channels beside the state."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .flow_map import net_with_features


class Concatenated(nn.Module):
    """net(x, s, t, cond) of another network, whose input is the state and, in channels behind it, a condition.

    A condition is a dict with "spatial" [B, E, *], of the sides of the state, and what the network inside is told
    otherwise. Without "spatial" those channels are zero.

    Args:
        net: network for states of C + E channels; of its output, the first C count.
        spatial: shape of one spatial condition, (E, *).
    Cost: 1 network evaluation.
    Source: Rombach, Blattmann, Lorenz, Esser & Ommer, High-resolution image synthesis with latent diffusion models,
        2021, arXiv:2112.10752, Section 3.3; Dao, Phung, Nguyen & Tran, Flow matching in latent space, 2023,
        arXiv:2307.08698, with the released code.
    Differs: the network gives as many channels as it takes, so that any network will do, and the rest is left.
    """

    def __init__(self, net: nn.Module, spatial: Sequence[int]) -> None:
        super().__init__()
        self.net: Any = net
        self.spatial = tuple(spatial)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, *], s [B], t [B], condition -> [B, C, *]."""
        both, rest = self._taken(x, cond)
        return self._left(self.net(both, s, t, rest), x)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        """The result, and the features of a block of the network inside."""
        both, rest = self._taken(x, cond)
        y, features = net_with_features(self.net, both, s, t, rest, block)
        return self._left(y, x), features

    def _taken(self, x: Tensor, cond: Any) -> tuple[Tensor, Any]:
        """State and spatial condition as channels of one, and the rest of the condition."""
        rest: dict[str, Any] = {**cond} if isinstance(cond, dict) else {"label": cond}
        label = rest.pop("label", None)  # a whole condition where guidance has put its scale around one
        rest |= label if isinstance(label, dict) else {} if label is None else {"label": label}
        spatial = rest.pop("spatial", x.new_zeros(1, *self.spatial))
        if tuple(spatial.shape[1:]) != self.spatial:
            raise ValueError(
                f"a spatial condition must have shape [B, {', '.join(map(str, self.spatial))}]; got "
                f"{tuple(spatial.shape)}. Make it with the condition of the flow."
            )
        return torch.cat([x, spatial.to(x.dtype).expand(len(x), *self.spatial)], 1), rest or None

    def _left(self, y: Tensor, x: Tensor) -> Tensor:
        """The channels of the network's output that belong to the state."""
        return y.narrow(y.ndim - x.ndim + 1, 0, x.shape[1])

    def null_condition(self, batch: int) -> dict[str, Any]:
        """That of the network inside, and zeros."""
        like = next(self.net.parameters())
        return {"label": self.net.null_condition(batch), "spatial": like.new_zeros(batch, *self.spatial)}
