"""Stochastic interpolants: velocity and denoiser together, so that any noise may be added in sampling."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.report import report
from ..core.shapes import square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["StochasticInterpolant"]


@dataclass(frozen=True)
class StochasticInterpolant:
    """Regress the diagonal on the conditional velocity, and a second head on the noise in the state.

    E |b_t(I_t) - dI_t/dt|^2 + denoiser |eta_t(I_t) - z|^2, with I_t = alpha x0 + beta x1 + gamma z; the minima are the
    velocity and E[z | I_t] = -gamma grad log rho_t(I_t). On a path without latent noise the source, N(0, I), is z.

    The map must have the head: the map "denoiser_head" and a network with two outputs. Sample with a solver, or with a
    stochastic sampler and any level of noise.

    Args:
        denoiser: weight of the second head.
        antithetic: use z and -z together, which keeps the variance of the gradient finite for gamma = sqrt(t (1 - t)).
        interpolant: the path, which may have latent noise and then any source.
        times: law of t.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, 2 when antithetic.
    Source: Albergo, Boffi & Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions,
        2023, arXiv:2303.08797, Eq. (2.13) and (2.19), learned as in Section 6.1.
    Differs: both heads share one network and one draw; squares are completed, which adds a constant.
    """

    learns_map: ClassVar[bool] = False

    denoiser: float = 1.0
    antithetic: bool = False
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if self.antithetic and not self.interpolant.latent:
            raise ValueError("antithetic needs a path with latent noise, such as the interpolant 'stochastic'.")

    @property
    def needs_gaussian(self) -> bool:
        """Where the source is the noise that the second head learns."""
        return not self.interpolant.latent

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension.

        Raises:
            ValueError: if the pair has no data, or the map no head for the noise.
        """
        if pair.x1 is None:
            raise ValueError("the path needs data; got a pair with x1 = None.")
        t = self.times(len(pair), pair.x0, generator)
        z = normal(pair.x0.shape, pair.x0, generator).to(pair.x0.dtype) if self.interpolant.latent else None
        loss = self._error(model, pair, pair.x1, t, z)
        if self.antithetic and z is not None:
            loss = (loss + self._error(model, pair, pair.x1, t, -z)) / 2
        return self.times.reweighted(t, self.weighting(loss, t, t))

    def _error(self, model: FlowMap, pair: Pair, x1: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        x, w = self.interpolant.state(pair.x0, x1, t, z), self.interpolant.velocity(pair.x0, x1, t, z)
        v, noise = model.with_noise(x, t, pair.cond)
        if noise is None:
            raise ValueError(
                f"the map must have a head for the noise; got {type(model).__name__}. Set map to 'denoiser_head' and "
                "net.outputs to 2."
            )
        velocity, denoised = square_error(v, w), square_error(noise, pair.x0 if z is None else z)
        report("velocity", velocity)
        report("denoiser", denoised)
        return velocity + self.denoiser * denoised
