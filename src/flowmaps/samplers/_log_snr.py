"""Steps in the log of the signal-to-noise ratio, which exponential integrators of the data prediction share."""

import torch
from torch import Tensor

from ..core.interpolant import Interpolant
from ..core.shapes import expand_time
from ._multistep import History, gauss_legendre, lagrange, mixed


def log_snr(path: Interpolant, t: Tensor) -> Tensor:
    """log(beta / alpha) at times [B], float64; infinite where there is no data, and at t = 1 even with noise left.

    The last step of few is long, and no polynomial reaches so far; of infinite length it is of order 1 on every path.
    """
    t = t.double()
    return torch.where(t >= 1, torch.inf, path.log_snr(t))


def length(here: Tensor, there: Tensor) -> Tensor:
    """Length of the step between two values [B]; zero between equal ones, infinite or not."""
    return torch.where(here == there, 0.0, there - here)


def straight(path: Interpolant, x: Tensor, s: Tensor, t: Tensor, data: Tensor, source: Tensor) -> Tensor:
    """The step on which data and source keep their predictions, x + (beta_t - beta_s) D + (alpha_t - alpha_s) E.

    This is DDIM, beta_t D + alpha_t E, in a form that is regular at both ends and leaves x alone where t = s.
    """
    s, t = s.double(), t.double()
    b, a = (expand_time(f(t) - f(s), x).to(x.dtype) for f in (path.beta, path.alpha))
    return x + b * data + a * source


def exact(nodes: Tensor, here: Tensor, h: Tensor, rate: Tensor) -> Tensor:
    """Weights of values at nodes [B, k] in int_0^1 rate e^{-rate (1 - u)} p(here + h u) du, p polynomial.

    Args:
        nodes: where the values are, [B, k].
        here: where the step begins [B].
        h: its length [B].
        rate: of the exponential, in units of the step [B]; h itself without noise.
    """
    places, masses = gauss_legendre(16, nodes)  # 1e-13 for rates up to 20; a step with more multiplies noise by e^-20
    density = rate[:, None] * torch.exp(-rate[:, None] * (1 - places)) * masses
    weights = (lagrange(nodes, here[:, None] + h[:, None] * places) * density[:, :, None]).sum(1)
    return _where_finite(weights)


def halfway(nodes: Tensor, here: Tensor, h: Tensor, mass: Tensor) -> Tensor:
    """Weights of values at nodes [B, k] in mass p(here + h / 2): as `exact` with one place and a mass [B] of choice."""
    return _where_finite(mass[:, None] * lagrange(nodes, (here + h / 2)[:, None])[:, 0])


def changes(history: History, weights: Tensor, base: int = 0) -> Tensor:
    """The sum of weights [B, k] times what the values differ by from that number `base`: [B, *]."""
    weights = weights.clone()
    weights[:, base] = 0
    weights[:, base] = -weights.sum(1)
    return mixed(history.values, weights)


def _where_finite(weights: Tensor) -> Tensor:
    # A step of infinite length has no polynomial: it is of order 1.
    return torch.where(weights.isfinite().all(1, keepdim=True), weights, 0.0)
