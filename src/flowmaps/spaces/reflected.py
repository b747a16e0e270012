"""A box whose walls throw states back."""

from dataclasses import dataclass

from torch import Tensor

from ..core.random import Random
from ..core.reflect import reflect

__all__ = ["Reflected"]


@dataclass(frozen=True)
class Reflected:
    """The flow lives in a box, where the data lie too; a state beyond a wall is reflected.

    A straight path between a source and data in the box never leaves it; the path of the loss
    "reflected_score_matching" is reflected. Only errors of a map or solver lead out, and they are folded back.

    Args:
        low: lower wall, the lowest value of the data.
        high: upper wall.
    Source: Lou & Ermon, Reflected diffusion models, 2023, arXiv:2304.04740.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low <= 0 <= self.high or self.low == self.high:
            raise ValueError(f"the box must have the origin in it; got {self.low} to {self.high}. Shift the data.")

    @property
    def walls(self) -> tuple[float, float]:
        """The lower wall and the upper."""
        return self.low, self.high

    def encode(self, data: Tensor, *, generator: Random = None) -> Tensor:
        """Data [B, *] -> state [B, *], unchanged.

        Raises:
            ValueError: if data lie outside.
        """
        if bool(((data < self.low) | (data > self.high)).any()):
            raise ValueError(
                f"data must lie between {self.low} and {self.high}; got {float(data.min()):g} to "
                f"{float(data.max()):g}. Set space.low and space.high."
            )
        return data

    def decode(self, x: Tensor) -> Tensor:
        """State [B, *] -> data [B, *], unchanged."""
        return x

    def constrain(self, x: Tensor) -> Tensor:
        """The state, folded into the box."""
        return reflect(x, self.low, self.high)
