"""A correction within limits."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Clamped"]


@dataclass(frozen=True)
class Clamped:
    """Every entry of the correction cut to [-limit, limit].

    Args:
        limit: largest absolute value.
    Source: Lu & Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2024, arXiv:2410.11081,
        Section 4.2, tangent clipping to [-1, 1].
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit must be > 0; got {self.limit}.")

    def __call__(self, g: Tensor) -> Tensor:
        """The clamped correction [B, *]."""
        return g.clamp(-self.limit, self.limit)
