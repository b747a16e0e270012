"""A jump, and Langevin steps at the time it arrives."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.sampling import Jump
from ..core.shapes import expand_time
from ..core.types import Sampler

__all__ = ["Corrected"]


@dataclass(frozen=True)
class Corrected:
    """A step of another sampler, then steps of Langevin dynamics towards the law at the time where it arrives.

    x <- x + h score_t(x) + sqrt(2 h) e, with h = size alpha_t^2, score from the map's diagonal and e ~ N(0, I); nothing
    is done at the data, t = 1, where the score is not known and samples shall be free of noise.

    Args:
        sampler: what is corrected.
        size: of a Langevin step, in units of the noise's variance alpha_t^2.
        steps: Langevin steps after each step.
        interpolant: the path the map was trained on, with a source N(0, I).
    Cost: the sampler's evaluations and `steps` more, per step, and one more of a sampler that keeps the last, as
        dormand_prince does, for the state is another.
    Source: Song, Sohl-Dickstein, Kingma & others, Score-based generative modeling through stochastic differential
        equations, 2020, arXiv:2011.13456, the predictor-corrector sampler.
    Differs: the size of a step is fixed, not set by a signal-to-noise ratio of the batch, so that a sample does not
        depend on its neighbours.
    """

    needs_gaussian = True

    sampler: Sampler = Jump()
    size: float = 0.1
    steps: int = 1
    interpolant: Interpolant = Linear()

    def __post_init__(self) -> None:
        if self.size <= 0 or self.steps < 1:
            raise ValueError(f"size must be > 0 and steps at least 1; got {self.size} and {self.steps}.")

    def __call__(
        self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, *, cond: Any = None, state: Any = None,
        generator: Random = None,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """One step."""
        x, state = self.sampler(model, x, s, t, cond=cond, state=state, generator=generator)
        alpha = self.interpolant.alpha(t)
        arrived = (t >= 1) | (alpha <= 0)
        inside = torch.where(arrived, 0.5, t)
        h = expand_time(torch.where(arrived, 0.0, self.size * alpha**2), x).to(x.dtype)
        for _ in range(self.steps):
            score = self.interpolant.score_from_velocity(model.velocity(x, inside, cond), x, inside)
            x = x + h * score.to(x.dtype) + (2 * h).sqrt() * normal(x.shape, x, generator).to(x.dtype)
        return x, state
