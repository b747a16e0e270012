"""The conditional velocity, of which the divisor is bounded near the data."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.shapes import expand_time
from ..core.types import Pair

__all__ = ["Clamped"]


@dataclass(frozen=True)
class Clamped:
    """What the map "data_prediction" gives when its network predicts the datum, everywhere on the path.

    (a' x + D x1) / max(a, least) = min(1, a / least) dI_s/ds at time s, where a, b are the coefficients of source and
    data and D = a b' - a' b: the conditional velocity while a >= least, and less of it beyond.

    The marginal velocity that is learned is scaled in the same way where a < least: the last of the noise shrinks more
    slowly than it should. End a solver's steps at or before that, with one step to the data.

    Args:
        least: the map's own.
        interpolant: the path.
    Cost: none.
    Source: Li & He, Back to basics: let denoising generative models denoise, 2025, arXiv:2511.13720; the released
        code, where the divisors of prediction and target are clamped alike.
    Differs: any path.
    """

    needs_path: ClassVar[bool] = True

    least: float = 0.05
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        if self.least <= 0:
            raise ValueError(f"least must be > 0, as it is the map's; got {self.least}.")

    def __call__(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        """The clamped velocity at (x, s)."""
        return expand_time((self.interpolant.alpha(s) / self.least).clamp_max(1), w).to(w.dtype) * w
