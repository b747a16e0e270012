"""To the data and back, once more."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart:
    """Multistep consistency sampling: jump to the data, add fresh noise up to the next time.

    x <- alpha_t e + beta_t X_{s,1}(x), with e ~ N(0, I); at t = 1 the jump alone. It needs only jumps that arrive at
    the data, so that it samples consistency models; gamma = 1 of Gamma. Errors of each jump are not passed on, those of
    the last one stay.

    Args:
        interpolant: the path the map was trained on, with a source N(0, I).
    Cost: 1 network evaluation per step.
    Source: Song, Dhariwal, Chen & Sutskever, Consistency models, 2023, arXiv:2303.01469, Algorithm 1.
    """

    needs_gaussian = True

    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        self.interpolant.refuse_latent()

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step."""
        data = model(x, s, torch.ones_like(s), cond)
        a, b = (
            torch.where(t >= 1, end, f(t)) for f, end in ((self.interpolant.alpha, 0.0), (self.interpolant.beta, 1.0))
        )
        noise = normal(x.shape, x, generator)
        return (expand_time(a, x) * noise + expand_time(b, x) * data).to(x.dtype), None
