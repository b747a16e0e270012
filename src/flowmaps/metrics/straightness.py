"""How far trajectories are from straight lines at constant speed."""

import torch
from torch import Tensor

__all__ = ["straightness"]


def straightness(times: Tensor, states: Tensor, velocities: Tensor) -> tuple[float, Tensor]:
    """S = int_0^1 E|X'_t - (X_1 - X_0)|^2 dt, per dimension: zero if one Euler step is as good as many.

    Args:
        times: from 0 to 1 [N + 1].
        states: trajectories X_t at these times [N + 1, B, *].
        velocities: X'_t there [N + 1, B, *].
    Returns:
        S by the trapezoidal rule, in squared units of the data, and its integrand at the times [N + 1], float64.
    Source: Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, 2022,
        arXiv:2209.03003, the straightness S(Z).
    Differs: per dimension.
    """
    gap = velocities - (states[-1] - states[0])
    bend = gap.double().square().flatten(1).mean(1).cpu()
    return float(torch.trapezoid(bend, times.double().cpu())), bend
