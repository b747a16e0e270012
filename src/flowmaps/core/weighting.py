"""The default weighting of errors: none."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Unweighted:
    """The error of every sample counts as it is."""

    def __call__(self, error: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The error [B], unchanged."""
        return error
