"""Heavy-ball momentum around Adams-Bashforth."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.shapes import step_size
from ._multistep import History, mean_weights, mixed, remember

__all__ = ["HeavyBall"]


@dataclass(frozen=True)
class _Moving:
    """The last slopes, and the momentum [B, *] of their means over the steps."""

    history: History
    momentum: Tensor


@dataclass(frozen=True)
class HeavyBall:
    """The mean slope of an Adams-Bashforth step goes through a momentum, which damps what few steps amplify.

    m <- (1 - beta) m + beta p and x <- x + h m, where h p is the step of Adams-Bashforth through the last `slopes`
    slopes and m = b at first; with Nesterov's look ahead x <- x + h [(1 - beta) m + beta p]. Of order 1 whatever the
    slopes, unlike GHVB; the first steps have as many slopes as there are.

    Args:
        slopes: how many, from 1 to 4.
        beta: damping, in (0, 1]; 1 is Adams-Bashforth.
        nesterov: whether to look ahead.
    Cost: 1 network evaluation per step.
    Source: Wizadwongsa, Chinchuthakun, Khungurn, Raj & Suwajanakorn, Diffusion sampling with momentum for mitigating
        divergence artifacts, 2023, arXiv:2307.11118, Section 4.1, and its code (PLMS with HB and with NT).
    Differs: weights for any grid; slopes are velocities in t, theirs noise predictions in alpha / beta.
    """

    slopes: int = 2
    beta: float = 0.8
    nesterov: bool = False

    order = 1

    def __post_init__(self) -> None:
        if self.slopes not in (1, 2, 3, 4) or not 0 < self.beta <= 1:
            raise ValueError(f"slopes must be 1, 2, 3 or 4 and beta lie in (0, 1]; got {self.slopes} and {self.beta}.")

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: _Moving | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, _Moving]:  # fmt: skip
        """One step."""
        slope = model.velocity(x, s, cond)
        history = remember(None if state is None else state.history, s, slope, self.slopes)
        mean = mixed(history.values, mean_weights(history.nodes, s, t))
        momentum = torch.lerp(slope if state is None else state.momentum, mean, self.beta)
        used = torch.lerp(momentum, mean, self.beta) if self.nesterov else momentum
        return x + step_size(s, t, x) * used, _Moving(history, momentum)
