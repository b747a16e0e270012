"""The schedule of geometry-inspired time scheduling."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.grid import check_levels, check_steps, from_noise_to_data, log_snr_range, shortest_path
from ..core.interpolant import Interpolant, Linear
from ..core.sampling import Heun, trajectory
from ..core.shapes import fill_time
from ..core.types import Sampler
from .power import Power

__all__ = ["GITS"]


@dataclass(frozen=True)
class GITS:
    """K steps that keep close to the shape of the trajectories, by dynamic programming on a fine grid.

    sum_k discount^k c(t_k, t_{k+1}), with c(s, t) = E d(y_s + (sigma_t - sigma_s) E[x0 | y_s]) - E d(y_t): y = x / beta
    is the trajectory as variance exploding diffusion has it, sigma = alpha / beta its noise level, y_s + ... Euler's
    step, and d(y) the distance from the chord between the trajectory's ends. These lie at the levels `most` and
    `least`, and are moved to t = 0 and 1 in the result.

    Args:
        nodes: number of intervals of the fine grid, equal ones in sigma^(1/7).
        solver: how the teacher steps from one node to the next.
        discount: of the cost of each step against the one before it.
        metric: "deviation" from the chord, or the distance from the teacher as "l1" or "l2" norm.
        least: noise level of the trajectory's end.
        most: noise level of its start; both are cut to what the path reaches.
        interpolant: the path, with a source N(0, I) and no latent noise.
    Cost: nodes steps of the teacher and nodes network evaluations, for the batch that it is tried on.
    Source: Chen, Zhou, Wang, Shen & Lyu, On the trajectory regularity of ODE-based diffusion sampling, 2024,
        arXiv:2405.11326, geometry-inspired time scheduling, and the released code, gits_utils.py, with its 60 intervals
        and coefficient 1.15.
    Differs: any solver as teacher, there iPNDM; no analytical first step, which is an option there.
    """

    nodes: int = 60
    solver: Sampler = Heun()
    discount: float = 1.15
    metric: str = "deviation"
    least: float = 0.002
    most: float = 80.0
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, ("deviation", "l1", "l2"))
        check_levels(self.least, self.most)
        if self.nodes < 2 or self.discount <= 0:
            raise ValueError(f"nodes must be at least 2 and discount > 0; got {self.nodes} and {self.discount}.")

    @torch.no_grad()
    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64.

        Raises:
            ValueError: if there are more steps than intervals, or the path has latent noise.
        """
        check_steps(steps, self.nodes)
        path = self.interpolant
        fine = Power(self.least, self.most, interpolant=path)(self.nodes, model, x0)
        fine[[0, -1]] = path.time_at(torch.tensor(log_snr_range(path, self.least, self.most)))
        start = (path.alpha(fine[0]) / path.alpha(torch.zeros_like(fine[0]))).to(x0) * x0
        states = trajectory(model, start, fine, sampler=self.solver, cond=cond)
        cost = self.costs(fine, states, model, cond)
        return from_noise_to_data(fine[shortest_path(cost, steps, self.discount)])

    @torch.no_grad()
    def costs(self, fine: Tensor, states: Tensor, model: FlowMap, cond: Any = None) -> Tensor:
        """C between the times of a fine grid [n], infinite where there is no step: [n, n], float64.

        Args:
            fine: times [n], without the ends where alpha or beta is zero.
            states: a trajectory at these times [n, B, *].
            model: the flow map; its velocity is used.
            cond: condition, batch first.
        """
        path, shape = self.interpolant, (-1, *[1] * (states.ndim - 1))
        sigma = (path.alpha(fine) / path.beta(fine)).to(states).reshape(shape)
        y = states / path.beta(fine).to(states).reshape(shape)
        cost = torch.full((len(fine), len(fine)), torch.inf, dtype=torch.float64)
        for i, x in enumerate(states[:-1]):
            s = fill_time(fine[i], x)
            noise = path.source_from_velocity(model.velocity(x, s, cond), x, s)
            jumped, there = y[i] + (sigma[i + 1 :] - sigma[i]) * noise, y[i + 1 :]
            if self.metric == "deviation":
                cost[i, i + 1 :] = (_deviation(jumped, y) - _deviation(there, y)).cpu()
            else:
                power = int(self.metric[1])
                cost[i, i + 1 :] = (jumped - there).double().flatten(2).norm(power, 2).mean(1).cpu()
        return cost


def _deviation(points: Tensor, path: Tensor) -> Tensor:
    """Mean distance of points [N, B, *] from the chord between the ends of a path [M, B, *]: [N]."""
    points, first, last = (z.double().flatten(-(path.ndim - 2)) for z in (points, path[0], path[-1]))
    chord = (last - first) / (last - first).norm(dim=1, keepdim=True)
    from_end = points - last
    along = (from_end * chord).sum(2, keepdim=True)
    return (from_end - along * chord).norm(dim=2).mean(1)
