"""The best times for a number of steps, from what the map itself says about its jumps."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import check_steps, shortest_path
from ..core.random import fold_in
from ..core.sampling import Jump, sample
from ..core.shapes import fill_time
from ..core.types import Sampler

__all__ = ["ShortestPath"]


@dataclass(frozen=True)
class ShortestPath:
    """K jumps of least total cost, by dynamic programming on a fine grid of candidate times.

    c(s, t) = |X_{t,1}(X_{s,t}(x_s)) - X_{t,1}(x_t)|, root mean square over a batch, where x_s and x_t lie on one fine
    trajectory: how far a jump from s to t moves the end. Costs are added as if all errors pointed one way. If equal
    steps end nearer to the fine trajectory on the batch, they are taken.

    Args:
        nodes: number of intervals of the fine grid.
        sampler: how a step, long or short, is taken; the grid is best for this one.
        refine: steps of the fine trajectory per interval.
    Cost: about nodes^2 / 2 steps of the sampler and nodes^2 jumps, for the batch that it is tried on.
    Source: ours; dynamic programming over the steps of a sampler: Nguyen, Nguyen & Nguyen, Bellman optimal stepsize
        straightening of flow-matching models, 2023, arXiv:2312.16414.
    """

    nodes: int = 32
    sampler: Sampler = Jump()
    refine: int = 2

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.refine < 1:
            raise ValueError(f"nodes must be at least 2 and refine at least 1; got {self.nodes} and {self.refine}.")

    @torch.no_grad()
    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64.

        Raises:
            ValueError: if there are more steps than intervals.
        """
        check_steps(steps, self.nodes)
        fine = torch.linspace(0, 1, self.nodes + 1, dtype=torch.float64)
        states = self._trajectory(fine, model, x0, cond)
        best = fine[shortest_path(self.costs(fine, states, model, cond), steps)]
        equal = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        ends = [self._sample(grid, model, x0, cond) for grid in (best, equal)]
        errors = [float((end - states[-1]).double().square().sum()) for end in ends]
        return best if errors[0] <= errors[1] else equal

    def _trajectory(self, fine: Tensor, model: FlowMap, x0: Tensor, cond: Any) -> list[Tensor]:
        states = [x0]
        for s, t in pairwise(fine.tolist()):
            short = torch.linspace(s, t, self.refine + 1, dtype=torch.float64)
            states.append(self._sample(short, model, states[-1], cond))
        return states

    def _sample(self, times: Tensor, model: FlowMap, x: Tensor, cond: Any) -> Tensor:
        return sample(model, x, times, sampler=self.sampler, cond=cond, generator=fold_in(0, device=x.device))

    @torch.no_grad()
    def costs(self, fine: Tensor, states: list[Tensor], model: FlowMap, cond: Any = None) -> Tensor:
        """C between the times of a fine grid [n], infinite where there is no jump: [n, n], float64.

        Args:
            fine: times [n].
            states: a trajectory, the states [B, *] at these times.
            model: the flow map.
            cond: condition, batch first.
        """
        one = fill_time(1.0, states[0])
        cost = torch.full((len(fine), len(fine)), torch.inf, dtype=torch.float64)
        for j in range(1, len(fine)):
            t = fill_time(fine[j], states[0])
            last = j == len(fine) - 1
            there = states[j] if last else model(states[j], t, one, cond)
            for i in range(j):
                s, draws = fill_time(fine[i], states[0]), fold_in(0, i, j, device=t.device)
                landed, _ = self.sampler(model, states[i], s, t, cond=cond, generator=draws)
                end = landed if last else model(landed, t, one, cond)
                cost[i, j] = (end - there).double().square().mean().sqrt()
        return cost
