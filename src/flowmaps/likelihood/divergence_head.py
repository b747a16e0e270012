"""The likelihood of data, by the divergence that a map has learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.inversion import Inversion
from ..core.likelihood import LogDensity
from ..core.random import Random
from ..core.shapes import expand_time, fill_time

__all__ = ["DivergenceHead"]


@dataclass(frozen=True)
class DivergenceHead:
    """Log-density of data in K evaluations of a map with a divergence head, and no derivative.

    log rho_1(x) = log rho_0(x_0) - sum_k h_k d_{t_k, t_k + h_k}(x_k), with the states from x_K = x by steps backwards,
    x_{k-1} = x_k - h_k u_{t_k, t_k + h_k}(x_k), h_k = t_k - t_{k-1}: mean velocity and mean divergence of the span
    after t_k, in the order of time that was trained, stand in for those of the span before it. An error of first
    order in h, also for a perfect map; it falls with the steps as long as short spans are learned well. At the data no
    span is left, and velocity and divergence of the diagonal are taken.

    With an inversion x_{k-1} is the state that the map carries to x_k, and the span before t_k itself is asked: exact
    for a perfect map in any number of steps, one included.

    Args:
        inversion: finds the state that a jump came from; None steps backwards.
    Cost: 1 network evaluation per step, and those of the inversion.
    Source: Ai, He, Gu & others, Joint distillation for fast likelihood evaluation and sampling in flow-based models,
        2025, arXiv:2512.02636, the rule of the released code (nll.py), Euler steps from data to noise of both heads at
        a span of 1 / K.
    Differs: the span never reaches beyond the data, where the release asks for (1, 1 + 1 / K), which is not trained;
        grids of any steps; the inversion is ours.
    Raises:
        ValueError: if the map has no divergence head.
    """

    inversion: Inversion | None = None

    @torch.no_grad()
    def __call__(
        self, model: FlowMap, x: Tensor, times: Tensor | Sequence[float], source: LogDensity, cond: Any = None,
        *, generator: Random = None,
    ) -> Tensor:  # fmt: skip
        """Log-density [B], nats."""
        heads = getattr(model, "with_divergence", None)
        if heads is None:
            raise ValueError(
                f"the map must have a divergence head; got {type(model).__name__}. Train one with the loss "
                "'divergence_distillation', or use the likelihood 'continuous' or 'change_of_variables'."
            )
        total = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for s, t in reversed(list(pairwise(times))):
            s, t = fill_time(s, x), fill_time(t, x)
            if self.inversion is None:
                u, d = heads(x, t, (2 * t - s).clamp_max(1), cond)
                x = x - expand_time(t - s, x).to(x.dtype) * u
            else:
                x = self.inversion(model, x, s, t, cond)
                d = heads(x, s, t, cond)[1]
            total = total + (t - s) * d
        return source(x) - total
