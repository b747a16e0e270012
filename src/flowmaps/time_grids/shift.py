"""Equal steps, shifted towards the noise for high resolutions."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap

__all__ = ["Shift"]


@dataclass(frozen=True)
class Shift:
    """Equal steps, at each of which the ratio of noise to data is then multiplied by alpha.

    t = u / (u + alpha (1 - u)) for equally spaced u: on the linear path (1 - t) / t = alpha (1 - u) / u.

    Args:
        alpha: of the shift; 1 is none, more leaves more steps to the noise.
        base: number of pixels that needs no shift; given, alpha is sqrt(m / base) for states of m pixels [B, C, *].
    Cost: no network evaluation.
    Source: Esser, Kulal, Blattmann & others, Scaling rectified flow transformers for high-resolution image synthesis,
        2024, arXiv:2403.03206, "Resolution-dependent shifting of timestep schedules", with alpha = 3 for images of
        1024 x 1024.
    Differs: time reversed with respect to the paper.
    """

    alpha: float = 3.0
    base: int = 0

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.base < 0:
            raise ValueError(f"alpha must be > 0 and base at least 0; got {self.alpha} and {self.base}.")

    def __call__(self, steps: int, model: FlowMap, x0: Tensor, cond: Any = None) -> Tensor:
        """Times [K + 1], float64; of map and states only the number of pixels is used.

        Raises:
            ValueError: if alpha shall come from the pixels of states that have none.
        """
        if self.base and x0.ndim < 3:
            raise ValueError(f"states must have pixels [B, C, *]; got {tuple(x0.shape)}. Give alpha instead of base.")
        alpha = math.sqrt(x0[0, 0].numel() / self.base) if self.base else self.alpha
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return u / (u + alpha * (1 - u))
