"""Heun's steps, cheaper and cheaper."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.random import Random
from ..core.refiner import offset
from ..core.shapes import step_size

__all__ = ["FlowTurbo"]


@dataclass(frozen=True)
class _Cache:
    """The velocity that was evaluated last [B, *], and how many steps have been taken."""

    velocity: Tensor
    steps: int


@dataclass(frozen=True)
class FlowTurbo:
    """Heun's steps, then pseudo correctors, which reuse the last velocity, then steps by a velocity refiner alone.

    All are x <- x + h/2 (k + l). Heun: k = b_s(x), l = b_t(x + h k). Pseudo corrector: k is the l of the step before,
    made where that step was predicted to arrive. Refiner: k = v + r_s([x, v]) and l = k + r_t([x + h k, k]), for a
    small network r and the last velocity v; the next step's v is k.

    Args:
        heun: steps of Heun's method, at first.
        pseudo: pseudo correctors after them; left out, all that follow.
        refiner: of the steps after these, a map that the loss "velocity_refiner" has trained. If the model is guided,
            so should the refiner be, in the same way, as one is that is told by its run.
    Cost: per step 2 network evaluations by Heun's method, 1 by the pseudo corrector and 2 of the refiner; 1 more in the
        first step if that is a pseudo corrector.
    Source: Zhao, Shi, Yu, Zhou & Lu, FlowTurbo: towards real-time flow-based image generation with velocity refiner,
        2024, arXiv:2409.18128, pseudo corrector and velocity refiner; the order of the steps and what they hand on as
        in its released code, models_assemble.py.
    """

    heun: int = 1
    pseudo: int | None = None
    refiner: FlowMap | None = None

    def __post_init__(self) -> None:
        if self.heun < 0 or (self.pseudo is not None and (self.pseudo < 0 or self.heun + self.pseudo == 0)):
            raise ValueError(
                f"heun and pseudo must be at least 0, and one of them more; got {self.heun} and {self.pseudo}."
            )
        if (self.pseudo is None) != (self.refiner is None):
            raise ValueError(
                "pseudo and refiner must come together; got "
                f"{'no refiner' if self.refiner is None else 'pseudo = None'}. Give both, or neither for pseudo "
                "correctors to the end."
            )

    @property
    def order(self) -> int | None:
        """2 without a refiner."""
        return 2 if self.refiner is None else None

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: _Cache | None = None,
        generator: Random = None,
    ) -> tuple[Tensor, _Cache]:  # fmt: skip
        """One step."""
        h, steps = step_size(s, t, x), 0 if state is None else state.steps
        refiner = self.refiner if steps >= self.heun + (self.pseudo or 0) else None
        v = None if state is None or steps < self.heun else state.velocity
        if v is not None and refiner is not None:
            last = start = v + offset(refiner, x, v, s, cond)
            end = start + offset(refiner, torch.addcmul(x, h, start), start, t, cond)
        else:
            start = model.velocity(x, s, cond) if v is None else v
            last = end = model.velocity(torch.addcmul(x, h, start), t, cond)
        return torch.addcmul(x, h / 2, start + end), _Cache(last, steps + 1)
