"""Align Your Flow: distil a teacher by a normalised correction of the mean velocity."""

from dataclasses import dataclass

from torch import Tensor

from ..core.calculus import JVP, Exact, stop_gradient, stopped_derivative
from ..core.checks import check_choice, check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random
from ..core.regression import Normalised, Stabiliser, ramp
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import PairLaw, UniformPair
from ..core.types import Pair, Weighting
from ..core.velocity import VelocitySource, needs_path, told
from ..core.weighting import Unweighted
from .mean_flow import eulerian

__all__ = ["AlignYourFlow"]


@dataclass(frozen=True)
class AlignYourFlow:
    """Move the mean velocity by a tamed residual of an identity, with a teacher's velocity b.

    E |u_{s,t}(I_s) - sg [u_{s,t} + T(g)]|^2. For "eulerian" g = b_s(I_s) - u + r (t - s) (d_s u + grad u b_s), which
    becomes flow matching for t -> s and a consistency model for t = 1; for "lagrangian" g = b_t(X_{s,t}(I_s)) - d_t
    X_{s,t}(I_s). T is the stabiliser. r rises from 0 to `most`; what is missing to 1 favours straight paths, so that
    the map has the teacher's flow as its fixed point only for most = 1.

    Args:
        teacher: the flow map that is distilled; it may be left out where there is a velocity.
        velocity: b, if not the teacher's plain velocity: Autoguided is the paper's, Teacher guides with the null
            condition, Conditional learns from data alone. For "lagrangian" it must be right off the path too.
        residual: "eulerian" or "lagrangian".
        most: r after the warm-up.
        warmup: images over which r rises.
        stabiliser: T.
        interpolant: the path that gives the departure points.
        times: law of (s, t).
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 evaluation with gradient, 1 derivative without and 1 evaluation of the teacher, or those of `velocity`.
    Source: Sabour, Fidler & Kreis, Align your flow: scaling continuous-time flow map distillation, 2025,
        arXiv:2506.14603, Algorithm 1 and, for "lagrangian", the AYF-LMD objective.
    Differs: time reversed with respect to the paper; one guidance scale, where the paper draws it from [1, 3] for each
        sample and tells the student; (s, t) uniform by default, the paper's law is SpanPair; no adversarial
        fine-tuning.
    """

    teacher: FlowMap | None = None
    velocity: VelocitySource | None = None
    residual: str = "eulerian"
    most: float = 0.99
    warmup: int = 0
    stabiliser: Stabiliser = Normalised()
    interpolant: Interpolant = Linear()
    times: PairLaw = UniformPair()
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        check_choice("residual", self.residual, ("eulerian", "lagrangian"))
        check_share("most", self.most)
        if self.teacher is None and self.velocity is None:
            raise ValueError(
                "AlignYourFlow needs the option 'teacher' or 'velocity'; got neither. Use `flowmaps distill TEACHER "
                "RECIPE`, or set teacher to a run; or learn from data, velocity='conditional'."
            )
        if self.residual == "lagrangian" and needs_path(self.velocity):
            raise ValueError(
                "residual 'lagrangian' needs the velocity where the map arrives; "
                f"{type(self.velocity).__name__} is right on the path of the pair only. Use 'teacher', 'autoguided' or "
                "'diagonal', or residual='eulerian'."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension."""
        pair = told(self.velocity, model, pair, generator)
        s, t = self.times(len(pair), pair.x0, generator, step=step)
        x, w = self.interpolant.draw(pair, s, generator)
        if self.residual == "eulerian":
            rate = self.most * ramp(step, self.warmup)
            b = self._guide(model, pair, x, w, s)
            u, target = eulerian(model, x, b, s, t, pair.cond, self.jvp, self.stabiliser, rate)
        else:
            mean_velocity = lambda x, s, t: model.mean_velocity(x, s, t, pair.cond)  # noqa: E731
            u, du = stopped_derivative(mean_velocity, x, s, t, dt=1.0, jvp=self.jvp)
            with stop_gradient():
                span = expand_time(t - s, x)
                b = self._guide(model, pair, x + span * u, w, t)
                target = u + self.stabiliser(b - u - span * du)
        error = square_error(u, target)
        report(self.residual, error)
        return self.weighting(error, s, t)

    def _guide(self, model: FlowMap, pair: Pair, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
        if self.velocity is not None:
            return self.velocity(model, pair, x, w, s)
        assert self.teacher is not None  # or there would be a velocity
        with stop_gradient():
            return self.teacher.velocity(x, s, pair.cond)
