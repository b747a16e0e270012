"""The likelihood of a map, by its determinant."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact
from ..core.flow_map import FlowMap
from ..core.inversion import Inversion
from ..core.likelihood import LogDensity
from ..core.random import Random
from ..core.shapes import fill_time

__all__ = ["ChangeOfVariables"]


@dataclass(frozen=True)
class ChangeOfVariables:
    """Exact log-density of the law that the K-step map makes of the source.

    log rho_1(x) = log rho_0(x_0) - sum_k log |det grad X_{t_k, t_{k+1}}(x_k)|, the states found from x by inversion.

    Args:
        inversion: finds the state that a jump came from; must be exact, or the density is of another point.
        jvp: how the derivative is taken.
    Cost: per jump the inversion's evaluations and one derivative per dimension.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, the invertibility of the flow map; change of variables.
    """

    inversion: Inversion
    jvp: JVP = Exact()

    @torch.no_grad()
    def __call__(
        self, model: FlowMap, x: Tensor, times: Tensor | Sequence[float], source: LogDensity, cond: Any = None,
        *, generator: Random = None,
    ) -> Tensor:  # fmt: skip
        """Log-density [B], nats."""
        total = x.new_zeros(len(x))
        for s, t in reversed(list(pairwise(times))):
            s, t = fill_time(s, x), fill_time(t, x)
            x = self.inversion(model, x, s, t, cond)
            total = total + self._log_determinant(lambda y, s=s, t=t: model(y, s, t, cond), x)
        return source(x) - total

    def _log_determinant(self, f: Any, x: Tensor) -> Tensor:
        flat, columns = x.flatten(1), list[Tensor]()
        for i in range(flat.shape[1]):
            e = torch.zeros_like(flat)
            e[:, i] = 1
            columns.append(self.jvp(f, (x,), (e.reshape(x.shape),))[1].flatten(1))
        return torch.linalg.slogdet(torch.stack(columns, 2)).logabsdet
