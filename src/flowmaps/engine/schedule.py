"""The learning rate over a run, counted in images."""

import math
from dataclasses import dataclass

from ..core.checks import check_choice, check_share


@dataclass(frozen=True)
class Schedule:
    """Warm-up, plateau and decay of the learning rate, as a factor of the optimizer's own.

    Args:
        warmup: images over which the rate rises linearly from zero.
        hold: share of the run after which it decays.
        decay: "cosine", "linear" or "constant".
        floor: factor at the end.
    """

    warmup: int = 0
    hold: float = 0.4
    decay: str = "cosine"
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"schedule.warmup must be at least 0 images; got {self.warmup}.")
        check_share("schedule.hold", self.hold)
        check_share("schedule.floor", self.floor)
        check_choice("schedule.decay", self.decay, ("cosine", "linear", "constant"))

    def factor(self, images: int, total: int) -> float:
        """Factor after `images` of `total`."""
        rise = min(1.0, (images + 1) / self.warmup) if self.warmup else 1.0
        past = (images / total - self.hold) / max(1 - self.hold, 1e-9)
        if self.decay == "constant" or past <= 0:
            return rise
        fall = (1 + math.cos(math.pi * min(past, 1))) / 2 if self.decay == "cosine" else 1 - min(past, 1)
        return rise * (self.floor + (1 - self.floor) * fall)
