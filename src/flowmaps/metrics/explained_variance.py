"""In how few dimensions trajectories lie."""

import torch
from torch import Tensor

__all__ = ["explained_variance"]


def explained_variance(states: Tensor, components: int = 3) -> Tensor:
    """The share of a trajectory's variance that lies in its first principal directions.

    Each trajectory's points are centred and have their own directions; what they explain is added over trajectories. A
    straight line needs one direction, a curve in a plane two.

    Args:
        states: trajectories [N + 1, B, *].
        components: number of directions.
    Returns:
        Shares explained by the first 1, 2, ... directions [components], float64, rising to 1.
    Source: Chen, Zhou, Wang, Shen & Lyu, On the trajectory regularity of ODE-based diffusion sampling, 2024,
        arXiv:2405.11326, the low-dimensional subspaces of sampling trajectories.
    Differs: principal components alone, there beside the direction of the chord.
    """
    points = states.transpose(0, 1).double().flatten(2)
    points = points - points.mean(1, keepdim=True)
    # The same eigenvalues as the covariance's, of a matrix whose size does not grow with the dimension.
    variance = torch.linalg.eigvalsh(points @ points.mT).flip(1).clamp_min(0).sum(0)  # pyright: ignore
    share = variance.cumsum(0) / variance.sum().clamp_min(1e-300)
    return torch.cat([share, share.new_ones(components)])[:components].cpu()
