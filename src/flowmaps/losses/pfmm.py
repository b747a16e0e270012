"""Progressive flow map matching."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.sampling import Jump, sample
from ..core.times import PairLaw, UniformPair
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import Unweighted

__all__ = ["PFMM"]


@dataclass(frozen=True)
class PFMM:
    """Do in one jump what a teacher does in several.

    E |X_{s,t}(I_s) - sg (X^T o ... o X^T)_{s,t}(I_s)|^2, the residual of the semigroup identity.

    Args:
        teacher: the flow map whose short jumps are composed.
        steps: number of equal jumps of the teacher between s and t.
        sampler: how the teacher steps: its own jump, or a solver for its velocity.
        interpolant: the path that gives the departure points.
        times: law of (s, t); "annealed" lets the span grow, as the paper does from stage to stage.
        distance: between the two ends.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, `steps` times the sampler's evaluations of the teacher.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, progressive flow map matching; restated for two jumps in
        arXiv:2505.18825v2, Appendix B.3, Eq. (30).
    """

    teacher: FlowMap
    steps: int = 4
    sampler: Sampler = Jump()
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, or there is nothing to compose; got {self.steps}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
        s, t = self.times(len(pair), pair.x0, generator, step=step)
        x, _ = self.interpolant.draw(pair, s, generator)
        grid = s + torch.linspace(0, 1, self.steps + 1, dtype=s.dtype, device=s.device)[:, None] * (t - s)
        with stop_gradient():
            target = sample(self.teacher, x, grid, sampler=self.sampler, cond=pair.cond)
        error = self.distance(model(x, s, t, pair.cond), target)
        report("progressive", error)
        return self.weighting(error, s, t)
