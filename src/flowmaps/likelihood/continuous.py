"""The likelihood of a flow, along its differential equation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, divergence, hutchinson
from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.likelihood import LogDensity
from ..core.random import Random, normal
from ..core.shapes import expand_time, fill_time

__all__ = ["Continuous"]


@dataclass(frozen=True)
class Continuous:
    """Log-density of the flow of the map's velocity, solved backwards with the divergence beside it.

    d log rho_t(x_t) / dt = - div b_t(x_t), by Runge-Kutta steps of order 4 on the grid of times.

    Args:
        trace: "exact", or "hutchinson" with one normal probe per sample, kept over all steps, so that the estimate has
            no bias.
        jvp: how the derivative is taken.
    Cost: per step 4 derivatives ("hutchinson"), or 4 times the dimension ("exact").
    Source: Chen, Rubanova, Bettencourt & Duvenaud, Neural ordinary differential equations, 2018, arXiv:1806.07366,
        Theorem 1; Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud, FFJORD: free-form continuous dynamics for
        scalable reversible generative models, 2018, arXiv:1810.01367, Eq. (7) and (8).
    """

    trace: str = "exact"
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_choice("trace", self.trace, ("exact", "hutchinson"))

    @torch.no_grad()
    def __call__(
        self, model: FlowMap, x: Tensor, times: Tensor | Sequence[float], source: LogDensity, cond: Any = None,
        *, generator: Random = None,
    ) -> Tensor:  # fmt: skip
        """Log-density [B], nats."""
        probe = normal(x.shape, x, generator).to(x.dtype) if self.trace == "hutchinson" else None

        def rate(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            velocity = lambda y: model.velocity(y, t, cond)  # noqa: E731
            if probe is None:
                return divergence(velocity, x, self.jvp)
            return hutchinson(velocity, x, probe, self.jvp)

        total = x.new_zeros(len(x))
        for s, t in reversed(list(pairwise(times))):
            t, s = fill_time(t, x), fill_time(s, x)
            h = s - t
            step = expand_time(h, x).to(x.dtype)
            v1, d1 = rate(x, t)
            v2, d2 = rate(x + step / 2 * v1, t + h / 2)
            v3, d3 = rate(x + step / 2 * v2, t + h / 2)
            v4, d4 = rate(x + step * v3, s)
            x = x + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
            total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        return source(x) + total
