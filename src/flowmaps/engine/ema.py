"""Running averages of the weights, in time counted by images."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class EMA:
    """How fast an average forgets: by a half-life, or in proportion to the length of the run.

    Each step moves the average towards the weights by 1 - d:

        exponential: d = 0.5^(batch / h), h = min(halflife, rampup * images seen)
        power:       d = (1 - batch / images seen)^(g + 1), an average with weight ~ time^g

    Args:
        halflife: images after which a weight's share has halved; 0 means the power law.
        rampup: largest half-life as a share of the images seen, so that the start is forgotten.
        power: exponent g of the power law.
    Source: Karras, Aittala, Lehtinen, Hellsten, Aila & Laine, Analyzing and improving the training dynamics of
        diffusion models, 2023, arXiv:2312.02696v2, Eq. (1) and (2), for the power law; Karras, Aittala, Aila & Laine,
        Elucidating the design space of diffusion-based generative models, 2022, arXiv:2206.00364, released code, for
        the ramp-up.
    """

    halflife: int = 0
    rampup: float = 0.1
    power: float = 16.0

    def __post_init__(self) -> None:
        if self.halflife < 0 or self.rampup <= 0 or self.power <= 0:
            raise ValueError(
                f"ema needs halflife >= 0, rampup > 0 and power > 0; got {self.halflife}, {self.rampup}, {self.power}."
            )

    def decay(self, images: int, batch: int) -> float:
        """The share of the old average that stays when `images` have been seen, the last `batch` of them just now."""
        if self.halflife:
            return 0.5 ** (batch / max(min(self.halflife, self.rampup * images), 1e-8))
        return max(0.0, 1 - batch / images) ** (self.power + 1)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average's parameters towards a model's by 1 - decay; its buffers are copied."""
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new.detach().to(old.dtype), 1 - decay)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)
