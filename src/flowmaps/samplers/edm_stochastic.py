"""Heun's method in the noise level, with noise added and taken away."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time
from ._log_snr import straight

__all__ = ["EDMStochastic"]


@dataclass(frozen=True)
class EDMStochastic:
    """Go back to a noisier time with fresh noise, then take a step of Heun's method in the noise level.

    With sigma = alpha / beta and y = x / beta: to (1 + churn) sigma_s by y + sqrt((1 + churn)^2 - 1) sigma_s inflation
    e, e ~ N(0, I), if least <= sigma_s <= most; from there to sigma_t along dy / dsigma = E[x0|x]. The flow is an EDM
    model seen through its signal-to-noise ratio, whatever the path. Where a level is infinite or zero, at an end
    without data or without noise, nothing is added and the step is Euler's.

    Args:
        churn: share by which the noise is raised, S_churn / steps in the paper, at most sqrt(2) - 1 there; 0 is EDM's
            deterministic sampler, of order 2 on grids that are even in log sigma.
        least, most: levels between which noise is added.
        inflation: standard deviation of e, a little above 1 against lost detail.
        interpolant: the path the map was trained on, with a source N(0, I).
    Cost: 2 network evaluations per step, 1 in the last one to the data and in the first one from noise alone.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Algorithm 2.
    Differs: the churn of a step is given, not divided by the number of steps; a path may begin without data.
    """

    churn: float = 0.15
    least: float = 0.0
    most: float = math.inf
    inflation: float = 1.0
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        if self.churn < 0 or self.inflation <= 0 or not 0 <= self.least <= self.most:
            raise ValueError(
                "churn must be at least 0, inflation > 0 and 0 <= least <= most; got "
                f"{self.churn}, {self.inflation}, {self.least} and {self.most}."
            )

    @property
    def order(self) -> int | None:
        """Of convergence, if nothing is random."""
        return 2 if self.churn == 0 else None

    @property
    def needs_gaussian(self) -> bool:
        """With fresh noise, which takes the place of the source."""
        return self.churn > 0

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step."""
        p = self.interpolant
        if self.churn > 0:
            x, s = self._raised(x, s, t, generator)
        v = model.velocity(x, s, cond)
        data, source = p.data_from_velocity(v, x, s).to(x.dtype), p.source_from_velocity(v, x, s).to(x.dtype)
        y = straight(p, x, s, t, data, source)
        both = (p.beta(s) > 0) & (p.beta(t) > 0) & (p.alpha(t.double()) > 1e-12)
        if not bool(both.any()):
            return y, None
        ahead = p.source_from_velocity(model.velocity(y, t, cond), y, t).to(x.dtype)
        fall = _level(p, t) - _level(p, s)
        half = torch.where(both, p.beta(t.double()) * fall / 2, 0.0)
        return y + expand_time(half, x).to(x.dtype) * (ahead - source), None

    def _raised(self, x: Tensor, s: Tensor, t: Tensor, generator: Random) -> tuple[Tensor, Tensor]:
        """States and times after fresh noise."""
        p, level = self.interpolant, _level(self.interpolant, s)
        chosen = (s != t) & (level > 0) & level.isfinite() & (level >= self.least) & (level <= self.most)
        inside = torch.where(chosen, s.double(), 0.5)
        back = p.time_at(p.log_snr(inside) - math.log1p(self.churn)).to(s.dtype)
        # From the time as it is, which may be rounded or the path's first.
        more = _level(p, back) ** 2 - _level(p, inside) ** 2
        beta, fresh = p.beta(back.double()), self.inflation * more.clamp_min(0).sqrt()
        old = torch.where(chosen, beta / p.beta(inside), 1.0)
        new = torch.where(chosen, beta * fresh, 0.0)
        noise = normal(x.shape, x, generator).to(x.dtype)
        x = expand_time(old, x).to(x.dtype) * x + expand_time(new, x).to(x.dtype) * noise
        return x, torch.where(chosen, back, s)


def _level(path: Interpolant, t: Tensor) -> Tensor:
    """Sigma = alpha / beta at times [B], float64."""
    return torch.exp(-path.log_snr(t.double()))
