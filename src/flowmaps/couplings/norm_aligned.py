"""A source as long as the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.random import Random
from ..core.types import Pair
from .independent import Independent

__all__ = ["NormAligned"]


@dataclass(frozen=True)
class NormAligned:
    """x0 = r n, independent of the data, with r so that source and data have the same mean length.

    r = norm / E|n|; for n ~ N(0, I), E|n| = sqrt(2) Gamma((D + 1) / 2) / Gamma(D / 2). The map need not learn to change
    the scale. Sampling starts at the same scale.

    Args:
        norm: mean length of the data as the space encodes them; see `mean_norm`.
        coupling: draws n, independent of the data; one that knows its `mean_length`: "independent" or "ring".
    Cost: no network evaluation.
    Source: Lee, Kim & Lee, Is there a better source distribution than Gaussian? Exploring source distributions for
        image flow matching, 2025, arXiv:2512.18184, norm alignment: 27.198 on CIFAR-10, where E|n| is 55.42.
    Differs: E|n| in closed form.
    """

    gaussian = False

    norm: float
    coupling: Any = Independent()

    def __post_init__(self) -> None:
        if self.norm <= 0:
            raise ValueError(f"norm must be > 0; got {self.norm}. Use the mean length of the data, mean_norm(data).")
        if getattr(self.coupling, "mean_length", None) is None:
            raise ValueError(
                f"coupling must know the mean length of its source; got {type(self.coupling).__name__}. Use "
                "'independent' or 'ring', and exchange sources around this one."
            )

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *]."""
        return Pair(self.source(x1.shape, x1, cond, generator=generator), x1, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *]."""
        n = self.coupling.source(shape, like, cond, generator=generator)
        return self.norm / self.coupling.mean_length(shape) * n


def mean_norm(data: Tensor) -> float:
    """The mean length of data [N, *]."""
    return float(data.flatten(1).norm(dim=1).double().mean())
