"""The velocity of a teacher, pushed away from that of a weaker one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.types import Pair

__all__ = ["Autoguided"]


@dataclass(frozen=True)
class Autoguided:
    """A teacher guided by a bad version of itself: v = b_weak + scale (b - b_weak).

    Args:
        teacher: the flow map whose velocity is used.
        weak: a smaller or less trained teacher.
        scale: of the guidance; 1 is none.
    Cost: 1 evaluation of each teacher without gradient.
    Source: Karras, Aittala, Kynkäänniemi, Lehtinen, Aila & Laine, Guiding a diffusion model with a bad version of
        itself, 2024, arXiv:2406.02507, Section 3; in distillation: Sabour, Fidler & Kreis, Align your flow: scaling
        continuous-time flow map distillation, 2025, arXiv:2506.14603, Section 3.3.
    Differs: one scale; Align Your Flow draws it from [1, 3] and gives it to the student.
    """

    teacher: FlowMap
    weak: FlowMap
    scale: float = 2.0

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The guided velocity at (x, s)."""
        with torch.no_grad():
            return self.weak.velocity(x, s, pair.cond).lerp(self.teacher.velocity(x, s, pair.cond), self.scale)
