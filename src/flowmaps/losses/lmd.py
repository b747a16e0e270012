"""Lagrangian map distillation."""

from dataclasses import dataclass

from torch import Tensor

from ..core.calculus import JVP, Exact, d_dt, stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.times import PairLaw, UniformPair
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["LMD"]


@dataclass(frozen=True)
class LMD:
    """Distil a teacher's velocity where the map arrives.

    E |d_t X_{s,t}(I_s) - sg b_t(X_{s,t}(I_s))|^2, the residual of the Lagrangian identity.

    Args:
        teacher: the flow map whose velocity b is distilled.
        interpolant: the path that gives the departure points.
        times: law of (s, t).
        distance: between the two sides; PseudoHuber bounds what one sample pulls.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 derivative with gradient, 1 evaluation of the teacher.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, the Lagrangian map distillation loss; restated in
        arXiv:2505.18825v2, Appendix B.1, Eq. (26), and with the stop Eq. (27).
    Differs: the teacher's value is a constant target, as in Eq. (27) there; the objective itself has no such stop.
    """

    teacher: FlowMap
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], by default the mean square per dimension."""
        s, t = self.times(len(pair), pair.x0, generator, step=step)
        x, _ = self.interpolant.draw(pair, s, generator)
        y, dy = d_dt(model, x, s, t, pair.cond, self.jvp)
        with stop_gradient():
            target = self.teacher.velocity(y, t, pair.cond)
        error = self.distance(dy, target)
        report("lagrangian", error)
        return self.weighting(error, s, t)
