"""The network predicts the data."""

from typing import Any

from torch import Tensor, nn

from ..core.flow_map import FlowMap, net_with_features
from ..core.interpolant import Interpolant, Linear

__all__ = ["DataPrediction"]


class DataPrediction(FlowMap):
    """The network is where the way from x leads: on the diagonal, the mean of the data given the state.

    u_{s,t}(x) = (a' x + D net(x, s, t)) / max(a, least) at time s, where a, b are the coefficients of source and data
    and D = a b' - a' b; on the linear path (net - x) / max(1 - s, least), so that X_{s,1} = net while s <= 1 - least.

    Data near few of many dimensions are easier to predict than velocities, which have the noise in them: a velocity
    must carry every dimension of the noise through the network, data only those that they have.

    Args:
        net: module with the signature of MeanVelocity's.
        interpolant: the path; without latent noise.
        least: the smallest coefficient of the source that is divided by.
    Cost: 1 network evaluation.
    Source: Li & He, Back to basics: let denoising generative models denoise, 2025, arXiv:2511.13720, Section 3 and
        Table 1, x-prediction with a loss of velocities; least as in the release.
    Differs: any path; for t other than s the network predicts the end of the chord from s through t, which is ours.
        Where a < least the paper scales the target like the prediction, so that the network always predicts data; that
        is the velocity "clamped", and with any other the network learns what makes the velocity right.
    """

    def __init__(self, net: nn.Module, interpolant: Interpolant = Linear(), least: float = 0.05) -> None:
        super().__init__()
        interpolant.refuse_latent()
        if least <= 0:
            raise ValueError(f"least must be > 0, since the source vanishes at the data; got {least}.")
        self.net: Any = net
        self.interpolant, self.least = interpolant, least

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self._velocity(self.net(x, s, t, cond), x, s)

    def with_features(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None, block: int = 1) -> tuple[Tensor, Tensor]:
        data, features = net_with_features(self.net, x, s, t, cond, block)
        return self._velocity(data, x, s), features

    def _velocity(self, data: Tensor, x: Tensor, s: Tensor) -> Tensor:
        a, b, a_dot, b_dot = self.interpolant.coefficients(s, x)
        return (a_dot * x + (a * b_dot - a_dot * b) * data.to(x.dtype)) / a.clamp_min(self.least)

    def null_condition(self, batch: int) -> Any:
        return self.net.null_condition(batch)
