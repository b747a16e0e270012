"""Lagrangian self-distillation."""

from dataclasses import dataclass

from torch import Tensor

from ..core.calculus import JVP, Exact, d_dt, stop_gradient, stopped_derivative
from ..core.checks import check_choice, check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
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
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: on the diagonal 1 evaluation with gradient; off it 1 derivative with gradient and 1 evaluation ("exact"), or 1
        evaluation with gradient, 1 derivative and 1 evaluation ("stopped").
    Source: Boffi, Albergo & Vanden-Eijnden, How to build a consistency model: learning flow maps via self-distillation,
        2025, arXiv:2505.18825v2, Eq. (13) and (94), Algorithms 1 and 2.
    """

    diagonal: float = 0.75
    route: str = "exact"
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)
        check_choice("route", self.route, ("exact", "stopped"))

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: flow_matching(model, on, self.interpolant, self.diagonal_times, self.weighting, generator),
            lambda off: self._off(model, off, step, generator),
        )

    def _off(self, model: FlowMap, off: Pair, step: int, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator, step=step)
        x, _ = self.interpolant.draw(off, s, generator)
        if self.route == "exact":
            y, dy = d_dt(model, x, s, t, off.cond, self.jvp)
            with stop_gradient():
                target = model.velocity(y, t, off.cond)
            error = square_error(dy, target)
        else:
            mean_velocity = lambda x, s, t: model.mean_velocity(x, s, t, off.cond)  # noqa: E731
            u, du = stopped_derivative(mean_velocity, x, s, t, dt=1.0, jvp=self.jvp)
            with stop_gradient():
                span = expand_time(t - s, x)
                target = model.velocity(x + span * u, t, off.cond) - span * du
            error = square_error(u, target)
        report("lagrangian", error)
        return self.weighting(error, s, t)
