"""A batch of which one share trains the diagonal of the map and the rest what lies off it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.types import Pair


def on_and_off(pair: Pair, share: float, on: Callable[[Pair], Tensor], off: Callable[[Pair], Tensor]) -> Tensor:
    """Loss per sample [B]: `on` of the first share of the pairs, `off` of the rest; an empty part is not evaluated."""
    parts = zip(pair.split(share), (on, off), strict=True)
    return torch.cat([loss(part) for part, loss in parts if len(part)])
