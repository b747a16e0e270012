"""Eulerian map distillation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, d_ds, stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.times import PairLaw, UniformPair
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["EMD"]


@dataclass(frozen=True)
class EMD:
    """Distil a teacher's velocity where the map departs.

    E |d_s X_{s,t}(I_s) + grad X_{s,t}(I_s) b_s(I_s)|^2, the residual of the Eulerian identity.

    Args:
        teacher: the flow map whose velocity b is distilled.
        interpolant: the path that gives the departure points.
        times: law of (s, t).
        distance: of the residual from zero.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 derivative with gradient, 1 evaluation of the teacher.
    Source: Boffi, Albergo & Vanden-Eijnden, Flow map matching with stochastic interpolants: a mathematical framework
        for consistency models, 2024, arXiv:2406.07507, the Eulerian map distillation loss; restated in
        arXiv:2505.18825v2, Appendix B.2, Eq. (28).
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
        with stop_gradient():
            v = self.teacher.velocity(x, s, pair.cond)
        _, residual = d_ds(model, x, s, t, v, pair.cond, self.jvp)
        error = self.distance(residual, torch.zeros_like(residual))
        report("eulerian", error)
        return self.weighting(error, s, t)
