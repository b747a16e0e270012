"""Generalised heavy-ball momentum."""

from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.sampling import Heun, RungeKutta4
from ..core.shapes import expand_time, step_size
from ._multistep import mixed

__all__ = ["GHVB"]


@dataclass(frozen=True)
class _Momenta:
    """Momenta, newest first [B, *], and at which time [B] which moments in time [B, k, order] they have."""

    values: tuple[Tensor, ...]
    moments: Tensor
    at: Tensor


@dataclass(frozen=True)
class GHVB:
    """Adams-Bashforth on a momentum of the slopes: more stable the smaller beta, and of the same order.

    m <- (1 - beta) m + beta b_s(x), with m = b at first, and x <- x + h sum_j c_j m_j over the last `order` momenta.
    The weights are those for which the step is exact if the slope is a polynomial in time of degree order - 1, on the
    grid as it is: a momentum is a mean of slopes with known weights, so that its moments in time are known. With equal
    steps, after some 1 / beta of them, they are the published ones, [2 + beta, -(2 - beta)] / (2 beta) for order 2. The
    first order - 1 steps are Runge-Kutta steps.

    Args:
        order: r, from 1 to 4.
        beta: damping, in (0, 1]; 1 is Adams-Bashforth. The paper's GHVB of order 2.3 is order = 3, beta = 0.3.
    Cost: 1 network evaluation per step; 2 in the first step of order 2, 4 in the first order - 1 steps of higher ones.
    Source: Wizadwongsa, Chinchuthakun, Khungurn, Raj & Suwajanakorn, Diffusion sampling with momentum for mitigating
        divergence artifacts, 2023, arXiv:2307.11118, Section 4.2, and its code.
    Differs: weights for any grid; the start; slopes are velocities in t, theirs noise predictions in alpha / beta.
    """

    order: int = 2
    beta: float = 0.5

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4) or not 0 < self.beta <= 1:
            raise ValueError(f"order must be 1, 2, 3 or 4 and beta lie in (0, 1]; got {self.order} and {self.beta}.")

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: _Momenta | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, _Momenta]:  # fmt: skip
        """One step."""
        slope = model.velocity(x, s, cond)
        state = self._remember(state, s.double(), slope)
        if len(state.values) < self.order:
            start = Heun() if self.order == 2 else RungeKutta4()
            return start.from_slope(model, x, s, t, slope, cond), state
        weights = momentum_weights(state.moments, (t - s).double())
        return x + step_size(s, t, x) * mixed(state.values, weights), state

    def _remember(self, state: _Momenta | None, s: Tensor, slope: Tensor) -> _Momenta:
        now = torch.zeros(len(s), 1, self.order, dtype=s.dtype, device=s.device)
        now[..., 0] = 1  # a slope at time s has no moments about s
        if state is None:
            return _Momenta((slope,), now, s)
        old = moved(state.moments, s - state.at)
        share = self.beta * (s != state.at).to(s.dtype)  # after a step of no length a slope is no news
        momentum = torch.lerp(state.values[0], slope, expand_time(share, slope).to(slope.dtype))
        moments = torch.cat([torch.lerp(old[:, :1], now, share[:, None, None]), old], 1)
        return _Momenta((momentum, *state.values)[: self.order], moments[:, : self.order], s)


def moved(moments: Tensor, by: Tensor) -> Tensor:
    """Moments [B, k, r] about a time that is later by [B]: E (t - by)^i from E t^l, l <= i."""
    r = moments.shape[2]
    shift = torch.stack(
        [torch.stack([comb(i, j) * (-by) ** (i - j) if j <= i else 0 * by for j in range(r)], 1) for i in range(r)], 1
    )
    return moments @ shift.transpose(1, 2)


def momentum_weights(moments: Tensor, h: Tensor) -> Tensor:
    """Weights [B, k] of momenta with moments [B, k, k] about the start of a step h [B], for its mean."""
    powers = torch.arange(moments.shape[2], dtype=h.dtype, device=h.device)
    scaled = moments / torch.where(h == 0, 1.0, h)[:, None, None] ** powers
    # A momentum that is the same as a newer one is left out, and a condition with it.
    same = (scaled[:, :, None] - scaled[:, None]).abs().amax(3) < 1e-9
    out = same.tril(-1).any(2)
    one = torch.eye(len(powers), dtype=h.dtype, device=h.device)
    system = torch.where(out[:, :, None] | out[:, None, :], one, scaled.transpose(1, 2))
    return torch.linalg.solve_ex(system, torch.where(out, 0.0, 1 / (powers + 1)))[0]
