"""The network predicts the noise."""

from typing import Any

from torch import Tensor, nn

from ..core.flow_map import FlowMap, net_with_features
from ..core.interpolant import Interpolant, Linear

__all__ = ["NoisePrediction"]


class NoisePrediction(FlowMap):
    """The network is the noise in the state: on the diagonal E[x0 | x], which is -a times the score.

    u_{s,t}(x) = (b' x - D net(x, s, t)) / max(b, least) at time s, where a, b are the coefficients of source and data
    and D = a b' - a' b; a' net on the variance exploding path, so that the network gives numbers of one size there.

    Args:
        net: module with the signature of MeanVelocity's.
        interpolant: the path; without latent noise.
        least: the smallest coefficient of the data that is divided by.
    Cost: 1 network evaluation.
    Source: Ho, Jain & Abbeel, Denoising diffusion probabilistic models, 2020, arXiv:2006.11239, Section 3.2, the
        prediction of the noise; Albergo, Boffi & Vanden-Eijnden, Stochastic interpolants: a unifying framework for
        flows and diffusions, 2023, arXiv:2303.08797, Section 4.1, the velocity from it.
    Differs: the network is told the arrival too. Where b < least it learns what makes the velocity right.
    """

    def __init__(self, net: nn.Module, interpolant: Interpolant = Linear(), least: float = 0.05) -> None:
        super().__init__()
        interpolant.refuse_latent()
        if least <= 0:
            raise ValueError(f"least must be > 0, since the data vanish from the state at t = 0; got {least}.")
        self.net: Any = net
        self.interpolant, self.least = interpolant, least

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self._velocity(self.net(x, s, t, cond), x, s)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        noise, features = net_with_features(self.net, x, s, t, cond, block)
        return self._velocity(noise, x, s), features

    def _velocity(self, noise: Tensor, x: Tensor, s: Tensor) -> Tensor:
        a, b, a_dot, b_dot = self.interpolant.coefficients(s, x)
        return (b_dot * x - (a * b_dot - a_dot * b) * noise.to(x.dtype)) / b.clamp_min(self.least)

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)
