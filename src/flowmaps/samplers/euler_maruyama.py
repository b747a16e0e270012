"""Euler's method for the stochastic equations with the flow's marginals."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time
from ..core.stochastic import drift_and_diffusion

__all__ = ["EulerMaruyama"]


def noisy_drift(
    model: FlowMap, path: Interpolant, noise: float, x: Tensor, t: Tensor, way: Tensor, cond: Any
) -> tuple[Tensor, Tensor]:
    """Drift [B, *] and noise level e_t = noise c_t^2 [B], c the noise scale of the path: one rate at all times.

    Args:
        model: the flow map.
        path: the path it was trained on.
        noise: the rate.
        x: states [B, *].
        t: times [B].
        way: 1 where the equation runs forwards, -1 where backwards [B]; noise is added either way.
        cond: condition.
    """
    level = noise * path.noise_scale(t) ** 2
    return drift_and_diffusion(model, path, way * level, x, t, cond)[0], level


@dataclass(frozen=True)
class EulerMaruyama:
    """One step of dx = (b_t + e_t grad log rho_t) dt + sqrt(2 e_t) dW, which has the marginals of the flow.

    x <- x + h (b_s + e_s grad log rho_s)(x) + sqrt(2 e_s h) z, with h = t - s, e_s = noise c_s^2 and z ~ N(0, I), where
    c is the path's coefficient of Gaussian noise: of the source N(0, I), or of latent noise with any source. Old errors
    are forgotten at the rate `noise`; none is the flow by Euler's method.

    Args:
        noise: at least 0; h noise should be well below 1.
        interpolant: the path the map was trained on; with latent noise the map must have a head for it.
    Cost: 1 network evaluation per step.
    Source: Maruyama, Continuous Markov processes and stochastic equations, 1955; the equation: Albergo, Boffi &
        Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions, 2023, arXiv:2303.08797,
        Eq. (2.33).
    """

    noise: float = 1.0
    interpolant: Interpolant = Linear()

    weak_order = 1

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0; got {self.noise}.")

    @property
    def needs_gaussian(self) -> bool:
        """With noise, which the score makes up for; a head for the noise of the path gives that by itself."""
        return self.noise > 0 and not self.interpolant.latent

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """One step."""
        h = t - s
        drift, level = noisy_drift(model, self.interpolant, self.noise, x, s, h.sign(), cond)
        shock = expand_time((2 * level * h.abs()).sqrt(), x).to(x.dtype) * normal(x.shape, x, generator).to(x.dtype)
        return torch.addcmul(x, expand_time(h, x).to(x.dtype), drift) + shock, None
