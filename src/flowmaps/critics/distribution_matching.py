"""Pull samples along the difference of two scores: the teacher's, and that of the samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.critic import OnlineVelocity
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair

__all__ = ["DistributionMatching"]


@dataclass(frozen=True)
class DistributionMatching:
    """Descend the divergence between the map's samples and the teacher's, through the scores of both.

    1/2 |x - sg(x - g)|^2 with g = (D_fake(I_r) - D_real(I_r)) / mean |x - D_real(I_r)|, where I_r lies on the path from
    fresh noise to the sample x, D is the mean of the data given I_r, and `critic` learns the samples' own velocity.

    Args:
        teacher: gives D_real.
        critic: gives D_fake.
        weight: what the map's term counts.
        scale: of classifier-free guidance of the teacher; 1 is none.
        interpolant: the path.
        times: law of r.
    Cost: 1 evaluation of the teacher (2 with guidance), 1 of the critic, and 1 with gradient to train it.
    Source: Yin, Gharbi, Zhang & others, One-step diffusion with distribution matching distillation, 2023,
        arXiv:2311.18828; Yin, Gharbi, Park & others, Improved distribution matching distillation for fast image
        synthesis, 2024, arXiv:2405.14867, the gradient in the released code (main/edm/edm_guidance.py).
    Differs: the path of the run in place of the variance exploding one, r uniform on all of it; the critic takes one
        step for each of the map's, without weight; a vanishing mean |x - D_real| is held at 1e-6.
    """

    needs_gaussian = True

    teacher: FlowMap
    critic: OnlineVelocity
    weight: float = 1.0
    scale: float = 1.0
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()

    def __call__(self, sample: Tensor, pair: Pair, *, generator: Random = None) -> Tensor:
        """Loss [B] of map and critic from samples [B, *]."""
        path, x, cond = self.interpolant, sample.detach(), pair.cond
        r = self.times(len(x), x, generator)
        with torch.no_grad():
            y, _ = path.draw(Pair(normal(x.shape, x, generator).to(x.dtype), x), r, generator)
            b = self.teacher.velocity(y, r, cond)
            if self.scale != 1:
                b = self.teacher.velocity(y, r, self.teacher.null_condition(len(x))).lerp(b, self.scale)
            real = path.data_from_velocity(b, y, r)
            fake = path.data_from_velocity(self.critic.velocity(y, r, cond), y, r)
            pull = (fake - real) / expand_time((x - real).abs().flatten(1).mean(1).clamp_min(1e-6), x)
        error = square_error(sample, x - pull) / 2
        report("distribution_matching", error)
        return self.weight * error + self.critic(sample, pair, generator=generator)
