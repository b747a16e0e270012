"""The two shares of a loss brought to one scale, sample by sample."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.types import Loss, Pair, part_size
from .mean_flow import MeanFlow

__all__ = ["Balanced"]


@dataclass(frozen=True)
class Balanced:
    """Another loss, of which every sample off the diagonal counts as much as the samples on it do on average.

    e on the diagonal, e sg [m / (e + offset)] off it, with e the loss of a sample and m its mean on the diagonal of the
    batch: off the diagonal the gradient is that of m ln(e + offset), whatever the scale of e.

    Args:
        loss: what is balanced; a loss with a share on the diagonal, the same in every step, and positive values.
        offset: the loss below which a sample off the diagonal counts less.
    Cost: that of the loss.
    Source: Gu, Fang, Jiang & others, AnyFlow: any-step video diffusion model with on-policy flow map distillation,
        2026, arXiv:2605.13724, the first stage, as in the training code of FastVideo (anyflow_pretrain.py).
    Differs: the rest of that stage (weights over time, shifted times, guidance, adapters) is not part of it. Like every
        loss of relative errors it is not stationary at the truth where the target is only right on average.
    Published: loss.name=mean_flow loss.diagonal=0.5 loss.times.name=to_data loss.times.share=0.5 loss.jvp.name=central
        loss.jvp.step=0.005
    """

    loss: Loss = MeanFlow(diagonal=0.5)
    offset: float = 1e-5

    def __post_init__(self) -> None:
        if self.offset <= 0:
            raise ValueError(f"offset must be > 0, so that no loss divides by zero; got {self.offset}.")
        if not 0 < self._share() < 1:
            raise ValueError(
                f"the loss must have a share on the diagonal and one off it; got {type(self.loss).__name__} with "
                f"{self._share():g}. Set its diagonal between 0 and 1."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]; a single sample keeps the plain loss."""
        loss = self.loss(model, pair, step=step, generator=generator)
        on = part_size(self._share(), len(pair))
        if not 0 < on < len(pair):
            return loss
        diagonal, off = loss[:on], loss[on:]
        return torch.cat([diagonal, off * (diagonal.mean() / (off + self.offset)).detach()])

    def _share(self) -> float:
        loss: Any = self.loss
        return getattr(loss, "diagonal", 0.0)
