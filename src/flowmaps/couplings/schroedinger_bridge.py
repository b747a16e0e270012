"""Source and data paired by entropic optimal transport, as the ends of a Schrödinger bridge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.interpolant import Interpolant
from ..core.random import Random
from ..core.types import Coupling, Pair
from ._transport import drawn, sinkhorn, transported
from .independent import Independent

__all__ = ["SchroedingerBridge"]


@dataclass(frozen=True)
class SchroedingerBridge:
    """Sources exchanged within the batch by the plan of the Schrödinger bridge, for a Brownian bridge as path.

    Of all processes with the two laws at its ends, the Schrödinger bridge is the one nearest to Brownian motion sigma
    W: a mixture of the Brownian bridges I_t = (1 - t) x0 + t x1 + sigma sqrt(t (1 - t)) z between ends that are paired
    by the plan P >= 0 with rows and columns of sum one that minimises

        sum_ij P_ij |x0_i - x1_j|^2 + 2 sigma^2 sum_ij P_ij log P_ij.

    The loss "stochastic_interpolant", best with antithetic = true, regresses both of its fields, the velocity b and the
    noise, whence the score. The bridge is dx = (b_t + sigma^2 / 2 grad log rho_t) dt + sigma dW; the flow and the
    stochastic samplers have its marginals.

    Every datum is used once, in its place, with its condition. In many dimensions a small sigma calls for large
    batches: plans within a batch are too close to independence.

    Args:
        interpolant: the run's path, { name = "stochastic", power = 0.5, scale = sigma }; sigma is taken from it.
        within_conditions: exchange sources only among equal conditions; see "minibatch_ot".
        coupling: draws the sources; they must not depend on the data.
    Cost: no network evaluation; a plan between the sources and the data of a batch.
    Source: Tong, Malkin, Fatras & others, Simulation-free Schrödinger bridges via score and flow matching, 2023,
        arXiv:2307.03672, [SF]2M with minibatches.
    Differs: a source is drawn for each datum, where the released code draws pairs with replacement; the noise is
        regressed in place of the score, which weights it as their code does up to a constant.
    """

    gaussian = False  # but the path has noise of its own

    interpolant: Interpolant
    within_conditions: bool = True
    coupling: Coupling = Independent()

    def __post_init__(self) -> None:
        p, t = self.interpolant, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
        straight = torch.allclose(p.alpha(t), 1 - t) and torch.allclose(p.beta(t), t)
        if not (p.latent and straight and torch.allclose(p.gamma(t), self.sigma * (t * (1 - t)).sqrt())):
            raise ValueError(
                f"interpolant must be a Brownian bridge between source and data; got {p}. Set it to {{ name = "
                '"stochastic", power = 0.5, scale = sigma }.'
            )

    @property
    def sigma(self) -> float:
        """The diffusion coefficient, from the width of the path in the middle."""
        return 2 * float(self.interpolant.gamma(torch.tensor(0.5, dtype=torch.float64)))

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *]."""
        pair = self.coupling(x1, cond, generator=generator)
        return transported(pair, self._match, self.within_conditions, generator)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        return self.coupling.source(shape, like, cond, generator=generator)

    def _match(self, cost: Tensor, u: Tensor) -> Tensor:
        return drawn(sinkhorn(cost, 2 * self.sigma**2), u)
