"""The shape of a flow's trajectories: how straight, where they turn, in how few dimensions they lie."""

from typing import Any

import torch
from torch import Tensor

from ..core.sampling import RungeKutta4, trajectory
from ..core.shapes import fill_time
from ..flow import Flow, Guidance
from ..metrics.curvature import curvature
from ..metrics.explained_variance import explained_variance
from ..metrics.straightness import straightness

STEPS = 32
# What is measured, and what it is called in tables.
SHAPE = {
    "straightness": "straightness S", "over_length": "S over the square length of chords",
    "total_curvature": "total curvature, radians", "explained_1": "variance in a line",
    "explained_2": "variance in a plane", "explained_3": "variance in three dimensions",
}  # fmt: skip


@torch.no_grad()
def measure_trajectories(
    flow: Flow, n: int = 128, *, guidance: Guidance = 1.0, seed: int = 0
) -> tuple[dict[str, Any], Tensor]:
    """Measure the trajectories of a flow's velocity.

    Args:
        flow: what is measured.
        n: number of trajectories; labels take turns.
        guidance: as in `Flow.sample`; it must have a velocity.
        seed: of the starts.
    Returns:
        The measures of SHAPE and, by time, the integrand of S and the rate of turning; the states [N + 1, n, *].
    """
    model = flow.guided(guidance)
    x0, cond = flow.starting(n, seed)
    times = torch.linspace(0, 1, STEPS + 1, dtype=torch.float64)
    states = trajectory(model, x0, times, sampler=RungeKutta4(), cond=cond)
    velocities = torch.stack([model.velocity(x, fill_time(t, x), cond) for t, x in zip(times, states, strict=True)])
    s, bend = straightness(times, states, velocities)
    turning = curvature(model, times, states, velocities, cond)
    length = float((states[-1] - states[0]).double().square().mean())
    shares = explained_variance(states).tolist()
    result = {
        "protocol": f"{n} trajectories (seed {seed}), {STEPS} Runge-Kutta steps of the velocity; per dimension",
        "straightness": s,
        "over_length": s / length,
        "total_curvature": float(torch.trapezoid(turning, times)),
        **{f"explained_{k}": share for k, share in enumerate(shares, 1)},
        "by_time": {"time": times.tolist(), "bend": bend.tolist(), "turning": turning.tolist()},
    }
    return result, states
