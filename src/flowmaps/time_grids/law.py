"""Times that are the quantiles of a law of training times."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import from_noise_to_data
from ..core.times import TimeLaw, Uniform

__all__ = ["Law"]


@dataclass(frozen=True)
class Law:
    """As many steps wherever a law of training times has as much of its mass.

    t_i = F^{-1}(i / K) for the distribution function F; t_0 and t_K are moved to 0 and 1.

    Args:
        times: the law of one time, such as "logit_normal".
    Source: ours; the grid of equal steps in sigma^(1/rho) is that of the law "power_noise".
    """

    times: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if not isinstance(self.times, TimeLaw):
            raise ValueError(f"times must be a law of one time; got {type(self.times).__name__}. Use 'logit_normal'.")

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64; neither map nor states are used."""
        return from_noise_to_data(self.times.quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
