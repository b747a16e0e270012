"""The map itself, run backwards."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap

__all__ = ["Backward"]


@dataclass(frozen=True)
class Backward:
    """x = X_{t,s}(y): exact for a map that was trained in both orders of time, a guess for others.

    Cost: 1 network evaluation.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, the invertibility of the flow map.
    """

    def __call__(self, model: FlowMap, y: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The state at time s [B, *]."""
        return model(y, t, s, cond)
