"""Denoising score matching in a box, with noise that the walls throw back."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant
from ..core.random import Random
from ..core.reflect import reflect
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["ReflectedScoreMatching"]

SWITCH = 0.25  # sigma^2 / 2 in boxes: above it cosines, below it images; both are exact to rounding here


@dataclass(frozen=True)
class ReflectedScoreMatching:
    """Regress the diagonal on the velocity of one reflected noisy datum.

    E |b_t(y) - w|^2 / sigma'^2, with y = reflect(x1 + sigma_t x0), w = -sigma_t sigma'_t grad_y log K_t(y | x1) and K
    the heat kernel with reflecting walls. The minimum is b = -sigma sigma' grad log rho_t: the flow whose law at t is
    that of reflected noisy data, uniform in the box for large sigma. In terms of the score it weighs by sigma^2.

    Sample with a solver or a stochastic sampler that reflects, in the space "reflected".

    Args:
        interpolant: gives sigma_t, on which x1 + sigma_t x0 is the state: "variance_exploding".
        low: lower wall.
        high: upper wall.
        times: law of t.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient.
    Source: Lou & Ermon, Reflected diffusion models, 2023, arXiv:2304.04740, constrained denoising score matching, and
        its released code (cube.py, losses.py, sde_lib.py): sigma from 0.01 to 5 in the unit box.
    Differs: the velocity is learned, which has the score as a factor; the two series of the heat kernel meet at
        sigma^2 / 2 = 0.25, where both are exact in float32 too, in place of 0.01; the released option of likelihood
        weighting, by the square of the diffusion coefficient in place of sigma^2, is left out.
    """

    learns_map: ClassVar[bool] = False
    needs_gaussian = True

    interpolant: Interpolant
    low: float = -1.0
    high: float = 1.0
    times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if self.high <= self.low:
            raise ValueError(f"high must be above low; got {self.high} and {self.low}.")
        if self.interpolant.latent or not bool((self.interpolant.beta(torch.linspace(0, 1, 5)) == 1).all()):
            raise ValueError(
                f"the path must be the data plus noise; got {type(self.interpolant).__name__}. Set interpolant to "
                "'variance_exploding', for example with sigma_min 0.01 and sigma_max 5 widths of the box."
            )

    @property
    def walls(self) -> tuple[float, float]:
        """Where the path is reflected, as the space must."""
        return self.low, self.high

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        t = self.times(len(pair), pair.x0, generator)
        x, _ = self.interpolant.draw(pair, t, generator)
        assert pair.x1 is not None  # or draw would have raised
        width = self.high - self.low
        y = reflect(x, self.low, self.high)
        sigma, rate = expand_time(self.interpolant.alpha(t), x), expand_time(self.interpolant.alpha_dot(t), x)
        with torch.no_grad():
            score = heat_kernel_score((y - self.low) / width, (pair.x1 - self.low) / width, sigma / width) / width
        error = square_error(model.velocity(y, t, pair.cond) / rate, -sigma * score)
        report("score", error)
        return self.times.reweighted(t, self.weighting(error, t, t))


def heat_kernel_score(y: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Grad_y log K(y | x) in [0, 1], wall by wall: coordinates of x that moved by sigma n, n ~ N(0, 1), reflected.

    K = sum_k N(y; 2 k +- x, sigma^2) = 1 + 2 sum_k exp(-(pi k sigma)^2 / 2) cos(pi k x) cos(pi k y).

    Args:
        y: where [B, *].
        x: from where [B, *].
        sigma: standard deviation before reflection [B, 1, ..., 1].
    Returns:
        Score [B, *].
    """
    k = 2 * torch.arange(-4, 5, device=y.device, dtype=y.dtype)
    gap = y[..., None] - torch.cat([k + x[..., None], k - x[..., None]], -1)
    images = -((-(gap**2) / (2 * sigma[..., None] ** 2)).softmax(-1) * gap).sum(-1) / sigma**2
    k = math.pi * torch.arange(1, 6, device=y.device, dtype=y.dtype)
    waves = 2 * (-((k * sigma[..., None]) ** 2) / 2).exp() * (k * x[..., None]).cos()
    angle = k * y[..., None]
    cosines = -(k * waves * angle.sin()).sum(-1) / (1 + (waves * angle.cos()).sum(-1))
    return torch.where(sigma**2 / 2 > SWITCH, cosines, images)
