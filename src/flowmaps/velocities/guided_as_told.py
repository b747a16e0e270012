"""Guidance of a scale that the network is told, so that one map knows every scale."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.flow_map import FlowMap
from ..core.random import Random, uniform
from ..core.shapes import expand_time
from ..core.types import Pair, same_condition
from ..core.velocity import Conditional, Telling, VelocitySource, needs_path

__all__ = ["GuidedAsTold"]


@dataclass(frozen=True)
class GuidedAsTold(Telling):
    """Another velocity with guidance folded in, whose scale is drawn for each sample and told to the network.

    v = w + (a - 1) [u_{s,s}(I_s; c) - u_{s,s}(I_s; null)], with a uniform on [lowest, highest], told as the number
    "guidance" of the condition; this u is not told it, which is the same as a = 1. So the diagonal that is told a
    learns the guided velocity q = b(null) + a [b(c) - b(null)], and the map that is told a the flow map of q, because
    off the diagonal it is compared with itself told a. Samples whose condition was dropped are told 1 and keep w.

    Args:
        lowest: scale; 0 ignores the condition.
        highest: scale.
        velocity: w, what guidance is added to.
    Cost: 2 network evaluations without gradient, and those of `velocity`.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, the guided velocity q and a flow map that takes its scale.
    Differs: in q = b(c) + (a - 1) [b(c) - b(null)] w stands for the first b(c), so that one regression teaches b(c)
        and q; the highest scale is ours; both b see the dropout mask of the prediction.
    """

    lowest: float = 0.0
    highest: float = 4.0
    velocity: VelocitySource = Conditional()

    @property
    def needs_path(self) -> bool:
        """Whether what guidance is added to does."""
        return needs_path(self.velocity)

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest:
            raise ValueError(f"scales must satisfy 0 <= lowest <= highest; got {self.lowest} and {self.highest}.")

    def tell(self, model: FlowMap, pair: Pair, generator: Random) -> Pair:
        """The pair with a scale in its condition; unchanged without labels."""
        null = model.null_condition(len(pair))
        if pair.cond is None or null is None:
            return pair
        a = self.lowest + (self.highest - self.lowest) * uniform((len(pair),), pair.x0, generator)
        a = torch.where(same_condition(pair.cond, null), 1.0, a)
        return dataclasses.replace(pair, cond={"label": pair.cond, "guidance": a})

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The velocity guided by the scale in the pair's condition."""
        null = model.null_condition(len(pair))
        if pair.cond is None or null is None:
            return self.velocity(model, pair, x, w, s)
        label, a = _told(pair.cond)
        w = self.velocity(model, dataclasses.replace(pair, cond=label), x, w, s)
        with stop_gradient():
            bound = model.velocity(x, s, label)
        with stop_gradient():  # the same dropout mask
            free = model.velocity(x, s, null)
        return w + expand_time(a - 1, x).to(x.dtype) * (bound - free)


def _told(cond: Any) -> tuple[Any, Tensor]:
    if not isinstance(cond, dict) or "guidance" not in cond:
        raise ValueError(
            f"the condition must hold the scale that the network is told, 'guidance'; got {type(cond).__name__}. "
            "A loss of your own begins with pair = core.velocity.told(velocity, model, pair, generator)."
        )
    return cond["label"], cond["guidance"]
