"""How far a map is from the true one."""

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.sampling import Jump, sample
from ..core.types import Sampler

__all__ = ["map_error"]


@torch.no_grad()
def map_error(
    model: FlowMap, x0: Tensor, exact: Tensor, steps: int, sampler: Sampler = Jump(), cond: object = None
) -> float:
    """Relative root mean square error of the K-step map: |X_K(x0) - X_{0,1}(x0)| over |X_{0,1}(x0) - mean|.

    Unlike a distance between laws it has no floor from finite samples, and sees whether each point lands where the
    true flow carries it.

    Args:
        model: the flow map.
        x0: source [B, *].
        exact: X_{0,1}(x0) from an oracle or a tight solve [B, *].
        steps: number K of equal steps.
        sampler: how a step is taken.
        cond: condition, batch first.
    Returns:
        Error without unit; 0 is exact, 1 is no better than always giving the mean of the data.
    Cost: K times the sampler's evaluations.
    """
    y = sample(model, x0, torch.linspace(0, 1, steps + 1, dtype=torch.float64), sampler=sampler, cond=cond)
    spread = exact - exact.mean(0)
    return float(((y - exact).double().square().sum() / spread.double().square().sum()).sqrt())
