"""The space of the data itself."""

from dataclasses import dataclass

from torch import Tensor

from ..core.random import Random

__all__ = ["Euclidean"]


@dataclass(frozen=True)
class Euclidean:
    """The flow lives in the data space, shifted and scaled: x = (data - shift) / scale.

    Args:
        shift: subtracted from the data.
        scale: divides the data; with `shift`, brings them to about unit variance.
    """

    shift: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0; got {self.scale}.")

    @property
    def _same(self) -> bool:
        return self.shift == 0 and self.scale == 1

    def encode(self, data: Tensor, *, generator: Random = None) -> Tensor:
        """Data [B, *] -> state [B, *]."""
        return data if self._same else (data - self.shift) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """State [B, *] -> data [B, *]."""
        return x if self._same else x * self.scale + self.shift

    def constrain(self, x: Tensor) -> Tensor:
        """Every state is allowed."""
        return x
