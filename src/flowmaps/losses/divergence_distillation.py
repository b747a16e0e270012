"""Distil a flow and its divergence together, so that a few jumps carry the log-density too."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.calculus import JVP, Exact, hutchinson, stop_gradient
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import PairLaw, TimeLaw, Uniform, UniformPair
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted
from ._shares import on_and_off

__all__ = ["DivergenceDistillation"]


@dataclass(frozen=True)
class DivergenceDistillation:
    """Velocity and its divergence on the diagonal; off it, two halves of a jump teach the whole, for both.

    On it: |u_{t,t}(I_t) - b_t(I_t)|^2 + weight (d_{t,t}(I_t) - e . grad b_t(I_t) e)^2 / D^2, e random signs. Off it,
    with m = (s + t) / 2 and y = X_{s,m}(I_s): u_{s,t} against sg [u_{s,m}(I_s) + u_{m,t}(y)] / 2, and d alike.

    The map must have a divergence head: the map "divergence_head" and a network with two outputs.

    Args:
        teacher: gives b; left out, u is flow matching's and the divergence that of the map's own diagonal.
        diagonal: share of the batch that trains the diagonal.
        weight: of the divergence.
        interpolant: the path.
        times: law of (s, t) off the diagonal.
        diagonal_times: law of t on it.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: on the diagonal 1 evaluation with gradient and 1 derivative (of the teacher, if there is one); off it 1
        evaluation with gradient and 2 without.
    Source: Ai, He, Gu & others, Joint distillation for fast likelihood evaluation and sampling in flow-based models,
        2025, arXiv:2512.02636, the shortcut-distillation variant of the released code.
    Differs: the divergence counts per dimension where the released code divides by 20000; one batch is shared between
        diagonal and rest; a span is told by its two times; without a teacher: ours.
    Published: times.name=dyadic_pair times.levels=7
    """

    teacher: FlowMap | None = None
    diagonal: float = 0.5
    weight: float = 1.0
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    diagonal_times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_share("diagonal", self.diagonal)

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension.

        Raises:
            ValueError: if the map has no divergence head.
        """
        if getattr(model, "with_divergence", None) is None:
            raise ValueError(
                f"the map must have a divergence head; got {type(model).__name__}. Set map to 'divergence_head' and "
                "net.outputs to 2."
            )
        return on_and_off(
            pair,
            self.diagonal,
            lambda on: self._on(model, on, generator),
            lambda off: self._off(model, off, step, generator),
        )

    def _on(self, model: Any, on: Pair, generator: Random) -> Tensor:
        t = self.diagonal_times(len(on), on.x0, generator)
        x, w = self.interpolant.draw(on, t, generator)
        probe = (uniform(x.shape, x, generator) < 0.5).to(x.dtype) * 2 - 1
        source = model if self.teacher is None else self.teacher
        with stop_gradient():
            v, divergence = hutchinson(lambda z: source.velocity(z, t, on.cond), x, probe, self.jvp)
        u, d = model.with_divergence(x, t, t, on.cond)
        return self._error(u, d, w if self.teacher is None else v, divergence, t, t)

    def _off(self, model: Any, off: Pair, step: int, generator: Random) -> Tensor:
        s, t = self.times(len(off), off.x0, generator, step=step)
        x, _ = self.interpolant.draw(off, s, generator)
        m = (s + t) / 2
        with stop_gradient():
            first, half = model.with_divergence(x, s, m, off.cond)
            y = x + expand_time(m - s, x).to(x.dtype) * first
            second, rest = model.with_divergence(y, m, t, off.cond)
        u, d = model.with_divergence(x, s, t, off.cond)
        return self._error(u, d, (first + second) / 2, (half + rest) / 2, s, t)

    def _error(self, u: Tensor, d: Tensor, v: Tensor, divergence: Tensor, s: Tensor, t: Tensor) -> Tensor:
        velocity, density = square_error(u, v), ((d - divergence) / u[0].numel()).square()
        report("velocity", velocity)
        report("divergence", density)
        return self.weighting(velocity + self.weight * density, s, t)
