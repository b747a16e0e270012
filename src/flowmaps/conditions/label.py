"""What comes with the data, as it comes."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..core.random import Random
from ..core.types import Space

__all__ = ["Label"]


@dataclass(frozen=True)
class Label:
    """The network is told what comes with the data, labels or texts, and nothing else."""

    labelled: ClassVar[bool] = True

    @property
    def spatial(self) -> tuple[int, ...]:
        """Nothing is put beside the state."""
        return ()

    def __call__(self, data: Tensor, given: Any, space: Space, *, generator: Random = None) -> Any:
        """What is given."""
        return given
