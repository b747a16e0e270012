"""The square error and the angle."""

from dataclasses import dataclass

from torch import Tensor

from ..core.shapes import square_error

__all__ = ["SquareAndCosine"]


@dataclass(frozen=True)
class SquareAndCosine:
    """|a - b|^2 / D + weight (1 - cos(a, b)), the cosine taken over the first dimension of a sample (channels).

    Args:
        weight: of the angle.
    Source: Peng & others, Flow-anchored consistency models, 2025, arXiv:2507.03738, the flow matching term of the
        released code (losses.py).
    """

    weight: float = 1.0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [B]."""
        dot = (a * b).sum(1)
        cosine = dot / (a.square().sum(1) * b.square().sum(1) + 1e-12).sqrt()
        return square_error(a, b) + self.weight * (1 - cosine.reshape(len(a), -1).mean(1))
