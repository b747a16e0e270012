"""Which weights a target is made with: the map's own, or an average of their past."""

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .flow_map import FlowMap


class Target(Protocol):
    """The map that targets are made with."""

    def __call__(self, model: FlowMap) -> FlowMap: ...


@dataclass(frozen=True)
class Own:
    """The map itself, with its current weights; whoever uses it stops the gradient."""

    def __call__(self, model: FlowMap) -> FlowMap:
        """The map."""
        return model


class Average(nn.Module):
    """A running average of the map's weights, w <- decay w + (1 - decay) theta, in evaluation mode.

    It is part of the loss's state: saved with it, started by `begin` and moved after each step by `follow`; the engine
    calls both on every average that `averages` finds.

    Args:
        decay: share of the average that stays at each step.
    Source: Tarvainen & Valpola, Mean teachers are better role models: weight-averaged consistency targets improve
        semi-supervised deep learning results, 2017, arXiv:1703.01780, Eq. (2).
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1); got {decay}.")
        self.decay = decay
        self.copy: FlowMap | None = None

    def begin(self, model: FlowMap) -> None:
        """Start from the map's weights."""
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def follow(self, model: FlowMap) -> None:
        """Move towards the map's weights."""
        for old, new in zip(self(model).parameters(), model.parameters(), strict=True):
            old.lerp_(new.detach(), 1 - self.decay)
        for old, new in zip(self(model).buffers(), model.buffers(), strict=True):
            old.copy_(new)

    def forward(self, model: FlowMap) -> FlowMap:
        """The averaged map."""
        if self.copy is None:
            raise RuntimeError("an average must be started with begin(model) before it is used; Step does it.")
        return self.copy


def parts(thing: Any, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Every module among the fields of a dataclass, and of dataclasses among these, with a name for its place."""
    if isinstance(thing, nn.Module):
        yield name, thing
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            yield from parts(getattr(thing, field.name), f"{name}_{field.name}")


def averages(thing: Any) -> list[Average]:
    """Every average that a loss holds."""
    return [m for _, part in parts(thing, "") for m in part.modules() if isinstance(m, Average)]
