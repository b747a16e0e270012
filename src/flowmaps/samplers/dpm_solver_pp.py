"""DPM-Solver++, with and without noise."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time
from ._log_snr import changes, exact, halfway, length, log_snr, straight
from ._multistep import History, remember

__all__ = ["DPMSolverPP"]


@dataclass(frozen=True)
class DPMSolverPP:
    """Multistep exponential integrator of the data prediction D in l = log(beta / alpha).

    x <- alpha_t / alpha_s e^{-eta h} x + beta_t int (1 + eta) e^{-(1 + eta)(l_t - l)} D(l) dl + alpha_t sqrt(1 - e^{-2
    eta h}) e, with h = l_t - l_s > 0, e ~ N(0, I), and D(l) extrapolated from the last predictions: constant (1), its
    value half-way on the line through two (2M), the parabola through three (3M).

    A step to t = 1, or from a time without data where l is infinite, is of order 1, and so are the first ones: what an
    order of 3 promises shows on grids that end inside and begin with short steps.

    Args:
        solver_order: number of predictions, the order without noise; 1 is DDIM; 2 for guided sampling; 3.
        eta: noise, 0 for the differential equation of the flow, 1 for the reverse diffusion; backwards there is none.
        interpolant: the path the map was trained on, with a source N(0, I) if there is noise.
    Cost: 1 network evaluation per step.
    Source: Lu, Zhou, Bao, Chen, Li & Zhu, DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
        models, 2022, arXiv:2211.01095, Algorithm 2 (2M) and the SDE-DPM-Solver++ of its appendix; 3M: their released
        code; noise of any strength: Crowson, k-diffusion (code), sample_dpmpp_2m_sde and sample_dpmpp_3m_sde.
    Differs: 3M takes the whole of the second derivative; the released code takes half of it, which is of order 2.
    """

    solver_order: int = 2
    eta: float = 0.0
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3) or self.eta < 0:
            raise ValueError(
                f"solver_order must be 1, 2 or 3 and eta at least 0; got {self.solver_order} and {self.eta}."
            )

    @property
    def order(self) -> int | None:
        """Of convergence, if nothing is random."""
        return self.solver_order if self.eta == 0 else None

    @property
    def weak_order(self) -> int | None:
        """Of the law of the samples, with noise."""
        return min(self.solver_order, 2) if self.eta > 0 else None

    @property
    def needs_gaussian(self) -> bool:
        """With fresh noise, which takes the place of the source."""
        return self.eta > 0

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: History | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, History]:  # fmt: skip
        """One step."""
        p, v = self.interpolant, model.velocity(x, s, cond)
        data, source = p.data_from_velocity(v, x, s).to(x.dtype), p.source_from_velocity(v, x, s).to(x.dtype)
        here = log_snr(p, s)
        h = length(here, log_snr(p, t))
        state = remember(state, here, data, self.solver_order)
        x = straight(p, x, s, t, data, source)
        fading = self.eta * h.clamp_min(0)
        if len(state) > 1:
            if len(state) == 2:
                weights = halfway(state.nodes, here, h, -torch.expm1(-h - fading))
            else:
                weights = exact(state.nodes, here, h, h + fading)
            x = x + expand_time(p.beta(t), x).to(x.dtype) * changes(state, weights)
        if self.eta > 0:
            kept, alpha = torch.exp(-fading), p.alpha(t.double())
            fresh = (alpha * (kept - 1), alpha * (1 - kept**2).sqrt())
            old, new = (expand_time(c, x).to(x.dtype) for c in fresh)
            x = x + old * source + new * normal(x.shape, x, generator).to(x.dtype)
        return x, state
