"""One flow seen on another path: any Gaussian path to any other, by matching signal-to-noise ratios."""

from typing import Any

from torch import Tensor

from .calculus import divided_difference
from .flow_map import FlowMap
from .interpolant import Interpolant
from .shapes import expand_time


class Reparametrized(FlowMap):
    """A flow map that was made on one Gaussian path, as the flow map of another.

    With r(t) the time on the old path that has the same signal-to-noise ratio as t on the new one, and c(t) the ratio
    of their scales,  X^new_{s,t}(x) = X^old_{r(s), r(t)}(c(s) x) / c(t).

    Args:
        model: the flow map on the old path.
        old: the path it was made on.
        new: the path it is wanted on. Both need a source N(0, I), independent of the data, and no latent noise.
    Cost: 1 evaluation of the model.
    Source: Karras, Aittala, Aila & Laine, Elucidating the design space of diffusion-based generative models, 2022,
        arXiv:2206.00364, Section 2 and Appendix B.2, there for velocities.
    Differs: the two-time map is carried over, not the velocity alone; where the old path does not reach the ratio (its
        ends are approximate), its end is used.
    """

    def __init__(self, model: FlowMap, old: Interpolant, new: Interpolant) -> None:
        super().__init__()
        for path in (old, new):
            path.refuse_latent()
        self.model, self.old, self.new = model, old, new

    def _time(self, t: Tensor) -> Tensor:
        # Off the exact ends, where the ratio is infinite and has no derivative.
        return self.old.time_at(self.new.log_snr(t.double().clamp(1e-30, 1 - 1e-12)))

    def _scale(self, t: Tensor) -> Tensor:
        t, r = t.double(), self._time(t)
        # Equal ratios make alpha / alpha and beta / beta agree; the norm of both is defined at either end.
        return (
            (self.old.alpha(r) ** 2 + self.old.beta(r) ** 2) / (self.new.alpha(t) ** 2 + self.new.beta(t) ** 2)
        ).sqrt()

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        # (X^new - x) / (t - s) with X^old = c_s x + (r_t - r_s) u^old: only scalars are divided by t - s.
        c_s, c_t = self._scale(s), self._scale(t)
        stretch = divided_difference(self._time, s, t) / c_t
        shrink = -divided_difference(self._scale, s, t) / c_t
        y = (expand_time(c_s, x) * x).to(x.dtype)
        u = self.model.mean_velocity(y, self._time(s).to(s.dtype), self._time(t).to(s.dtype), cond)
        return (expand_time(stretch, x) * u + expand_time(shrink, x) * x).to(x.dtype)

    def null_condition(self, batch: int) -> Any:
        return self.model.null_condition(batch)
