"""Images from maps of what is where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.random import Random
from ..core.types import Space

__all__ = ["SemanticMap"]


@dataclass(frozen=True)
class SemanticMap:
    """The network sees, beside the state, the share of each class in the part of the image that a place stands for.

    What comes with the data are maps [B, H, W] of the class of each pixel, from 0 on. To draw images for maps m:

    flow.sample(len(m), steps, cond=flow.condition(None, m, flow.space)).

    Args:
        shape: of one state, (C, h, w).
        classes: number of classes.
    Source: Dao, Phung, Nguyen & Tran, Flow matching in latent space, 2023, arXiv:2307.08698, semantic-to-image
        generation, with the released code (train_flow_latent_semantic_syn.py): one-hot maps, halved by averages.
    Differs: no convolution of one pixel after it, which the network's first layer comprises and the release, by a
        slip, does not train; a null condition.
    """

    labelled: ClassVar[bool] = False

    shape: Sequence[int]
    classes: int

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or self.classes < 1:
            raise ValueError(
                f"semantic maps need states (C, h, w) and classes; got {tuple(self.shape)} and {self.classes}."
            )

    @property
    def spatial(self) -> tuple[int, ...]:
        """Shape of what is put beside the state."""
        return (self.classes, *self.shape[1:])

    def __call__(self, data: Tensor | None, given: Any, space: Space, *, generator: Random = None) -> dict[str, Any]:
        """The condition of maps [B, H, W].

        Raises:
            ValueError: if there are no maps.
        """
        if not isinstance(given, Tensor) or given.ndim != 3:
            got = tuple(given.shape) if isinstance(given, Tensor) else given
            raise ValueError(f"what comes with the data must be maps [B, H, W] of classes; got {got}. Set condition.")
        maps = F.one_hot(given.long(), self.classes).movedim(-1, 1).float()
        return {"spatial": F.adaptive_avg_pool2d(maps, (self.shape[1], self.shape[2]))}
