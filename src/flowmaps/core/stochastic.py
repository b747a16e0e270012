"""The stochastic differential equations that share the marginals of a flow."""

from typing import Any

from torch import Tensor

from .flow_map import FlowMap
from .interpolant import Interpolant
from .shapes import expand_time


def drift_and_diffusion(
    model: FlowMap, interpolant: Interpolant, noise: Tensor, x: Tensor, t: Tensor, cond: Any = None
) -> tuple[Tensor, Tensor]:
    """Drift and diffusion that add noise without changing the law of the state at any time.

    dx = (b_t + e_t grad log rho_t) dt + sqrt(2 e_t) dW, for any level e_t >= 0; e = 0 is the flow itself.

    Args:
        model: the flow map; its diagonal is the velocity b. A head for the noise, if it has one, gives the score.
        interpolant: the path it was trained on. Without such a head it turns the velocity into the score, for a source
            N(0, I), independent of the data, and no latent noise.
        noise: level e_t [B]; it must vanish at least as fast as interpolant.noise_scale(t) where that is zero.
        x: state [B, *].
        t: times [B].
        cond: condition, batch first.
    Returns:
        Drift [B, *] and diffusion coefficient sqrt(2 e_t) [B].
    Cost: 1 network evaluation.
    Source: Albergo, Boffi & Vanden-Eijnden, Stochastic interpolants: a unifying framework for flows and diffusions,
        2023, arXiv:2303.08797, Corollary 2.18, Eq. (2.33), with the drift (2.21).
    """
    v, source = model.with_noise(x, t, cond)
    if source is None:
        source = interpolant.source_from_velocity(v, x, t)
    # e * score = -(e / c) E[noise|x]: the quotient is formed first because both vanish at the data end.
    ratio = noise / interpolant.noise_scale(t).clamp_min(1e-12)
    return v - (expand_time(ratio, x) * source).to(x.dtype), (2 * noise).sqrt()
