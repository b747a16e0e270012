"""Images with holes, to be filled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_share
from ..core.random import Random, uniform
from ..core.types import Space

__all__ = ["Inpainting"]


@dataclass(frozen=True)
class Inpainting:
    """The network sees, beside the state, the image around its holes and where these are.

    The channels are those of the state of the image with `fill` in its holes, and one more: 1 in holes, -1 elsewhere.
    In training the holes are boxes, none to `boxes` of them. To fill holes h of images y:

    x = flow.sample(len(y), steps, cond=flow.condition.of(y, h, flow.space)), then where(h, x, y).

    Args:
        shape: of one state, (C, h, w).
        boxes: largest number of boxes.
        low: smallest side of a box, as a share of the image's.
        high: largest side.
        fill: value of the pixels in holes.
        holes: another law of holes, (images, generator) -> [B, 1, H, W], true in holes.
    Source: Dao, Phung, Nguyen & Tran, Flow matching in latent space, 2023, arXiv:2307.08698, image inpainting, with the
        released code (train_flow_latent_inpainting.py): the same channels, black holes; up to 3 boxes, of 30 to 100 of
        256 pixels.
    Differs: the boxes alone, of a mixture with strokes; the null condition, of which there is none in the release.
    """

    labelled: ClassVar[bool] = True

    shape: Sequence[int]
    boxes: int = 3
    low: float = 0.12
    high: float = 0.39
    fill: float = -1.0
    holes: Callable[[Tensor, Random], Tensor] | None = None

    def __post_init__(self) -> None:
        check_share("low", self.low)
        check_share("high", self.high)
        if len(self.shape) != 3:
            raise ValueError(f"states must be images (C, h, w) to have holes; got shape {tuple(self.shape)}.")
        if self.boxes < 1 or self.high < self.low:
            raise ValueError(
                f"there must be boxes >= 1, and low <= high; got {self.boxes}, {self.low} and {self.high}."
            )

    @property
    def spatial(self) -> tuple[int, ...]:
        """Shape of what is put beside the state."""
        return (self.shape[0] + 1, *self.shape[1:])

    def __call__(self, data: Tensor, given: Any, space: Space, *, generator: Random = None) -> dict[str, Any]:
        """The condition of images [B, C, H, W] with holes drawn for them, and of the labels given, or None."""
        draw = self._boxes if self.holes is None else self.holes
        return self.of(data, draw(data, generator), space, given, generator=generator)

    def of(
        self, data: Tensor, holes: Tensor, space: Space, given: Any = None, *, generator: Random = None
    ) -> dict[str, Any]:
        """The condition of images [B, C, H, W] with holes [B, 1, H, W], true where pixels are missing."""
        seen = space.encode(torch.where(holes, self.fill, data), generator=generator)
        where = F.interpolate(2 * holes.to(seen.dtype) - 1, self.spatial[1:], mode="nearest")
        return {"spatial": torch.cat([seen, where], 1)} | ({} if given is None else {"label": given})

    def _boxes(self, data: Tensor, generator: Random) -> Tensor:
        count = uniform((len(data),), data, generator).mul(self.boxes + 1).floor()
        there = torch.arange(self.boxes, device=data.device) < count[:, None]
        draws = uniform((len(data), self.boxes, 4), data, generator).unbind(-1)
        inside: list[Tensor] = []
        for length, u, v in zip(data.shape[2:], draws[:2], draws[2:], strict=True):
            side = ((self.low + (self.high - self.low) * u) * length).round().clamp_min(1)
            first = (v * (length - side + 1)).floor()[..., None]
            place = torch.arange(length, device=data.device)
            inside.append((place >= first) & (place < first + side[..., None]))
        return (there[..., None, None] & inside[0][..., :, None] & inside[1][..., None, :]).any(1, keepdim=True)
