"""A network of one time whose first blocks are told the departure and whose last are told the arrival."""

from typing import Any

from torch import Tensor, nn

from ..core.checks import check_share

__all__ = ["BlockSplit"]


class BlockSplit(nn.Module):
    """Another network, of which the first blocks see e(s, s) in place of e(s, t), and the last see e(t, t).

    No weight is added, and u_{s,s} stays what it was: a network that knows velocities only keeps them on the diagonal.

    Args:
        net: a network of this package with blocks that are told apart: dit, unet or edm2_unet.
        share: of the blocks that see the departure; 20 of 28 in the release.
    Cost: of the network inside; times and condition are embedded twice.
    Source: Lee, Yu & Shin, Decoupled MeanFlow: turning flow models into flow maps for accelerated sampling, 2025,
        arXiv:2510.24474.
    Differs: for U-Nets, in which the blocks count from the first one down to the last one up: ours.
    """

    def __init__(self, net: nn.Module, share: float = 0.7) -> None:
        super().__init__()
        check_share("share", share)
        if getattr(net, "body", None) is None:
            raise ValueError(f"net must have blocks that are told the time: a dit or unet; got {type(net).__name__}.")
        self.net: Any = net
        self.split = round(share * self.net.depth)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """X [B, C, H, W], s [B], t [B], condition -> [B, C, H, W]."""
        departure, arrival = (self.net.embed(z, z, cond) for z in (s, t))
        return self.net.body(x, [departure] * self.split + [arrival] * (self.net.depth - self.split + 1))

    def null_condition(self, batch: int) -> Any:
        """That of the network inside."""
        return self.net.null_condition(batch)

    def adopt(self, net: nn.Module) -> None:
        """Take over the weights of a network without the split."""
        self.net.load_state_dict(net.state_dict())
