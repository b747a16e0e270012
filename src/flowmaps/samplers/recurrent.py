"""Steps of a map that remembers the steps before."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import EulerMap, FlowMap
from ..core.random import Random
from ..core.recurrent import Recurrent
from ..core.shapes import expand_time

__all__ = ["RecurrentSteps"]


@dataclass(frozen=True)
class RecurrentSteps:
    """Euler steps of the velocity, or jumps, by a network that is handed its memory from step to step.

    x <- x + (t - s) u, m <- the memory after it, with (u, m) = net(x, s, s, m), or net(x, s, t, m) for a jump.

    Args:
        jump: whether to take the mean velocity to t, for networks that were trained for it, in place of the velocity.
        scale: of classifier-free guidance; the network without condition has a memory of its own.
    Cost: 1 network evaluation per step, 2 with guidance.
    Source: Hui, Zhu, Yang & others, ARFlow: autoregressive flow with hybrid linear attention, 2025, arXiv:2501.16085,
        sampling; guidance as in its released code; Ho & Salimans, Classifier-free diffusion guidance, 2022,
        arXiv:2207.12598, Eq. (6), with its w = scale - 1.
    Differs: no noise is added on the way; the paper samples the stochastic equation too.
    """

    order = 1

    jump: bool = False
    scale: float = 1.0

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """One step.

        Raises:
            ValueError: if the map has no memory.
        """
        if isinstance(model, EulerMap) and isinstance(model.v, Recurrent) and not self.jump:
            model = model.v  # of a flow that learned its velocity only, which is all that is asked for here
        if not isinstance(model, Recurrent):
            raise ValueError(
                f"the sampler 'recurrent' needs a map with a memory; got {type(model).__name__}. Use "
                "map.name='recurrent', and the sampler's own scale in place of guidance."
            )
        arrival, (memory, free) = t if self.jump else s, state or (None, None)
        u, memory = model.advance(x, s, arrival, cond, memory)
        if self.scale != 1:
            null, free = model.advance(x, s, arrival, model.null_condition(len(x)), free)
            u = null.lerp(u, self.scale)
        return x + expand_time(t - s, x).to(x.dtype) * u, (memory, free)
