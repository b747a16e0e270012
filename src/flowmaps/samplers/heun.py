"""Heun's method."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.shapes import expand_time

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """The trapezoidal predictor-corrector: k = b_s(x), x <- x + h/2 [k + b_t(x + h k)], h = t - s.

    Cost: 2 network evaluations per step.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Algorithm 1.
    Differs: the corrector is used at the last step too, where a velocity is regular.
    """

    order = 2

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step of order 2."""
        h = expand_time(t - s, x)
        k = model.velocity(x, s, cond)
        return x + h / 2 * (k + model.velocity(x + h * k, t, cond)), None
