"""The velocity of the map that is trained."""

from dataclasses import dataclass

from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.target import Own, Target
from ..core.types import Pair

__all__ = ["Diagonal"]


@dataclass(frozen=True)
class Diagonal:
    """The map's own diagonal, u_{s,s}(I_s), stopped.

    Args:
        target: which weights.
    Cost: 1 network evaluation without gradient.
    Source: Geng, Lu, Wu & others, Improved mean flows: on the challenges of fastforward generative models, 2025,
        arXiv:2512.02012, the tangent of the derivative.
    Differs: with the map's own weights it sees the dropout mask of the prediction; an average has no dropout.
    """

    target: Target = Own()

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The diagonal at (x, s)."""
        with stop_gradient():
            return self.target(model).velocity(x, s, pair.cond)
