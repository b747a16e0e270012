"""Consistency models of the noisy times alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.checks import check_share
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.noise import StudentNoise
from ..core.random import Random
from ..core.regression import Distance, PseudoHuber
from ..core.report import report
from ..core.shapes import expand_time
from ..core.spacing import Ratio, Spacing
from ..core.times import TimeLaw
from ..core.types import Pair, Weighting, part_size
from ..core.weighting import NoiseGap

__all__ = ["TruncatedConsistency"]


@dataclass(frozen=True)
class TruncatedConsistency:
    """Consistency training from noise to a transition, where a trained consistency model takes over.

    E w d(X_{s,1}(I_s), sg Y_{t,1}(I_t)) over s <= t' = 1 / (1 + transition), with Y the map itself where t <= t' and
    the teacher behind. A share of the batch departs at t' itself, so that it learns from the teacher alone; the rest
    counts as one mean and that share as another, with its own weight.

    The second stage after `consistency`: the teacher is the map trained there, and the start as well. The result is
    right for departures before the transition only, which is enough for sampling in one step.

    Args:
        teacher: the consistency model of the first stage.
        transition: noise level sigma = (1 - t) / t at which the teacher takes over.
        boundary: share of the batch that departs at the transition.
        boundary_weight: what the mean over that share counts.
        spacing: how far apart the two times are.
        times: law of s; times behind the transition are moved to it.
        interpolant: the path.
        distance: between prediction and target.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, 1 without, 1 of the teacher.
    Source: Lee, Xu, Geffner & others, Truncated consistency models, 2024, arXiv:2410.14895, with the numbers of the
        released code for CIFAR-10.
    Differs: linear path, with t = 1 / (1 + sigma); the share is exact and comes first; the length of a stage of the
        spacing is ours; both maps are evaluated for every sample.
    """

    teacher: FlowMap
    transition: float = 1.0
    boundary: float = 0.25
    boundary_weight: float = 0.1
    spacing: Spacing = Ratio(least=1e-3)
    times: TimeLaw = StudentNoise()
    interpolant: Interpolant = Linear()
    distance: Distance = PseudoHuber(1e-8)
    weighting: Weighting = NoiseGap()

    def __post_init__(self) -> None:
        check_share("boundary", self.boundary)
        if self.transition <= 0:
            raise ValueError(f"transition must be > 0, a noise level; got {self.transition}.")
        if self.interpolant.latent:
            raise ValueError(
                "truncated consistency training must have a path without latent noise; got "
                f"{type(self.interpolant).__name__}."
            )

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        n, limit = len(pair), 1 / (1 + self.transition)
        k = part_size(self.boundary, n)
        at_boundary = torch.arange(n, device=pair.x0.device) < k
        s = self.times(n, pair.x0, generator).clamp_max(limit).masked_fill(at_boundary, limit)
        s, t = self.spacing(s, step)
        one = torch.ones_like(t)
        x, _ = self.interpolant.draw(pair, s, generator)
        with stop_gradient():
            y, _ = self.interpolant.draw(pair, t, generator)
            behind = expand_time(t > limit, y)
            target = torch.where(behind, self.teacher(y, t, one, pair.cond), model(y, t, one, pair.cond))
        error = self.distance(model(x, s, one, pair.cond), target)
        report("consistency", error)
        share = torch.where(at_boundary, self.boundary_weight * n / max(k, 1), n / max(n - k, 1))
        return share * self.weighting(error, s, t)
