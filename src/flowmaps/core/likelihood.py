"""What a likelihood is."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from .flow_map import FlowMap
from .random import Random

LogDensity = Callable[[Tensor], Tensor]
"""States [B, *] -> log-density [B], nats."""


class Likelihood(Protocol):
    """Log-density [B], nats, of states x [B, *] at times[-1], from that of the source at times[0]."""

    def __call__(
        self, model: FlowMap, x: Tensor, times: Tensor | Sequence[float], source: LogDensity, cond: Any = None,
        *, generator: Random = None,
    ) -> Tensor: ...  # fmt: skip
