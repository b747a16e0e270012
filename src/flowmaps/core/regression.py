"""How a prediction is pulled towards a target: the distance, and what is done to a correction before it becomes one."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .shapes import square_error


class Distance(Protocol):
    """Error [B] of predictions [B, *] against targets [B, *]."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class Stabiliser(Protocol):
    """Tames a correction [B, *], sample by sample, without gradient."""

    def __call__(self, g: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Square:
    """Mean square per dimension: the distance whose minimum is the conditional mean."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """|a - b|^2 / D, [B]."""
        return square_error(a, b)


@dataclass(frozen=True)
class Unchanged:
    """The correction as it is."""

    def __call__(self, g: Tensor) -> Tensor:
        """The correction, unchanged."""
        return g


def ramp(step: int, length: int) -> float:
    """A factor that rises from 0 to 1 over the first `length` images; 1 at once for length 0."""
    return min(1.0, step / length) if length else 1.0
