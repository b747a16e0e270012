"""Another loss, and a critic that judges the map's samples beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.critic import SampleCritic, check_judges
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import ramp
from ..core.types import Loss, Pair
from .lsd import LSD

__all__ = ["WithCritic"]


@dataclass(frozen=True)
class WithCritic:
    """Another loss, plus what a critic says of the one-step samples y = X_{0,1}(x0): loss + critic(y).

    The map gets the critic's gradient times `weight`, which rises from 0 over the first images; the critic itself
    learns at its full rate from the start, so that it knows the samples when it is listened to. A regression alone
    blurs what it cannot fit; a critic asks for the right law of the samples instead.

    Args:
        critic: judges samples; "distribution_matching" for DMD, "discriminator" for an adversary, each with a weight of
            its own besides.
        loss: what is learned beside; one that learns a map.
        weight: what the judgement counts.
        warmup: images over which the weight rises.
        interpolant: the path, of which only the start is used.
    Cost: that of the loss, 1 evaluation with gradient, and those of the critic.
    Source: Yin, Gharbi, Park & others, Improved distribution matching distillation for fast image synthesis, 2024,
        arXiv:2405.14867; beside the loss of a flow map: Gu, Fang, Jiang & others, AnyFlow: any-step video diffusion
        model with on-policy flow map distillation, 2026, arXiv:2605.13724, the second stage, and with an adversary
        Sabour, Fidler & Kreis, Align your flow: scaling continuous-time flow map distillation, 2025, arXiv:2506.14603.
    Differs: samples of one jump, where AnyFlow simulates several; map and critic take their steps together.
    Raises:
        ValueError: if the loss learns a velocity only, or the critic gives the map no gradient.
    """

    critic: SampleCritic
    loss: Loss = LSD()
    weight: float = 1.0
    warmup: int = 0
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        check_judges(self.critic)
        if self.weight < 0 or self.warmup < 0:
            raise ValueError(f"weight and warmup must be >= 0; got {self.weight} and {self.warmup}.")
        if not getattr(self.loss, "learns_map", True):
            raise ValueError(
                f"the loss must learn a map, whose samples the critic sees; got {type(self.loss).__name__}, which "
                "learns a velocity and is sampled in steps of it. Use a loss such as 'lsd' or 'mean_flow'."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        loss = self.loss(model, pair, step=step, generator=generator)
        x = self.interpolant.start(pair.x0)
        s = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        y = model(x, s, torch.ones_like(s), pair.cond)
        heard = y.detach().lerp(y, self.weight * ramp(step, self.warmup))  # the same value, a part of the gradient
        return loss + self.critic(heard, pair, generator=generator)
