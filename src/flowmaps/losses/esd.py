"""Eulerian self-distillation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, d_ds, derivative_along, stop_gradient
from ..core.checks import check_choice, check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching

__all__ = ["ESD"]


@dataclass(frozen=True)
class ESD:
    """Flow matching on the diagonal; off it, follow one's own velocity where the map departs.

    E |d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) b_s(I_s)|^2, the residual of the Eulerian identity.

    Args:
        diagonal: share of the batch that trains the diagonal.
        stop: what is constant in the residual: "full" the advective term grad X b, "convex" the velocity b in it,
            "none" nothing.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: what the diagonal regresses on; GuidedAsTold lets the map take a guidance scale.
        distance: of the residual from zero.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: on the diagonal 1 evaluation with gradient and those of `velocity`; off it 1 derivative with gradient and 1
        evaluation, with "full" also 1 derivative without.
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Eq. (14) and (94), Algorithms 1 and 3.
    Published: weighting.name=learned
    """

    diagonal: float = 0.75
    stop: str = "full"
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        check_choice("stop", self.stop, ("full", "convex", "none"))

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
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
        residual = self._residual(model, x, s, t, off)
        error = self.distance(residual, torch.zeros_like(residual))
        report("eulerian", error)
        return self.weighting(error, s, t)

    def _residual(self, model: FlowMap, x: Tensor, s: Tensor, t: Tensor, pair: Pair) -> Tensor:
        if self.stop == "none":
            return d_ds(model, x, s, t, model.velocity(x, s, pair.cond), pair.cond, self.jvp)[1]
        with stop_gradient():
            v = model.velocity(x, s, pair.cond)
        if self.stop == "convex":
            return d_ds(model, x, s, t, v, pair.cond, self.jvp)[1]
        with stop_gradient():
            carry = lambda x, s, t: model(x, s, t, pair.cond)  # noqa: E731
            advection = derivative_along(carry, x, s, t, dx=v, jvp=self.jvp)[1]
        return d_ds(model, x, s, t, 0.0, pair.cond, self.jvp)[1] + advection
