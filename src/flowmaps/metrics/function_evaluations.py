"""How often a sampler calls the network."""

import copy
import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.flow_map import Counted, FlowMap
from ..core.random import Random, fold_in
from ..core.recurrent import Recurrent
from ..core.sampling import sample
from ..core.types import Sampler

__all__ = ["function_evaluations"]


class Evaluations(NamedTuple):
    """Evaluations of networks per sample: of those in the flow map, and of a refiner if the sampler has one."""

    model: float
    refiner: float | None


@torch.no_grad()
def function_evaluations(
    model: FlowMap, sampler: Sampler, steps: int, x: Tensor, cond: Any = None, generator: Random = None
) -> Evaluations:
    """How often networks are evaluated from time 0 to 1, measured, not declared: the mean over a batch.

    A map that is made of others, such as a guided one, evaluates them as often as it does; each of these counts, of
    whatever size, also those made at once. A sampler that decides sample by sample, and counts in its state's
    `evaluations`, is believed: samples that have arrived may stay in its batch.

    Args:
        model: the flow map.
        sampler: how a step is taken.
        steps: number of steps.
        x: states to start from [B, *]; where the sampler decides by what it sees, such as it will be given.
        cond: condition, batch first.
        generator: of samplers that draw; left out, a stream of its own.
    """
    generator = fold_in(0, device=x.device) if generator is None else generator
    counted, counters = leaves_counted(model)
    refining, refiners = _refiners_counted(sampler)
    own = getattr(_last_state(counted, refining, steps, x, cond, generator), "evaluations", None)
    per_sample = sum(counter.states for counter in counters) / len(x)
    if isinstance(own, Tensor):  # of the map, each of which may be several of networks
        whole = Counted(model)
        _last_state(whole, sampler, steps, x, cond, generator)
        per_sample *= float(own.double().mean()) * len(x) / whole.states
    return Evaluations(per_sample, sum(counter.states for counter in refiners) / len(x) if refiners else None)


def _last_state(model: FlowMap, sampler: Sampler, steps: int, x: Tensor, cond: Any, generator: Random) -> Any:
    """What the last step of a sampler hands on."""
    seen: list[Any] = []

    def watched(*args: Any, **options: Any) -> tuple[Tensor, Any]:
        y, state = sampler(*args, **options)
        seen.append(state)
        return y, state

    sample(model, x, torch.linspace(0, 1, steps + 1), sampler=watched, cond=cond, generator=generator)
    return seen[-1]


class _CountedRecurrent(Recurrent):
    """The same map, which remembers as before, counting its calls."""

    def __init__(self, model: Recurrent) -> None:
        super().__init__(model.net)
        self.calls, self.states = 0, 0

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.calls, self.states = self.calls + 1, self.states + len(x)
        return super().mean_velocity(x, s, t, cond)

    def advance(self, x: Tensor, s: Tensor, t: Tensor, cond: Any, memory: Any) -> tuple[Tensor, Any]:
        self.calls, self.states = self.calls + 1, self.states + len(x)
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


def _refiners_counted(sampler: Any) -> tuple[Any, list[Counted | _CountedRecurrent]]:
    """The same sampler, with the maps that it holds, also in a sampler in it, counting their calls; and these."""
    if not dataclasses.is_dataclass(sampler) or isinstance(sampler, type):
        return sampler, []
    changes: dict[str, Any] = {}
    counters: list[Counted | _CountedRecurrent] = []
    for field in dataclasses.fields(sampler):
        value = getattr(sampler, field.name)
        made, found = leaves_counted(value) if isinstance(value, FlowMap) else _refiners_counted(value)
        changes |= {field.name: made} if found else {}
        counters += found
    return dataclasses.replace(sampler, **changes) if changes else sampler, counters
