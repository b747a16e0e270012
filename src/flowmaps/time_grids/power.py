"""Equal steps in a root of the noise level."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import check_levels, from_noise_to_data, log_snr_range
from ..core.interpolant import Interpolant, Linear

__all__ = ["Power"]


@dataclass(frozen=True)
class Power:
    """Steps of equal length in sigma^(1/rho), for the ratio sigma of noise to data.

    sigma_i^(1/rho) = most^(1/rho) + i / K (least^(1/rho) - most^(1/rho)), and t_i is where alpha / beta = sigma_i; t_0
    and t_K are moved to 0 and 1, so that the grid goes from noise itself to data itself.

    Args:
        least: noise level at the data end.
        most: noise level at the source end; both are cut to what the path reaches.
        rho: power; 1 makes equal steps in sigma, 7 shorter ones close to the data; the limit is "log_snr".
        interpolant: the path.
    Cost: no network evaluation.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Section 3 and Eq. (5), with these defaults.
    Differs: the outermost levels become the ends; there the first step starts at `most`, and one more goes from
        `least` to 0.
    """

    least: float = 0.002
    most: float = 80.0
    rho: float = 7.0
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        check_levels(self.least, self.most)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be > 0 and finite; got {self.rho}. Use the grid 'log_snr' for its limit.")

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64; neither map nor states are used."""
        low, high = log_snr_range(self.interpolant, self.least, self.most)
        ends = torch.tensor([low, high], dtype=torch.float64).mul(-1 / self.rho).exp()
        root = ends[0].lerp(ends[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64))
        return from_noise_to_data(self.interpolant.time_at(-self.rho * root.log()))
