"""The velocity of a teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.types import Pair

__all__ = ["Teacher"]


@dataclass(frozen=True)
class Teacher:
    """A teacher's velocity, b_s(I_s), with classifier-free guidance if wanted.

    v = b(null) + scale (b(cond) - b(null)).

    Args:
        teacher: the flow map whose velocity is used.
        scale: of the guidance; 1 is none.
    Cost: 1 evaluation of the teacher without gradient, 2 with guidance.
    Source: Ho & Salimans, Classifier-free diffusion guidance, 2022, arXiv:2207.12598, Eq. (6), with its w = scale - 1.
    """

    teacher: FlowMap
    scale: float = 1.0

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The teacher's velocity at (x, s)."""
        with torch.no_grad():
            v = self.teacher.velocity(x, s, pair.cond)
            if self.scale == 1:
                return v
            return self.teacher.velocity(x, s, self.teacher.null_condition(len(x))).lerp(v, self.scale)
