"""A mean velocity, and a second head beside it."""

from typing import Any

from torch import Tensor, nn

from ..core.flow_map import FlowMap

__all__ = ["TwoHeads"]


class TwoHeads(FlowMap):
    """A network with two outputs: the mean velocity u, and another field that a loss trains, such as the velocity.

    Args:
        net: module with the signature of MeanVelocity's and outputs=2: (x [B, *], s, t, cond) -> [B, 2, *].
    Cost: 1 network evaluation for both.
    Source: Geng, Lu, Wu & others, Improved mean flows: on the challenges of fastforward generative models, 2025,
        arXiv:2512.02012, the auxiliary velocity head.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def heads(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """Both outputs, [B, *] each.

        Raises:
            ValueError: if the network has one output.
        """
        y = self.net(x, s, t, cond)
        if y.shape == x.shape:
            raise ValueError("the network must have two outputs; got one. Set net.outputs to 2.")
        return y[:, 0], y[:, 1]

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.heads(x, s, t, cond)[0]

    def null_condition(self, batch: int) -> Any:
        net: Any = self.net
        return net.null_condition(batch)
