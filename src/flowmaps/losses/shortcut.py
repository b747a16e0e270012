"""Shortcut models: one jump learns from two of half its length, on a grid of halves."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.target import Average, Target
from ..core.times import DyadicPair, PairLaw, TimeLaw, Uniform
from ..core.types import Pair, Weighting, same_condition
from ..core.velocity import Conditional, Telling, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching

__all__ = ["Shortcut"]


@dataclass(frozen=True)
class Shortcut:
    """Flow matching for the shortest steps; any other learns the mean of two steps of half its length.

    E |u_{s,t}(I_s) - sg [u_{s,r}(I_s) + u_{r,t}(X_{s,r}(I_s))] / 2|^2, with r midway and (s, t) on a grid of halves;
    where t - s is the shortest span, the halves are Euler steps with the velocity, the diagonal.

    Args:
        diagonal: share of the batch that trains the diagonal.
        shortest: span up to which targets are made with the velocity; 2^(1 - levels) of the law of (s, t).
        scale: guidance folded into that velocity; 1 is none. Longer spans inherit it.
        limit: largest absolute entry of midpoint and target; 0 sets none.
        target: which weights targets are made with.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: what the diagonal regresses on; Teacher distils.
        weighting: what the error of a sample counts.
    Cost: on the diagonal 1 evaluation with gradient and those of `velocity`; off it 1 with gradient and 2 without, 4
        with guidance.
    Source: Frans, Hafner, Levine & Abbeel, One step diffusion via shortcut models, 2024, arXiv:2410.12557, the
        self-consistency target; shares, clipping, average and guidance from the released code.
    Differs: the release gives the step of 1/128, which flow matching trains, an index beside the spans, where we have
        the diagonal, and trains it at times on a grid; spans are drawn, not dealt out equally; the release never drops
        labels off the diagonal, and uses some images of a batch twice and some not at all.
    Published: limit=4.0
    """

    diagonal: float = 0.875
    shortest: float = 1 / 64
    scale: float = 1.0
    limit: float = 0.0
    target: Target = field(default_factory=lambda: Average(0.999))
    interpolant: Interpolant = Linear()
    times: PairLaw = DyadicPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        law = self.times
        if isinstance(law, DyadicPair) and self.shortest != 2.0 ** (1 - law.levels):
            raise ValueError(
                f"shortest must be the shortest span of times, {2.0 ** (1 - law.levels):g} for {law.levels} levels; "
                f"got {self.shortest:g}. Set both, shortest to 2^(1 - levels)."
            )

        if self.scale != 1 and isinstance(self.velocity, Telling):
            raise ValueError(
                f"guidance must come from the scale or from the velocity; got {self.scale:g} and "
                f"{type(self.velocity).__name__}. Leave scale at 1."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        pair = told(self.velocity, model, pair, generator)
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: flow_matching(
                model, on, self.interpolant, self.diagonal_times, self.weighting, generator, self.velocity
            ),
            lambda off: self._off(model, off, step, generator),
        )

    def _off(self, model: FlowMap, off: Pair, step: int, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator, step=step)
        x, _ = self.interpolant.draw(off, s, generator)
        r = (s + t) / 2
        short = t - s < 1.001 * self.shortest  # a grid of halves, up to rounding
        with stop_gradient():
            teacher = self.target(model)
            first = self._half(teacher, x, s, r, off.cond, short)
            y = self._cut(x + expand_time(r - s, x) * first)
            target = self._cut((first + self._half(teacher, y, r, t, off.cond, short)) / 2)
        error = square_error(model.mean_velocity(x, s, t, off.cond), target)
        report("shortcut", error)
        return self.weighting(error, s, t)

    def _half(self, teacher: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Any, short: Tensor) -> Tensor:
        u = teacher.mean_velocity(x, s, torch.where(short, s, t), cond).to(x.dtype)
        null = teacher.null_condition(len(x))
        if self.scale == 1 or cond is None or null is None:
            return u
        guided = teacher.velocity(x, s, null).lerp(u, self.scale)
        return torch.where(expand_time(short & ~same_condition(cond, null), x), guided, u)

    def _cut(self, x: Tensor) -> Tensor:
        return x.clamp(-self.limit, self.limit) if self.limit else x
