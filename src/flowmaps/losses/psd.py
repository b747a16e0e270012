"""Progressive self-distillation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.checks import check_choice, check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.shapes import expand_time
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching

__all__ = ["PSD"]


@dataclass(frozen=True)
class PSD:
    """Flow matching on the diagonal; off it, two of one's own jumps teach one.

    E |u_{s,t}(I_s) - sg [(1 - g) u_{s,r}(I_s) + g u_{r,t}(X_{s,r}(I_s))]|^2, with r = g s + (1 - g) t,
    the residual of the semigroup identity over (t - s).

    Args:
        diagonal: share of the batch that trains the diagonal.
        split: "uniform" draws g from [0, 1], "midpoint" takes 1/2.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: what the diagonal regresses on; GuidedAsTold lets the map take a guidance scale.
        distance: between the two sides off the diagonal; PseudoHuber bounds what one sample pulls.
        weighting: what the error of a sample counts.
    Cost: on the diagonal 1 evaluation with gradient and those of `velocity`; off it 1 with gradient and 2 without.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Eq. (15) and (22), Algorithms 1 and 4.
    Published: weighting.name=learned
    """

    diagonal: float = 0.75
    split: str = "uniform"
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        check_choice("split", self.split, ("uniform", "midpoint"))

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
        pair = told(self.velocity, model, pair, generator)
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: flow_matching(
                model, on, self.interpolant, self.diagonal_times, self.weighting, generator, self.velocity
            ),
            lambda off: semigroup(
                model, off, self.interpolant, self.times, self.distance, self.weighting, self.split, step, generator
            ),
        )


def semigroup(
    model: FlowMap, off: Pair, interpolant: Interpolant, times: PairLaw, distance: Distance, weighting: Weighting,
    split: str, step: int, generator: Random,
) -> Tensor:  # fmt: skip
    """The off-diagonal term of PSD as a function, [B]."""
    s, t = times(len(off), off.x0, generator, step=step)
    x, _ = interpolant.draw(off, s, generator)
    g = uniform((len(off),), x, generator) if split == "uniform" else torch.full_like(s, 0.5)
    r = g * s + (1 - g) * t
    with stop_gradient():
        first = model.mean_velocity(x, s, r, off.cond)
        y = x + expand_time(r - s, x) * first
        target = first + expand_time(g, x) * (model.mean_velocity(y, r, t, off.cond) - first)
    error = distance(model.mean_velocity(x, s, t, off.cond), target)
    report("semigroup", error)
    return weighting(error, s, t)
