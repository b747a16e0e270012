"""The best times for a number of steps, from what the map itself says about its jumps."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import check_steps, shortest_path
from ..core.random import fold_in
from ..core.recurrent import Recurrent
from ..core.sampling import Jump, RungeKutta4, sample
from ..core.shapes import fill_time
from ..core.types import Sampler

__all__ = ["ShortestPath"]


@dataclass(frozen=True)
class ShortestPath:
    """K jumps of least total cost, by dynamic programming on a fine grid of candidate times.

    c(s, t) = |X_{t,1}(X_{s,t}(x_s)) - X_{t,1}(x_t)|, root mean square over a batch, where x_s and x_t lie on one fine
    trajectory: how far a jump from s to t moves the end. Costs are added as if all errors pointed one way. If equal
    steps end nearer to the fine trajectory on the batch, they are taken.

    The costs are those of a sampler's first step. One with a memory, such as a multistep method, takes the others in
    another way: then the better of these times and equal ones is moved node by node, as long as the sampler itself,
    from 0 to 1, comes nearer to the end of the fine trajectory, here one of Runge and Kutta.

    Args:
        nodes: number of intervals of the fine grid.
        sampler: how a step, long or short, is taken; the grid is best for this one.
        refine: steps of the fine trajectory per interval.
        sweeps: over the nodes, at most, with a memory.
    Cost: about nodes^2 / 2 steps of the sampler and nodes^2 jumps, for the batch that it is tried on; with a memory
        some 2 to 4 K sweeps of K steps more.
    Source: ours; dynamic programming over the steps of a sampler: Nguyen, Nguyen & Nguyen, Bellman optimal stepsize
        straightening of flow-matching models, 2023, arXiv:2312.16414.
    """

    nodes: int = 32
    sampler: Sampler = Jump()
    refine: int = 2
    sweeps: int = 3

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.refine < 1 or self.sweeps < 0:
            raise ValueError(
                "nodes must be at least 2, refine at least 1 and sweeps at least 0; got "
                f"{self.nodes}, {self.refine} and {self.sweeps}."
            )

    @torch.no_grad()
    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64.

        Raises:
            ValueError: if there are more steps than intervals.
        """
        check_steps(steps, self.nodes)
        fine = torch.linspace(0, 1, self.nodes + 1, dtype=torch.float64)
        remembers = self._remembers(model, x0, fine, cond)
        states = self._trajectory(fine, model, x0, cond, RungeKutta4() if remembers else self.sampler)

        def error(times: Tensor) -> float:
            end = self._sample(times, model, x0, cond, self.sampler)
            square = float((end - states[-1]).double().square().sum())
            return square if math.isfinite(square) else math.inf

        path = shortest_path(self.costs(fine, states, model, cond), steps)
        if remembers:
            near_equal = (torch.arange(steps + 1) * self.nodes / steps).round().long()
            path = self._moved(min(path, near_equal, key=lambda p: error(fine[p])), lambda p: error(fine[p]))
        return min(fine[path], torch.linspace(0, 1, steps + 1, dtype=torch.float64), key=error)

    def _remembers(self, model: FlowMap, x: Tensor, fine: Tensor, cond: Any) -> bool:
        """Whether a step of the sampler depends on those before; not of a map that remembers, which has no other."""
        s, t = (fill_time(time, x) for time in fine[:2])
        _, state = self.sampler(model, x, s, t, cond=cond, generator=fold_in(0, device=x.device))
        return state is not None and not any(isinstance(part, Recurrent) for part in model.modules())

    def _moved(self, path: Tensor, error: Callable[[Tensor], float]) -> Tensor:
        """Indices whose inner ones are moved, one after the other and one by one, as long as the error falls."""
        least = error(path)
        for _ in range(self.sweeps):
            before = path
            for k, way in itertools.product(range(1, len(path) - 1), (-1, 1)):
                while path[k - 1] < path[k] + way < path[k + 1]:
                    trial = path.clone()
                    trial[k] += way
                    if (found := error(trial)) >= least:
                        break
                    path, least = trial, found
            if torch.equal(path, before):
                break
        return path

    def _trajectory(self, fine: Tensor, model: FlowMap, x0: Tensor, cond: Any, solver: Sampler) -> list[Tensor]:
        states = [x0]
        for s, t in itertools.pairwise(fine.tolist()):
            short = torch.linspace(s, t, self.refine + 1, dtype=torch.float64)
            states.append(self._sample(short, model, states[-1], cond, solver))
        return states

    def _sample(self, times: Tensor, model: FlowMap, x: Tensor, cond: Any, solver: Sampler) -> Tensor:
        return sample(model, x, times, sampler=solver, cond=cond, generator=fold_in(0, device=x.device))

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
