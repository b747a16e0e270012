"""A source for each datum that learns, beside the map, to keep the paths from crossing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.random import Random, normal
from ..core.types import Pair

__all__ = ["Learned"]


class Learned(nn.Module):
    """x0 ~ N(m(x1), diag(s(x1)^2)), whose m and s are trained with the map, and held near N(0, I).

    E |b_t(I_t) - dI_t/dt|^2 + weight KL(N(m(x1), diag(s(x1)^2)) || N(0, I)) / D.

    Paths that cross make flow matching's loss, so that its gradient, which reaches m and s through the state and
    through the velocity, straightens the flow. Sampling starts from N(0, I), which the sources are together only as far
    as the penalty sees to it: a small weight buys straight paths with a wrong start.

    The loss must be one whose targets carry gradient to the source, such as flow matching.

    Args:
        net: module with the signature of MeanVelocity's and outputs=2, (x [B, *], s [B], t [B], cond) -> [B, 2, *]: m
            and 2 log s; it is asked at s = t = 1. A small one will do.
        weight: of the penalty.
    Cost: 1 evaluation of net with gradient.
    Source: Lee, Kim & Ye, Minimizing trajectory curvature of ODE-based generative models, 2023, arXiv:2301.12003; in
        the released code the weight is 10 in the plane, and 5 to 20 for images.
    """

    gaussian = False

    def __init__(self, net: nn.Module, weight: float = 20.0) -> None:
        super().__init__()
        if weight <= 0:
            raise ValueError(f"weight must be > 0, or sampling starts anywhere; got {weight}.")
        self.net, self.weight = net, weight

    def law(self, x1: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        """M and log s of the source of each datum, [B, *] each.

        Raises:
            ValueError: if the network has one output.
        """
        one = x1.new_ones(len(x1))
        y = self.net(x1, one, one, cond).to(x1.dtype)
        if y.shape == x1.shape:
            raise ValueError("the network must have two outputs; got one. Set coupling.net.outputs to 2.")
        return y[:, 0], y[:, 1] / 2

    def forward(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *], with the penalty that the engine adds to the loss."""
        mean, log = self.law(x1, cond)
        x0 = mean + log.exp() * normal(x1.shape, x1, generator)
        divergence = (mean.square() + torch.expm1(2 * log)) / 2 - log
        return Pair(x0, x1, cond, self.weight * divergence.flatten(1).mean(1))

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Source draws of a shape [B, *], which the network has no part in."""
        return normal(shape, like, generator)
