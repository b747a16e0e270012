"""Lagrangian self-distillation."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.calculus import JVP, Exact, d_dt, stop_gradient, stopped_derivative
from ..core.checks import check_choice, check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.shapes import expand_time
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted
from ._shares import on_and_off
from .flow_matching import flow_matching

__all__ = ["LSD"]


@dataclass(frozen=True)
class LSD:
    """Flow matching on the diagonal; off it, follow one's own velocity where the map arrives.

    E |d_t X_{s,t}(I_s) - sg b_t(X_{s,t}(I_s))|^2, the residual of the Lagrangian identity.

    With route "stopped" only the mean velocity in d_t X = u + (t - s) d_t u carries gradient: less memory and time.

    Args:
        diagonal: share of the batch that trains the diagonal.
        route: "exact" differentiates through d_t X, "stopped" stops its derivative part.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        velocity: what the diagonal regresses on; GuidedAsTold lets the map take a guidance scale.
        distance: between the two sides off the diagonal; PseudoHuber bounds what one sample pulls.
        bound: largest absolute coordinate of data, 0 for none. Where the velocity that is followed leads to a datum
            beyond, it is led back: a map that strays to where the diagonal was never trained would follow it to
            infinity, and long trainings with many long jumps end so.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: on the diagonal 1 evaluation with gradient and those of `velocity`; off it 1 derivative with gradient and 1
        evaluation ("exact"), or 1 evaluation with gradient, 1 derivative and 1 evaluation ("stopped").
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Eq. (13) and (94), Algorithms 1 and 2.
    Differs: errors are means over dimensions, theirs sums; off the diagonal the network trains with dropout too, where
        the released code has none there; route "stopped" is a variant that the paper mentions; distance and bound are
        ours.
    Published: weighting.name=learned
    """

    diagonal: float = 0.75
    route: str = "exact"
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    velocity: VelocitySource = Conditional()
    distance: Distance = Square()
    bound: float = 0.0
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        check_choice("route", self.route, ("exact", "stopped"))
        if self.bound < 0:
            raise ValueError(f"bound must be positive, or 0 for none; got {self.bound}.")

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
        if self.route == "exact":
            y, dy = d_dt(model, x, s, t, off.cond, self.jvp)
            with stop_gradient():
                target = self._followed(model, y, t, off.cond)
            error = self.distance(dy, target)
        else:
            mean_velocity = lambda x, s, t: model.mean_velocity(x, s, t, off.cond)  # noqa: E731
            u, du = stopped_derivative(mean_velocity, x, s, t, dt=1.0, jvp=self.jvp)
            with stop_gradient():
                span = expand_time(t - s, x)
                target = self._followed(model, x + span * u, t, off.cond) - span * du
            error = self.distance(u, target)
        report("lagrangian", error)
        return self.weighting(error, s, t)

    def _followed(self, model: FlowMap, y: Tensor, t: Tensor, cond: Any) -> Tensor:
        b, p = model.velocity(y, t, cond), self.interpolant
        if not self.bound:
            return b
        datum = p.data_from_velocity(b, y, t)
        late = t.clamp_max(0.95)  # the pull, a distance over the time that is left, stays bounded
        held = datum.clamp(-self.bound, self.bound)
        return b + p.velocity_from_data(held, y, late) - p.velocity_from_data(datum, y, late)
