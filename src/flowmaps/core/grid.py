"""Grids of times: the default one, and what those that are laid out by noise or searched for share."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .flow_map import FlowMap
from .interpolant import Interpolant


class TimeGrid(Protocol):
    """Chooses times 0 = t_0 < ... < t_K = 1, [K + 1] float64; `x0` [B, *] are states at time 0 to try a grid on."""

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor: ...


@dataclass(frozen=True)
class UniformGrid:
    """Equal steps.

    Cost: no network evaluation.
    """

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """K + 1 equally spaced times; neither map nor states are used."""
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def check_levels(least: float, most: float) -> None:
    """Raise ValueError unless two noise levels are positive and in order."""
    if not 0 < least < most:
        raise ValueError(f"noise levels must be 0 < least < most; got {least} and {most}.")


def log_snr_range(path: Interpolant, least: float, most: float) -> tuple[float, float]:
    """Log(beta / alpha) where the noise level alpha / beta is `most` and `least`, cut to what the path reaches."""
    ends = path.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    return max(-math.log(most), float(ends[0])), min(-math.log(least), float(ends[1]))


def from_noise_to_data(times: Tensor) -> Tensor:
    """The same times [K + 1], float64, but for the outermost, which are moved to 0 and 1."""
    times = times.double().clone()
    times[0], times[-1] = 0.0, 1.0
    return times


def check_steps(steps: int, nodes: int) -> None:
    """Raise ValueError unless a number of steps can be chosen among a number of intervals."""
    if not 1 <= steps <= nodes:
        raise ValueError(f"steps must lie between 1 and the {nodes} intervals; got {steps}. Raise nodes.")


def shortest_path(cost: Tensor, steps: int, discount: float = 1.0) -> Tensor:
    """Indices [steps + 1] of the cheapest path of exactly `steps` edges from the first node to the last.

    sum_k discount^k cost[i_k, i_{k+1}], k = 0, ..., steps - 1, by dynamic programming.

    Args:
        cost: of the edge from i to j [n, n]; infinite where there is none.
        steps: number of edges.
        discount: of each edge against the one before it.
    """
    best = torch.full((len(cost),), torch.inf, dtype=cost.dtype)
    best[0] = 0
    came: list[Tensor] = []
    for k in range(steps):
        best, where = (best[:, None] + discount**k * cost).min(0)
        came.append(where)
    path = [len(cost) - 1]
    for where in reversed(came):
        path.append(int(where[path[-1]]))
    return torch.tensor(path[::-1])
