"""Bellman optimal step sizes: straighten a teacher between the nodes of a chosen grid."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.sampling import Jump, sample
from ..core.shapes import expand_time
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import Unweighted

__all__ = ["BOSS"]


@dataclass(frozen=True)
class BOSS:
    """Regress the mean velocity on the secants of a teacher's trajectories between neighbouring nodes; no data.

    |u_{s,t}(x_s) - (x_t - x_s) / (t - s)|^2 for neighbouring nodes s < t, x the trajectory from x0.

    Only jumps between neighbouring nodes are learned: sample with the nodes as steps.

    Args:
        teacher: the flow map whose trajectories are straightened.
        nodes: the grid, from 0 to 1; the time grid "shortest_path" finds the best one for a teacher.
        steps: steps of the teacher between neighbouring nodes.
        sampler: how the teacher steps: its own jump, which for a mere velocity is Euler's step, or a solver.
        interpolant: the path, of which only the start is used.
        distance: between mean velocity and secant.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, steps (number of nodes - 1) steps of the teacher.
    Source: Nguyen, Nguyen & Nguyen, Bellman optimal stepsize straightening of flow-matching models, 2023,
        arXiv:2312.16414, the straightening stage.
    Differs: the network is told the arrival too; trajectories are made on the fly, not stored, and each gives one
        node per step; a secant in place of a perceptual distance; low-rank updates are left to the user.
    """

    teacher: FlowMap
    nodes: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    steps: int = 25
    sampler: Sampler = Jump()
    interpolant: Interpolant = Linear()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        n = self.nodes
        if len(n) < 2 or n[0] != 0 or n[-1] != 1 or any(a >= b for a, b in pairwise(n)):
            raise ValueError(f"nodes must increase from 0 to 1; got {n}. Give for example (0, 0.5, 1).")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
        x = self.interpolant.start(pair.x0)
        u = uniform((len(x),), x, generator)
        nodes = torch.tensor(self.nodes, dtype=u.dtype, device=u.device)
        states = [x]
        with stop_gradient():
            for s, t in pairwise(nodes):
                fine = s + (t - s) * torch.linspace(0, 1, self.steps + 1, dtype=u.dtype, device=u.device)
                states.append(sample(self.teacher, states[-1], fine, sampler=self.sampler, cond=pair.cond))
        edges = len(nodes) - 1
        k, row = (u * edges).long().clamp_max(edges - 1), torch.arange(len(x), device=x.device)
        path, s, t = torch.stack(states), nodes[k], nodes[k + 1]
        left, right = path[k, row], path[k + 1, row]
        secant = (right - left) / expand_time(t - s, x).to(x.dtype)
        error = self.distance(model.mean_velocity(left, s, t, pair.cond), secant)
        report("secant", error)
        return self.weighting(error, s, t)
