"""FreeFlow: distil a teacher from noise alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, stop_gradient, stopped_derivative
from ..core.checks import check_share
from ..core.critic import OnlineVelocity
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["FreeFlow"]


@dataclass(frozen=True)
class FreeFlow:
    """Follow a teacher's velocity from noise on, and correct where the samples drift from the teacher's; no data.

    Prediction: |u - sg(u - r)|^2 for u = u_{0,t}(x0), r = d_t X_{0,t}(x0) - b_t(X_{0,t}(x0)). Correction, with a
    critic v: |u - sg(u - c [v_r(I_r) - b_r(I_r)])|^2 for u = u_{0,1}(x0), I_r on the path from fresh noise to the
    sample X_{0,1}(x0), and c = balance E|r| / E|v - b|.

    Only departures from noise are learned: sample in one jump.

    Args:
        teacher: the flow map whose velocity b is distilled.
        critic: learns the velocity v of the map's samples; none leaves the prediction alone.
        prediction: share of the batch that predicts when there is a critic; the rest corrects.
        balance: size of the correction over that of the prediction.
        interpolant: the path.
        times: law of t.
        critic_times: law of r; it must reach noise.
        weighting: what the prediction's error of a sample counts.
        jvp: how the derivative is taken.
    Cost: prediction: 1 evaluation with gradient, 1 derivative and 1 evaluation of the teacher; correction: 1 evaluation
        with gradient, 1 of the teacher, 1 of the critic and 1 with gradient to train it.
    Source: Tong, Ma, Xie & Jaakkola, Flow map distillation without data, 2025, arXiv:2511.19428, the prediction and
        correction gradients.
    Differs: no guidance interval; the critic is trained on the correcting share only; the balance takes the unweighted
        residual, and where nobody predicts it is `balance`. Below, "mlp" stands for the critic's network, which as
        published is like the teacher's.
    Published: critic.name=velocity critic.net.name=mlp critic_times.name=logit_normal critic_times.mean=-0.8
        weighting.name=adaptive_power weighting.power=1.0
    """

    teacher: FlowMap
    critic: OnlineVelocity | None = None
    prediction: float = 0.75
    balance: float = 1.0
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    critic_times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("prediction", self.prediction)

    @property
    def needs_gaussian(self) -> bool:
        """With paths from fresh noise to samples."""
        return self.critic is not None

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        if self.critic is None:
            return self._predict(model, pair, generator)[0]
        first, rest = pair.split(self.prediction)
        losses, scale = [], torch.full_like(pair.x0.flatten()[:1], self.balance).squeeze()
        if len(first):
            loss, size = self._predict(model, first, generator)
            losses, scale = [loss], scale * size
        if len(rest):
            losses.append(self._correct(model, rest, scale, len(first) > 0, generator))
        return torch.cat(losses)

    def _predict(self, model: FlowMap, pair: Pair, generator: Random) -> tuple[Tensor, Tensor]:
        x, t = self.interpolant.start(pair.x0), self.times(len(pair), pair.x0, generator)
        s = torch.zeros_like(t)
        mean_velocity = lambda x, s, t: model.mean_velocity(x, s, t, pair.cond)  # noqa: E731
        u, du = stopped_derivative(mean_velocity, x, s, t, dt=1.0, jvp=self.jvp)
        with stop_gradient():
            span = expand_time(t, x)
            residual = u + span * du - self.teacher.velocity(x + span * u, t, pair.cond)
        error = square_error(u, u.detach() - residual)
        report("prediction", error)
        return self.weighting(error, s, t), _length(residual)

    def _correct(self, model: FlowMap, pair: Pair, scale: Tensor, relative: bool, generator: Random) -> Tensor:
        assert self.critic is not None
        x, r = self.interpolant.start(pair.x0), self.critic_times(len(pair), pair.x0, generator)
        u = model.mean_velocity(x, torch.zeros_like(r), torch.ones_like(r), pair.cond)
        sample = x + u
        noise = normal(x.shape, x, generator).to(x.dtype)
        with torch.no_grad():
            y, _ = self.interpolant.draw(Pair(noise, sample.detach()), r, generator)
            gap = self.critic.velocity(y, r, pair.cond) - self.teacher.velocity(y, r, pair.cond)
            scale = scale / (_length(gap) + 1e-6) if relative else scale
        error = square_error(u, u.detach() - scale * gap)
        report("correction", error)
        return error + self.critic(sample, pair, generator=generator)


def _length(x: Tensor) -> Tensor:
    """Mean length of the samples [B, *], a scalar."""
    return x.flatten(1).norm(dim=1).mean()
