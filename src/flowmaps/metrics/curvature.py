"""Where trajectories turn."""

from typing import Any

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact
from ..core.flow_map import FlowMap
from ..core.shapes import fill_time

__all__ = ["curvature"]


@torch.no_grad()
def curvature(
    model: FlowMap, times: Tensor, states: Tensor, velocities: Tensor, cond: Any = None, jvp: JVP = Exact()
) -> Tensor:
    """How fast the direction of trajectories changes, by time: the curvature times the speed, radians per unit of time.

    |X''_t - <X''_t, e> e| / |X'_t|, e = X'_t / |X'_t|, in the mean over trajectories. Its integral over time is the
    total curvature, the angle by which a trajectory turns in all: pi for half a circle, 0 for a line at any speed.

    Args:
        model: the flow map; its velocity is differentiated along the trajectories.
        times: [N + 1].
        states: trajectories at these times [N + 1, B, *].
        velocities: the map's velocities there [N + 1, B, *].
        cond: condition, batch first.
        jvp: how the derivative is taken.
    Returns:
        Rates [N + 1], float64.
    Cost: N + 1 derivatives.
    Source: the total curvature of a curve, Milnor, On the total curvature of knots, 1950.
    """
    rates: list[Tensor] = []
    for t, x, v in zip(times, states, velocities, strict=True):
        s = fill_time(t, x).clone()  # dual numbers need memory of their own
        _, turn = jvp(lambda x, s: model.velocity(x, s, cond), (x, s), (v, torch.ones_like(s)), times=1)
        v, turn = (z.double().flatten(1) for z in (v, turn))
        speed = v.norm(dim=1, keepdim=True).clamp_min(1e-30)
        sideways = turn - (turn * v).sum(1, keepdim=True) * v / speed**2
        rates.append((sideways.norm(dim=1) / speed[:, 0]).mean().cpu())
    return torch.stack(rates)
