"""Representation alignment: another loss, while a block of the network learns to see what an encoder sees."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.report import report
from ..core.types import Loss, Pair
from .flow_matching import FlowMatching

__all__ = ["RepresentationAlignment"]


@dataclass(frozen=True)
class RepresentationAlignment:
    """Another loss, and a pull of the network's features at a noisy state towards an encoder's of the clean datum.

    loss - weight mean_n cos(projector(h_n), encoder(x1)_n), with h_n the place n of what a block makes of the state.

    The features are those of the evaluation that the loss makes itself, so that the loss must evaluate the map with
    gradient once for each sample, in the order of the batch: flow_matching, mean_flow and lsd do, fmm does not.

    Args:
        encoder: takes data x1 [B, *] in the space of the flow, gives features [B, places, dimension], or an image of
            them [B, dimension, H, W], with as many places as the block has; a module is frozen.
        channels: of the block's features: the width of a transformer.
        dimension: of the encoder's features.
        block: number of the network's block, from 1; of blockwise_dit, of its trunk.
        weight: of the alignment.
        width: of the projector, a perceptron of three layers that is trained with the map.
        loss: what is learned beside.
    Cost: that of the loss, and the encoder's.
    Source: Yu, Kwak, Jang & others, Representation alignment for generation: training diffusion transformers is easier
        than you think, 2024, arXiv:2410.06940, with the released code (loss.py, models/sit.py): block 8 of 28, weight
        0.5, width 2048.
    Differs: one encoder, which sees the datum in the space of the flow, not the image behind a latent.
    """

    encoder: Callable[[Tensor], Tensor]
    channels: int
    dimension: int
    block: int = 8
    weight: float = 0.5
    width: int = 2048
    loss: Loss = FlowMatching()
    projector: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        if self.block < 1 or self.weight < 0:
            raise ValueError(f"block must be at least 1 and weight >= 0; got {self.block} and {self.weight}.")
        if getattr(self.encoder, "null_condition", None) is not None:
            raise ValueError(
                f"encoder must take data alone; got {type(self.encoder).__name__}, a network of flows. Name one "
                "of your own, 'my_module:encoder'."
            )
        if isinstance(self.encoder, nn.Module):
            self.encoder.requires_grad_(False).eval()
        layers = [nn.Linear(self.channels, self.width), nn.SiLU(), nn.Linear(self.width, self.width), nn.SiLU()]
        object.__setattr__(self, "projector", nn.Sequential(*layers, nn.Linear(self.width, self.dimension)))

    @property
    def learns_map(self) -> bool:
        """Whether the loss beside it learns more than the diagonal."""
        return getattr(self.loss, "learns_map", True)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B].

        Raises:
            ValueError: if the loss evaluates the map with gradient more than once a sample, or places do not agree.
        """
        if pair.x1 is None:
            raise ValueError("representations need data; got a pair with x1 = None.")
        seen = _Watched(model, self.block)
        loss = self.loss(seen, pair, step=step, generator=generator)
        if sum(map(len, seen.features)) != len(pair):
            raise ValueError(
                f"the loss must evaluate the map with gradient once for each sample; {type(self.loss).__name__} did so "
                f"{sum(map(len, seen.features))} times for {len(pair)}. Use flow_matching, mean_flow or lsd."
            )
        with torch.no_grad():
            wanted = self.encoder(pair.x1)
            wanted = wanted.flatten(2).transpose(1, 2) if wanted.ndim == 4 else wanted
        got = self.projector(torch.cat(seen.features))
        if got.shape != wanted.shape:
            raise ValueError(
                f"the encoder must give features {tuple(got.shape)}, a vector for each place of the block; got "
                f"{tuple(wanted.shape)}. Resize them to the block's places, and set dimension."
            )
        alignment = nn.functional.cosine_similarity(got, wanted, dim=-1).mean(1)
        report("alignment", alignment)
        return loss - self.weight * alignment


class _Watched(FlowMap):
    """A map that keeps what a block of its network makes of each state that is evaluated with gradient."""

    def __init__(self, model: FlowMap, block: int) -> None:
        super().__init__()
        self.model, self.block = model, block
        self.features: list[Tensor] = []

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if not torch.is_grad_enabled():
            return self.model.mean_velocity(x, s, t, cond)
        u, features = self.model.with_features(x, s, t, cond, self.block)
        self.features.append(features)
        return u

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
