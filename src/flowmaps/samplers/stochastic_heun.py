"""Heun's method for the stochastic equations with the flow's marginals."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.shapes import expand_time
from .euler_maruyama import noisy_drift

__all__ = ["StochasticHeun"]


@dataclass(frozen=True)
class StochasticHeun:
    """Drifts at both ends of a step with one draw of noise: weak order 2 for the equation of EulerMaruyama.

    y = x + h f_s(x) + w and x <- x + h/2 [f_s(x) + f_t(y)] + w, with h = t - s, the drift f = b + e grad log rho, w ~
    N(0, h (e_s + e_t) I) and e_t = noise c_t^2, as in EulerMaruyama.

    Args:
        noise: at least 0; h noise should be well below 1.
        interpolant: the path the map was trained on; with latent noise the map must have a head for it.
    Cost: 2 network evaluations per step.
    Source: Kloeden & Platen, Numerical solution of stochastic differential equations, 1992, Chapter 15, the explicit
        scheme of weak order 2.0 for additive noise; the equation: Albergo, Boffi & Vanden-Eijnden, 2023,
        arXiv:2303.08797, Eq. (2.33).
    Differs: the noise depends on time; its variance over the step is taken by the trapezoidal rule.
    """

    noise: float = 1.0
    interpolant: Interpolant = Linear()

    weak_order = 2

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
        p, h, way = self.interpolant, expand_time(t - s, x).to(x.dtype), (t - s).sign()
        first, level = noisy_drift(model, p, self.noise, x, s, way, cond)
        spread = ((t - s).abs() * (level + self.noise * p.noise_scale(t) ** 2)).sqrt()
        shock = expand_time(spread, x).to(x.dtype) * normal(x.shape, x, generator).to(x.dtype)
        second, _ = noisy_drift(model, p, self.noise, x + h * first + shock, t, way, cond)
        return x + h / 2 * (first + second) + shock, None
