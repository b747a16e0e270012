"""A sampler between walls."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.reflect import reflect
from ..core.sampling import Euler
from ..core.types import Sampler

__all__ = ["Reflected"]


@dataclass(frozen=True)
class Reflected:
    """A step of another sampler, thrown back into a box by its walls.

    x <- reflect(step(x)), which changes no state inside. It keeps pixels in their range without piling them up at its
    ends, as clipping does; where the flow itself stays inside it vanishes with the step.

    Args:
        sampler: what takes the steps.
        low: lower wall of every dimension.
        high: upper wall.
    Cost: the sampler's; one evaluation more per step of one that keeps the last, as dormand_prince does, for the state
        is another.
    Source: Lou & Ermon, Reflected diffusion models, 2023, arXiv:2304.04740, the reflected Euler-Maruyama sampler.
    Differs: around any sampler.
    """

    sampler: Sampler = Euler()
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low} and {self.high}. Exchange them.")

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """One step."""
        x, state = self.sampler(model, x, s, t, cond=cond, state=state, generator=generator)
        return reflect(x, self.low, self.high), state
