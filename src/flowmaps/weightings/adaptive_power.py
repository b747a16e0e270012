"""Samples with a large error count less."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["AdaptivePower"]


@dataclass(frozen=True)
class AdaptivePower:
    """The error over a stopped power of itself: e / sg(e + offset)^power.

    Power 0 is the square error, 1/2 behaves like a Huber loss and makes all gradients of similar size, 1 makes relative
    errors count.

    Args:
        power: how strongly large errors are damped.
        offset: the error, per dimension, below which nothing is damped.
    Source: Geng, Deng, Bai, Kolter & He, Mean flows for one-step generative modeling, 2025, arXiv:2505.13447, Section
        4.3 and Appendix B.2.
    Differs: our errors are means over dimensions, theirs sums; their offset is ours times the dimension.
    """

    power: float = 1.0
    offset: float = 1e-3

    def __post_init__(self) -> None:
        if self.offset <= 0:
            raise ValueError(f"offset must be > 0, so that no error divides by zero; got {self.offset}.")

    def __call__(self, error: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """Weighted loss [B] from errors and times [B]."""
        return error / (error.detach() + self.offset) ** self.power
