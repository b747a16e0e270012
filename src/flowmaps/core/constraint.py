"""Layers whose weights stay on a set: after each step of the optimizer they are put back."""

from abc import ABC, abstractmethod

from torch import nn


class Constrained(nn.Module, ABC):
    """A layer whose weights must be put back after each step of the optimizer; the engine does it."""

    @abstractmethod
    def put_back(self) -> None:
        """Move the weights to the nearest ones that are allowed, in place and without gradient."""


def put_back(module: nn.Module) -> None:
    """Put the weights of every constrained layer back, except where they are frozen."""
    for layer in module.modules():
        if isinstance(layer, Constrained) and any(p.requires_grad for p in layer.parameters()):
            layer.put_back()
