"""The step sizes of Bellman optimal stepsize straightening."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import check_steps, shortest_path
from ..core.sampling import Euler, trajectory
from ..core.shapes import fill_time

__all__ = ["BOSS"]


@dataclass(frozen=True)
class BOSS:
    """K Euler steps of least total square error, by dynamic programming on a fine grid of candidate times.

    c(s, t) = E|x_s + (t - s) b_s(x_s) - x_t|^2, where x lies on the fine Euler trajectory of a batch.

    It sees the velocity alone. The loss "boss" straightens a flow between the times found; for other samplers, and for
    the jumps of a map, there is the grid "shortest_path".

    Args:
        nodes: number of intervals of the fine grid.
    Cost: nodes network evaluations, for the batch that it is tried on.
    Source: Nguyen, Nguyen & Nguyen, Bellman optimal stepsize straightening of flow-matching models, 2023,
        arXiv:2312.16414, the optimal stepsizes; 100 nodes as released.
    """

    nodes: int = 100

    def __post_init__(self) -> None:
        if self.nodes < 2:
            raise ValueError(f"nodes must be at least 2; got {self.nodes}.")

    @torch.no_grad()
    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64.

        Raises:
            ValueError: if there are more steps than intervals.
        """
        check_steps(steps, self.nodes)
        fine = torch.linspace(0, 1, self.nodes + 1, dtype=torch.float64)
        states = trajectory(model, x0, fine, sampler=Euler(), cond=cond)
        return fine[shortest_path(self.costs(fine, states, model, cond), steps)]

    @torch.no_grad()
    def costs(self, fine: Tensor, states: Tensor, model: FlowMap, cond: Any = None) -> Tensor:
        """C between the times of a fine grid [n], infinite where there is no step: [n, n], float64.

        Args:
            fine: times [n].
            states: a trajectory at these times [n, B, *].
            model: the flow map; its velocity is used.
            cond: condition, batch first.
        """
        cost = torch.full((len(fine), len(fine)), torch.inf, dtype=torch.float64)
        for i, s in enumerate(fine[:-1]):
            v = model.velocity(states[i], fill_time(s, states[i]), cond)
            later = (fine[i + 1 :] - s).to(v).reshape(-1, *[1] * v.ndim)
            error = states[i] + later * v - states[i + 1 :]
            cost[i, i + 1 :] = error.double().square().flatten(2).sum(2).mean(1).cpu()
        return cost
