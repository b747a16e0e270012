"""Consistency mid-training: regression on a teacher's trajectories."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.calculus import stop_gradient
from ..core.checks import check_choice
from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, uniform
from ..core.regression import Distance, Square
from ..core.report import report
from ..core.sampling import Heun, sample
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Sampler, Weighting
from ..core.weighting import Unweighted

__all__ = ["ConsistencyMidTraining"]


@dataclass(frozen=True)
class ConsistencyMidTraining:
    """Learn, from every state of a teacher's trajectory, its end or the mean slope to a later state.

    With states x_0, ..., x_N of a trajectory at grid times: E d(X_{t_i,t_N}(x_i), x_N) for every i (form "end"), or
    E d(u_{t_i,t_j}(x_i), (x_j - x_i) / (t_j - t_i)) for i < j drawn uniformly (form "slope").

    Nothing in the target depends on the map, which makes this a stable start for consistency models ("end") and for
    two-time maps ("slope"), between pre-training and training proper. One trajectory serves as many samples as it has
    steps: of a batch of B the first K = B / steps pairs, rounded up, give a start each. Of the K steps states before
    the end, form "end" takes B, spread evenly from a random one on, so that each is as likely as any other.

    Args:
        teacher: the flow map whose trajectories are followed.
        form: "end" teaches jumps to the last time, "slope" all jumps between grid times.
        steps: of a trajectory.
        sampler: the teacher's step.
        interpolant: the path that gives the start.
        times: law whose quantiles are the grid.
        distance: between prediction and target.
        weighting: what the error of a sample counts.
    Cost: 1 evaluation with gradient, and 1 step of the sampler per sample.
    Source: Hu, Lai, Mitsufuji & Ermon, CMT: mid-training for efficient learning of consistency, mean flow, and flow map
        models, 2025, arXiv:2509.24526, both forms, with 16 steps as in the released code.
    Differs: a one-step solver in place of multistep DPM-Solver++; the grid is uniform on our clock and starts at pure
        noise, where theirs is uniform in the logarithm of the noise level (times "power_noise" comes near); the square
        in place of LPIPS; all states of a trajectory, or most, stand in one batch, so that a batch of fewer samples
        than steps sees a single one, and the data and conditions of the other pairs go unused.
    """

    teacher: FlowMap
    form: str = "end"
    steps: int = 16
    sampler: Sampler = Heun()
    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    distance: Distance = Square()
    weighting: Weighting = Unweighted()

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("end", "slope"))
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B]."""
        n, steps = len(pair), self.steps
        starts = pair[: -(-n // steps)]
        row = torch.arange(n, device=pair.x0.device)
        own = row % len(starts)
        like = torch.promote_types(pair.x0.dtype, torch.float32)
        grid = self.times.quantile(torch.linspace(0, 1, steps + 1, dtype=like, device=pair.x0.device))
        with stop_gradient():
            x, _ = self.interpolant.draw(starts, grid[:1].expand(len(starts)), generator)
            states = [x]
            sample(
                self.teacher, x, grid, sampler=self.sampler, cond=starts.cond, generator=generator,
                callback=lambda _, y: states.append(y),
            )  # fmt: skip
            seen = torch.stack(states)
        if self.form == "end":
            count = len(starts) * steps  # of states, at least n: all of them where n is a multiple of the steps
            place = (row + uniform((1,), pair.x0, generator).double()) * count / n
            place = place.long().clamp_max(count - 1)
            i, j, own = place // len(starts), torch.full_like(row, steps), place % len(starts)
        else:  # two different places on the grid, in order
            u = uniform((n, 2), pair.x0, generator)
            a, b = (u[:, 0] * (steps + 1)).long(), (u[:, 1] * steps).long()
            b = b + (b >= a)
            i, j = torch.minimum(a, b), torch.maximum(a, b)
        x, y, s, t, cond = seen[i, own], seen[j, own], grid[i], grid[j], starts[own].cond
        if self.form == "end":
            error = self.distance(model(x, s, t, cond), y)
        else:
            h = (t - s).reshape(-1, *[1] * (x.ndim - 1))
            error = self.distance(model.mean_velocity(x, s, t, cond), (y - x) / h)
        report("mid_training", error)
        return self.weighting(error, s, t)
