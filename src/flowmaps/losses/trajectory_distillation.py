"""Distil whole trajectories of a teacher, all times in one pass."""

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
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import Unweighted

__all__ = ["TrajectoryDistillation"]


@dataclass(frozen=True)
class TrajectoryDistillation:
    """Regress the states at M equally spaced times on a teacher's trajectory; no data.

    The mean over j = 1 ... M of d(X_{0,j/M}(x0), x_{j/M}), x the trajectory from x0.

    A map with a method trajectory, like the map "trajectory", gives its M states in one pass; any other is asked M
    times. Only departures from noise are learned: sample in one jump.

    Args:
        teacher: the flow map whose trajectories are distilled.
        count: M for a map that gives one time at once; a trajectory map has its own.
        steps: steps of the teacher between two of these times.
        sampler: how the teacher steps: its own jump, which for a mere velocity is Euler's step, or a solver.
        interpolant: the path, of which only the start is used.
        distance: between states.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient (count of them for other maps), M times `steps` steps of the teacher.
    Source: Zheng, Nie, Vahdat, Azizzadenesheli & Anandkumar, Fast sampling of diffusion models via operator learning,
        2022, arXiv:2211.13449.
    Differs: equal times where the release takes denser ones near the data, equal weights in place of a clipped
        signal-to-noise ratio, no perceptual distance; trajectories are made on the fly, not stored.
    """

    teacher: FlowMap
    count: int = 4
    steps: int = 1
    sampler: Sampler = Jump()
    interpolant: Interpolant = Linear()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1:
            raise ValueError(f"count and steps must be at least 1; got {self.count} and {self.steps}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        x = self.interpolant.start(pair.x0)
        s = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        t = torch.ones_like(s)
        at_once = getattr(model, "trajectory", None)
        if at_once is None:
            found = [model(x, s, t * (j / self.count), pair.cond) for j in range(1, self.count + 1)]
        else:
            found = list(at_once(x, s, t, pair.cond).unbind(1))
        grid = torch.linspace(0, 1, len(found) * self.steps + 1, dtype=s.dtype, device=s.device)
        states: list[Tensor] = [x]
        with stop_gradient():
            for j in range(len(found)):
                fine = grid[j * self.steps : (j + 1) * self.steps + 1]
                states.append(sample(self.teacher, states[-1], fine, sampler=self.sampler, cond=pair.cond))
        errors = [self.distance(y, z) for y, z in zip(found, states[1:], strict=True)]
        error = torch.stack(errors).mean(0)
        report("trajectory", error)
        return self.weighting(error, s, t)
