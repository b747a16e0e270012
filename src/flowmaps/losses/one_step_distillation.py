"""One-step distillation on pairs of noise and endpoint."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["OneStepDistillation"]


@dataclass(frozen=True)
class OneStepDistillation:
    """Regress the map from noise on the data that the noise is paired with: d(X_{t0,1}(I_t0), x1).

    The pairs must be those of a flow, x1 = X_{0,1}(x0), as the coupling "reflow" gives them: with independent pairs
    the minimum is the mean of the data, and nothing here can tell. Only the jump from t0 to 1 is learned: sample in
    one step, from 0, which for a small t0 is the same.

    Args:
        departure: t0, where the jump starts.
        distance: between the endpoint and the datum.
        interpolant: the path.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient.
    Source: Liu, Gong & Liu, Flow straight and fast: learning to generate and transfer data with rectified flow, 2022,
        arXiv:2209.03003, distillation for k = 1 in the released code; Liu, Zhang, Ma, Peng & Liu, InstaFlow: one step
        is enough for high-quality diffusion-based text-to-image generation, 2023, arXiv:2309.06380.
    Differs: the endpoint is I_t0 + (1 - t0) u where the released code takes x0 + u, the same up to a factor 1 - t0 of
        the error on the straight path; departures before t0 are not trained, there neither, but it samples from t0 and
        we from 0; the distance is not perceptual.
    """

    departure: float = 1e-3
    distance: Distance = Square()
    interpolant: Interpolant = Linear()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        if not 0 <= self.departure < 1:
            raise ValueError(f"departure must lie in [0, 1); got {self.departure}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
        if pair.x1 is None:
            raise ValueError("endpoints are needed; got a pair with x1 = None. Use the coupling 'reflow'.")
        dtype = torch.promote_types(pair.x0.dtype, torch.float32)
        s = torch.full((len(pair),), self.departure, dtype=dtype, device=pair.x0.device)
        t = torch.ones_like(s)
        x, _ = self.interpolant.draw(pair, s, generator)
        error = self.distance(model(x, s, t, pair.cond), pair.x1.to(x.dtype))
        report("endpoint", error)
        return self.weighting(error, s, t)
