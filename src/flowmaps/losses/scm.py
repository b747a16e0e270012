"""Continuous-time consistency models."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import JVP, Exact, stop_gradient, stopped_derivative
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.noise import LogNormalAngle
from ..core.random import Random
from ..core.regression import Normalised, Stabiliser, ramp
from ..core.report import report
from ..core.shapes import expand_time, square_error
from ..core.times import TimeLaw
from ..core.types import Pair, Weighting
from ..core.velocity import Conditional, VelocitySource, told
from ..core.weighting import Unweighted

__all__ = ["SCM"]


@dataclass(frozen=True)
class SCM:
    """Consistency in the limit of small steps, along the angle a between data (a = 0) and noise (a = pi/2).

    E |G - sg [G + h(g)]|^2 / tan a, with X_{s,1} = cos a x + sin a G and g = -cos a dX_{s,1}/da along the path, that is
    g = cos a [cos a (-dx/da - G) + r sin a (x - dG/da)]; h is the stabiliser, dx/da comes from `velocity`, and r = 1
    after the warm-up. Here tan a = alpha / beta, and x is the state over (alpha^2 + beta^2)^(1/2): on the trigonometric
    path a = pi (1 - s) / 2 and x is the state itself; with the map "trig_flow" G is its network.

    With the conditional velocity this is sCT, with velocity "teacher" sCD. Without a stabiliser both are right on
    average; with one sCD still is, because g is zero at the truth, and sCT only where the law of g around its zero mean
    is symmetric, as for Gaussian data.

    Only jumps to t = 1 are learned: sample in more steps with the sampler "restart".

    Args:
        interpolant: the path, without latent noise.
        times: law of s.
        velocity: of the path; Teacher distils.
        stabiliser: what is done to g; Clamped is the paper's other choice.
        warmup: images over which r rises from 0 to 1.
        weighting: what the error of a sample counts.
        jvp: how the derivative is taken.
    Cost: 1 evaluation with gradient and 1 derivative without; and those of `velocity`.
    Source: Lu & Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2024, arXiv:2410.11081,
        Eq. (6) and (8) and Section 4.2.
    Differs: time reversed with respect to the paper, and G = -F; any path, through its angle; source and data are taken
        to have unit deviation; 1 / tan a is at most 1000; the derivative is not rearranged for half precision; no
        warm-up by default, where the paper has one of 10 000 steps, whatever their number of images.
    Published: weighting.name=learned
    """

    interpolant: Interpolant = Linear()
    times: TimeLaw = LogNormalAngle()
    velocity: VelocitySource = Conditional()
    stabiliser: Stabiliser = Normalised()
    warmup: int = 0
    weighting: Weighting = Unweighted()
    jvp: JVP = Exact()

    def __post_init__(self) -> None:
        if self.interpolant.latent:
            raise ValueError(
                "continuous-time consistency needs a path without latent noise, so that states have an angle; got "
                f"{type(self.interpolant).__name__}."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per dimension before the weighting."""
        pair = told(self.velocity, model, pair, generator)
        s = self.times(len(pair), pair.x0, generator)
        one = torch.ones_like(s)
        x, w = self.interpolant.draw(pair, s, generator)
        w = self.velocity(model, pair, x, w, s)

        def field(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            """G, from the map X = cos a x / n + sin a G."""
            a, b, _, _ = self.interpolant.coefficients(s, x)
            n = (a**2 + b**2).sqrt()
            u = model.mean_velocity(x, s, t, pair.cond)
            return (n * expand_time(t - s, x) * u + (n**2 - b) / n * x) / a.clamp_min(1e-6)

        a, b, a_dot, b_dot = self.interpolant.coefficients(s, x)
        n = (a**2 + b**2).sqrt()
        rate = (a_dot * b - a * b_dot) / n**2  # of the angle
        y = x / n
        dy = (w / n - (a * a_dot + b * b_dot) / n**2 * y) / rate
        g, dg = stopped_derivative(field, x, s, one, dx=w, ds=1.0, jvp=self.jvp)
        with stop_gradient():
            tangent = b / n * (b / n * (-dy - g) + ramp(step, self.warmup) * a / n * (y - dg / rate))
            target = g + self.stabiliser(tangent)
        error = square_error(g, target) * (b / a.clamp_min(1e-6)).clamp_max(1e3).reshape(-1)
        report("consistency", error)
        return self.weighting(error, s, one)
