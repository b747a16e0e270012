"""Consistency trajectory models."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.checks import check_share
from ..core.critic import SampleCritic, check_judges, frozen
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.sampling import Heun, sample
from ..core.target import Average, Target
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching

__all__ = ["CTM"]


@dataclass(frozen=True)
class CTM:
    """Flow matching on the diagonal; off it, jumps from a state and from a later one of its trajectory agree.

    E d(X~_{t,1}(X_{s,t}(I_s)), sg X~_{t,1}(X~_{r,t}(y))), with y the solution of the teacher's velocity from (I_s, s)
    to r, uniform in [s, t], and X~ the map with averaged weights, which carries both to the data to be compared. The
    gradient passes through the outer X~ to X, not to its weights.

    Args:
        teacher: the flow map whose velocity is solved; None takes that of X~.
        diagonal: share of the batch that trains the diagonal.
        steps: of the solver between s and r.
        sampler: the solver.
        target: which weights X~ has.
        critic: judges the carried jumps as samples, for an adversarial term; none by default.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        distance: between the two results.
        weighting: what the error of a sample counts.
    Cost: on the diagonal 1 evaluation with gradient; off it 2 with gradient, 2 without, the solver's, and the critic's.
    Source: Kim, Lai, Liao & others, Consistency trajectory models: learning probability flow ODE trajectory of
        diffusion, 2023, arXiv:2310.02279, the soft consistency, denoising score matching and adversarial losses.
    Differs: linear path and our clock; times from a law in place of a grid of noise levels, and a fixed number of
        solver steps; the terms have fixed shares of the batch in place of weights by gradient norms; the square in
        place of features of LPIPS or of a classifier; the critic is one small network that learns from the start.
    Published: critic.name=discriminator
    """

    teacher: FlowMap | None = None
    diagonal: float = 0.5
    steps: int = 2
    sampler: Sampler = Heun()
    target: Target = field(default_factory=lambda: Average(0.999))
    critic: SampleCritic | None = None
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        check_judges(self.critic)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: flow_matching(model, on, self.interpolant, self.diagonal_times, self.weighting, generator),
            lambda off: self._off(model, off, step, generator),
        )

    def _off(self, model: FlowMap, off: Pair, step: int, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator, step=step)
        x, _ = self.interpolant.draw(off, s, generator)
        r = s + (t - s) * uniform((len(off),), x, generator)
        one, far = torch.ones_like(t), self.target(model)
        grid = s + torch.linspace(0, 1, self.steps + 1, dtype=s.dtype, device=s.device)[:, None] * (r - s)
        with stop_gradient():
            solved = far if self.teacher is None else self.teacher
            y = sample(solved, x, grid, sampler=self.sampler, cond=off.cond, generator=generator)
            target = far(far(y, r, t, off.cond), t, one, off.cond)
        arrived = frozen(far, model(x, s, t, off.cond), t, one, off.cond)
        error = self.distance(arrived, target)
        report("trajectory", error)
        loss = self.weighting(error, s, t)
        return loss if self.critic is None else loss + self.critic(arrived, off, generator=generator)
