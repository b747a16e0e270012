"""Jump too far, and come back with noise."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_choice, check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time

__all__ = ["Gamma"]


@dataclass(frozen=True)
class Gamma:
    """To reach t, jump on to t' > t and add the noise that leads back: the law at t is kept.

    x <- beta_t / beta_{t'} X_{s,t'}(x) + gamma alpha_t e, with alpha_{t'} / beta_{t'} = sqrt(1 - gamma^2) alpha_t /
    beta_t and e ~ N(0, I). Gamma 0 is the jump; 1 jumps to the data and draws fresh noise, which is how consistency
    models take several steps. Fresh noise forgets old errors. At the data, t = 1, it is the jump.

    Args:
        gamma: share of fresh noise, as a standard deviation.
        rule: "exact", as above; "released" takes 1 - t' = sqrt(1 - gamma^2) (1 - t) and t / t' X + (1 - t / t') e, on
            the linear path, which leaves less noise than the law at t has.
        interpolant: the path the map was trained on, with a source N(0, I).
    Cost: 1 network evaluation per step.
    Source: Kim, Lai, Liao & others, Consistency trajectory models: learning probability flow ODE trajectory of
        diffusion, 2023, arXiv:2310.02279, gamma-sampling, there for the variance exploding path; the released rule:
        Lee, Yu & Shin, Decoupled MeanFlow: turning flow models into flow maps for accelerated sampling, 2025,
        arXiv:2510.24474 (released code).
    Differs: any Gaussian path.
    """

    gamma: float = 0.5
    rule: str = "exact"
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        self.interpolant.refuse_latent()
        check_share("gamma", self.gamma)
        check_choice("rule", self.rule, ("exact", "released"))
        if self.rule == "released" and not isinstance(self.interpolant, Linear):
            raise ValueError(f"the released rule needs the linear path; got {self.interpolant}. Use rule='exact'.")

    @property
    def needs_gaussian(self) -> bool:
        """With fresh noise, which takes the place of the source."""
        return self.gamma > 0

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step."""
        if self.gamma == 0:
            return model(x, s, t, cond), None
        p, keep = self.interpolant, math.sqrt(1 - self.gamma**2)
        arrived = (t >= 1) | (p.alpha(t) <= 0)
        if self.rule == "released":
            further = 1 - keep * (1 - t)
            back = t / further.clamp_min(1e-12)
            spread = 1 - back
        else:
            inside = torch.where(arrived, 0.5, t)
            further = p.time_at(p.log_snr(inside.double()) - math.log(max(keep, 1e-30))).to(t.dtype)
            begun = p.beta(t) > 0  # without data, at t = 0, the limit of the quotient is sqrt(1 - gamma^2)
            back = torch.where(begun, p.beta(t) / torch.where(begun, p.beta(further), 1.0), keep)
            spread = self.gamma * p.alpha(t)
        further, back = torch.where(arrived, t, further), torch.where(arrived, 1.0, back)
        landed = expand_time(back, x).to(x.dtype) * model(x, s, further, cond)
        noise = normal(x.shape, x, generator).to(x.dtype)
        return landed + expand_time(torch.where(arrived, 0.0, spread), x).to(x.dtype) * noise, None
