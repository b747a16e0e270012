"""Equal steps in the logarithm of the signal-to-noise ratio."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import check_levels, from_noise_to_data, log_snr_range
from ..core.interpolant import Interpolant, Linear

__all__ = ["LogSNR"]


@dataclass(frozen=True)
class LogSNR:
    """Steps of equal length in log(beta / alpha), the half-log-SNR of diffusion models.

    The range is from -log `most` to -log `least`; t_0 and t_K are moved to 0 and 1.

    Args:
        least: noise level alpha / beta at the data end.
        most: noise level at the source end; both are cut to what the path reaches.
        interpolant: the path.
    Cost: no network evaluation.
    Source: Lu, Zhou, Bao, Chen, Li & Zhu, DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in
        around 10 steps, 2022, arXiv:2206.00927, the uniform steps in lambda.
    Differs: the outermost levels become the ends; the range is that of the grid "power".
    """

    least: float = 0.002
    most: float = 80.0
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        check_levels(self.least, self.most)

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64; neither map nor states are used."""
        low, high = log_snr_range(self.interpolant, self.least, self.most)
        return from_noise_to_data(self.interpolant.time_at(torch.linspace(low, high, steps + 1, dtype=torch.float64)))
