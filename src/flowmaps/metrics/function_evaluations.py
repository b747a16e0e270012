"""How often a sampler calls the network."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import Counted, FlowMap
from ..core.recurrent import Recurrent
from ..core.sampling import sample
from ..core.types import Sampler

__all__ = ["function_evaluations"]


@torch.no_grad()
def function_evaluations(model: FlowMap, sampler: Sampler, steps: int, x: Tensor, cond: Any = None) -> int:
    """Calls of networks that a sampler makes from time 0 to 1, measured, not declared.

    A map that is made of others, such as a guided one, calls them as often as it does; each call is counted.

    Args:
        model: the flow map.
        sampler: how a step is taken.
        steps: number of steps.
        x: a state to start from [B, *]; one sample is enough.
        cond: condition, batch first.
    """
    counted, counters = leaves_counted(model)
    sample(counted, x, torch.linspace(0, 1, steps + 1), sampler=sampler, cond=cond)
    return sum(counter.calls for counter in counters)


class _CountedRecurrent(Recurrent):
    """The same map, which remembers as before, counting its calls."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__(model.net)
        self.calls = 0

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.calls += 1
        return super().mean_velocity(x, s, t, cond)

    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        self.calls += 1
        return super().advance(x, s, t, cond, memory)


def leaves_counted(model: FlowMap) -> tuple[FlowMap, list[Counted | _CountedRecurrent]]:
    """The same map, with the maps at its bottom, which hold no other map, counting their calls; and these.

    The map itself is left alone: what lies above the bottom is copied, without its weights.
    """
    counters: dict[FlowMap, Counted | _CountedRecurrent] = {}

    def counted(part: FlowMap) -> FlowMap:
        inner = {name: child for name, child in part.named_children() if isinstance(child, FlowMap)}
        if not inner:
            made = _CountedRecurrent(part) if isinstance(part, Recurrent) else Counted(part)
            return counters.setdefault(part, made)
        clone = copy.copy(part)
        clone._modules = part._modules | {name: counted(child) for name, child in inner.items()}
        return clone

    return counted(model), list(counters.values())
