"""Where a target's velocity comes from. What the field's methods share is an argument, not a copy."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from .flow_map import FlowMap
from .random import Random
from .types import Pair


class VelocitySource(Protocol):
    """A velocity at points of the path, for targets: nothing in it carries gradient.

    A source that is not right anywhere else, because it reads w or the pair, says `needs_path = True`.

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

    needs_path: ClassVar[bool] = True

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The conditional velocity."""
        return w


def needs_path(velocity: VelocitySource | None) -> bool:
    """Whether a source gives velocities on the path of the pair only."""
    return getattr(velocity, "needs_path", False)


class Telling(ABC):
    """A velocity source that depends on a number which the network is told, and which it draws for each sample."""

    @abstractmethod
    def tell(self, model: FlowMap, pair: Pair, generator: Random) -> Pair:
        """The pair with the number in its condition, for the diagonal and off it."""

    @abstractmethod
    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The velocity for the number in the condition of the pair."""


def told(velocity: VelocitySource | None, model: FlowMap, pair: Pair, generator: Random) -> Pair:
    """The pair with what a velocity source tells the network; the pair itself if the source tells nothing.

    Every loss that takes a velocity begins with this.
    """
    return velocity.tell(model, pair, generator) if isinstance(velocity, Telling) else pair
