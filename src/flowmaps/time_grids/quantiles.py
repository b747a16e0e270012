"""Steps that carry equal shares of a law of times."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.grid import from_noise_to_data
from ..core.times import TimeLaw, Uniform

__all__ = ["Quantiles"]


@dataclass(frozen=True)
class Quantiles:
    """t_k is the time below which a share k / K of a law's mass lies: many steps where the law is dense.

    A network sampled on the times that it was trained on sees no others. With the law "shifted" it is the grid of
    Stable Diffusion 3; with "power_noise" it is the grid "power".

    Args:
        times: the law, the same objects as in training.
    Cost: no network evaluation.
    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, whose shift of timesteps serves training and sampling.
    """

    times: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if not isinstance(self.times, TimeLaw):
            raise ValueError(f"times must be a law of one time; got {type(self.times).__name__}. Use 'logit_normal'.")

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64, from exactly 0 to exactly 1; neither map nor states are used.

        Raises:
            ValueError: if the law has mass on single times, so that steps of no length come out.
        """
        grid = from_noise_to_data(self.times.quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
        if bool((grid.diff() <= 0).any()):
            raise ValueError(
                f"the law must give {steps} steps of positive length; got {grid.tolist()}. Use a law without mass on "
                "single times, or fewer steps."
            )
        return grid
