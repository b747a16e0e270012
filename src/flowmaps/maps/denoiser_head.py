"""A mean velocity, and the noise in the state beside it."""

from typing import Any

from torch import Tensor, nn

from ..core.flow_map import FlowMap, net_with_features

__all__ = ["DenoiserHead"]


class DenoiserHead(FlowMap):
    """A network with two outputs: the mean velocity, and on the diagonal the denoiser E[noise | x_t = x].

    The noise is the latent z of a path that has it, or else the Gaussian source; from the denoiser comes the score, and
    with it every stochastic equation that has the flow's marginals (core/stochastic.py).

    Args:
        net: module with the signature of MeanVelocity's and outputs=2: (x [B, *], s, t, cond) -> [B, 2, *].
    Cost: 1 network evaluation for both.
    Source: Albergo, Boffi & Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions,
        2023, arXiv:2303.08797, the denoiser of Eq. (2.17) and (2.18).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return _two(self.net(x, s, t, cond), x)[:, 0]

    def with_noise(self, x: Tensor, t: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        y = _two(self.net(x, t, t, cond), x).to(x.dtype)
        return y[:, 0], y[:, 1]

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        y, features = net_with_features(self.net, x, s, t, cond, block)
        return _two(y, x)[:, 0], features

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)


def _two(y: Tensor, x: Tensor) -> Tensor:
    if y.shape == x.shape:
        raise ValueError("the network must have two outputs; got one. Set net.outputs to 2.")
    return y
