"""Terminal velocity matching: the Lagrangian identity against an average of the map."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, d_dt, stop_gradient
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.target import Average, Target
from ..core.times import LogitNormal, PairLaw, SpanPair, TimeLaw
from ..core.types import Pair, Weighting, same_condition
from ..core.weighting import Unweighted

__all__ = ["TerminalVelocityMatching"]


@dataclass(frozen=True)
class TerminalVelocityMatching:
    """Every sample matches the flow at one time, and a slow copy's velocity where the map arrives.

    E |d_t X_{s,t}(I_s) - sg b*_t(X_{s,t}(I_s))|^2 / w^2 + E |b_r(I_r) - sg [w dI_r/dr + (1 - w) b*_r(I_r; null)]|^2 /
    w^2, with b* the velocity of the target weights and w the guidance; the first term counts where s != t.

    Args:
        scale: of the guidance w; 1 is none. Samples without condition have none.
        target: which weights b* has.
        interpolant: the path.
        times: law of (s, t).
        diagonal_times: law of r.
        weighting: what either error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 derivative and 1 evaluation with gradient, 1 evaluation without, 2 with guidance.
    Source: Zhou, Parger, Haque & Song, Terminal velocity matching, 2025, arXiv:2511.19797, Eq. (12), (14) and (15) and
        Algorithm 1; the laws of times from the released code (training/loss.py).
    Differs: time reversed with respect to the paper; one scale for all, so that it is neither an input of the network
        nor a factor of its output.
    """

    scale: float = 1.0
    target: Target = field(default_factory=lambda: Average(0.99))
    interpolant: Interpolant = Linear()
    times: PairLaw = SpanPair(LogitNormal(-0.8), LogitNormal(0.4))
    diagonal_times: TimeLaw = LogitNormal(0.4)
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0, since errors are divided by it; got {self.scale}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean squares per dimension."""
        null = model.null_condition(len(pair))
        guided = self.scale != 1 and pair.cond is not None and null is not None
        scale = torch.ones_like(pair.x0.flatten(1)[:, 0])
        if guided:
            scale = torch.where(same_condition(pair.cond, null), scale, self.scale)
        slow = self.target(model)
        s, t = self.times(len(pair), pair.x0, generator, step=step)
        x, _ = self.interpolant.draw(pair, s, generator)
        y, dy = d_dt(model, x, s, t, pair.cond, self.jvp)
        with stop_gradient():
            arrival = slow.velocity(y, t, pair.cond)
        terminal = square_error(dy, arrival) * (s != t) / scale**2
        report("terminal", terminal)
        r = self.diagonal_times(len(pair), pair.x0, generator)
        x, v = self.interpolant.draw(pair, r, generator)
        if guided:
            with stop_gradient():
                v = slow.velocity(x, r, null).lerp(v, expand_time(scale, x))
        matching = square_error(model.velocity(x, r, pair.cond), v) / scale**2
        report("flow_matching", matching)
        return self.weighting(terminal, s, t) + self.weighting(matching, r, r)
