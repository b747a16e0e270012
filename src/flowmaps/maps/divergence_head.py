"""A mean velocity, and the mean divergence beside it."""

from typing import Any

from torch import Tensor, nn

from ..core.flow_map import FlowMap
from ..core.shapes import expand_time

__all__ = ["DivergenceHead"]


class DivergenceHead(FlowMap):
    """A network with two outputs: the mean velocity, and shares of the mean divergence along the way.

    The mean divergence d is the sum of the second output,
    d_{s,t}(x) = 1/(t - s) int_s^t div b_r(X_{s,r}(x)) dr, so that log rho_t(X_{s,t}(x)) = log rho_s(x) - (t - s) d.

    Args:
        net: module with the signature of MeanVelocity's and outputs=2: (x [B, *], s, t, cond) -> [B, 2, *].
    Cost: 1 network evaluation for both.
    Source: Ai, He, Gu & others, Joint distillation for fast likelihood evaluation and sampling in flow-based models,
        2025, arXiv:2512.02636.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def with_divergence(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """U_{s,t}(x) [B, *] and d_{s,t}(x) [B].

        Raises:
            ValueError: if the network has one output.
        """
        y = self.net(x, s, t, cond)
        if y.shape == x.shape:
            raise ValueError("the network must have two outputs; got one. Set net.outputs to 2.")
        return y[:, 0], y[:, 1].flatten(1).sum(1)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.with_divergence(x, s, t, cond)[0]

    def jump(self, x: Tensor, log_density: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """X_{s,t}(x) [B, *] and its log-density [B] at time t, nats, from that of x at time s.

        From noise to data it gives samples with their likelihood; t < s, which gives the likelihood of data, is as good
        as the map is in that direction, in which no loss here trains it: for data take the likelihood
        "divergence_head". Cost: 1 network evaluation.
        """
        u, d = self.with_divergence(x, s, t, cond)
        return x + expand_time(t - s, x).to(x.dtype) * u, log_density - (t - s) * d

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)
