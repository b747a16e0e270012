"""Consistency models: the same data from neighbouring times."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.noise import LogNormalNoise
from ..core.random import Random
from ..core.regression import Distance, PseudoHuber
from ..core.report import report
from ..core.sampling import Heun
from ..core.spacing import Doubling, Spacing
from ..core.target import Own, Target
from ..core.times import TimeLaw
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import NoiseGap

__all__ = ["Consistency"]


@dataclass(frozen=True)
class Consistency:
    """Arrive at the same data from a time and from the next one on its path.

    E w d(X_{s,1}(I_s), sg X_{t,1}(y)), with s < t neighbours and y the state at t: of the same source and data
    (consistency training), or one step of a teacher's flow from I_s (consistency distillation). Where t = 1 the target
    is y itself.

    Only jumps to t = 1 are learned: sample in more steps with the sampler "restart".

    Training without a teacher is biased: its minimum takes the conditional mean over each step, which loses variance in
    proportion to the gap; that is why the gap shrinks as training goes on.

    The defaults are improved consistency training (iCT). Consistency models (CM) are times "power_noise", spacing
    "karras", target "average", distance "square" and weighting "unweighted"; easy consistency tuning (ECT) is spacing
    "ratio" in a run that starts from the weights of its teacher, from_teacher = true, and learns from data alone,
    loss.teacher = "none".

    Args:
        teacher: the flow map whose velocity is distilled, in a run its teacher; None, in a table "none", trains from
            data alone.
        sampler: the teacher's step.
        spacing: how far apart the two times are.
        times: law of the time that the spacing begins with.
        interpolant: the path.
        target: which weights the target is made with.
        distance: between prediction and target.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, 1 without, and the sampler's evaluations of the teacher.
    Source: Song, Dhariwal, Chen & Sutskever, Consistency models, 2023, arXiv:2303.01469, consistency distillation and
        training; Song & Dhariwal, Improved techniques for training consistency models, 2023, arXiv:2310.14189; Geng,
        Pokle, Luo, Lin & Kolter, Consistency models made easy, 2024, arXiv:2406.14548.
    Differs: linear path, with t = 1 / (1 + sigma) and states t times theirs; the boundary is exact at t = 1 and not at
        sigma = 0.002; draws beyond the grid fall into its last cells; Heun's step is taken in t and not in sigma; the
        average's decay is constant, where CM's grows with N; no LPIPS.
    """

    teacher: FlowMap | None = None
    sampler: Sampler = Heun()
    spacing: Spacing = Doubling()
    times: TimeLaw = LogNormalNoise(-1.1, 2.0)
    interpolant: Interpolant = Linear()
    target: Target = Own()
    distance: Distance = PseudoHuber()
    weighting: Weighting = NoiseGap()

    def __post_init__(self) -> None:
        if self.teacher is None and self.interpolant.latent:
            raise ValueError(
                "consistency training must have a path without latent noise, or the two states share too little; got "
                f"{type(self.interpolant).__name__}. Give a teacher, or use another path."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        s, t = self.spacing(self.times(len(pair), pair.x0, generator), step)
        one = torch.ones_like(t)
        x, _ = self.interpolant.draw(pair, s, generator)
        with stop_gradient():
            if self.teacher is None:
                y, _ = self.interpolant.draw(pair, t, generator)
            else:
                y, _ = self.sampler(self.teacher, x, s, t, cond=pair.cond, generator=generator)
            target = self.target(model)(y, t, one, pair.cond)
        error = self.distance(model(x, s, one, pair.cond), target)
        report("consistency", error)
        return self.weighting(error, s, t)
