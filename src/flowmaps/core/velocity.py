"""Where a target's velocity comes from. What the field's methods share is an argument, not a copy."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .flow_map import FlowMap
from .types import Pair


class VelocitySource(Protocol):
    """A velocity at points of the path, for targets: nothing in it carries gradient.

    Args:
        model: the map that is trained.
        pair: the coupled draw [B, *] that the points lie on.
        x: points I_s [B, *].
        w: conditional velocity dI_s/ds there [B, *].
        s: times [B].
    Returns:
        Velocity [B, *].
    """

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Conditional:
    """The velocity of the sampled path itself, dI_s/ds: right on average, E[dI_s/ds | I_s] = b_s(I_s)."""

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The conditional velocity."""
        return w
