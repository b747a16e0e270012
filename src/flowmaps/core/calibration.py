"""What the agreement of two trajectories is worth, learned once on a probe: cheaper sampling to a tolerance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor

from .adaptive import Rung
from .flow_map import FlowMap
from .sampling import Jump, RungeKutta4
from .shapes import square_error

CANDIDATES = (*(Rung(Jump(), k) for k in (1, 2, 4, 8, 16)), *(Rung(RungeKutta4(), k) for k in (2, 3, 4, 6, 8, 12, 16)))


@torch.no_grad()
def calibrate(
    model: FlowMap, probe: Iterable[tuple[Tensor, Any]], tolerance: float, *, share: float = 0.95, slack: float = 1.25,
    candidates: Sequence[Rung] = CANDIDATES, exact: Rung = Rung(RungeKutta4(), 32),
) -> tuple[Rung, ...]:  # fmt: skip
    """Two or three rungs that cheaply bring a share of the samples of a probe within the tolerance.

    Every candidate carries the probe to time 1, and so does `exact`, which tells their errors. A rung accepts up to the
    largest distance below which the share is within the tolerance, the last one all. Its error is estimated by a line
    of log error over log distance through the samples that it accepts, half of which err more.

    The share is raised by two of its standard errors on the probe, so that it holds for other samples: of the same
    flow, with conditions like those of the probe. Of the rungs that cost at most `slack` times the least, those are
    taken whose estimates order the errors of the probe best.

    Args:
        model: the flow map; its diagonal must have been trained.
        probe: batches of states at time 0 [B, *] and their conditions.
        tolerance: root mean square per dimension, in units of the data.
        share: of the samples that shall be within the tolerance.
        slack: how much an estimate that tells good samples from bad may cost; 1 for the least cost.
        candidates: rungs to choose from.
        exact: how the true end is found.
    Returns:
        Rungs for `sample_to_tolerance`.
    Raises:
        ValueError: if no candidate is accurate enough.
    Cost: 363 evaluations per sample of the probe.
    Source: ours.
    """
    if not (tolerance > 0 and 0 < share < 1):
        raise ValueError(f"tolerance must be > 0 and share lie between 0 and 1; got {tolerance} and {share}.")
    ends, calls = list[list[Tensor]](), list[int]()
    for x, cond in probe:
        climbs = [rung.climb(model, x, cond) for rung in (*candidates, exact)]
        ends.append([end for end, _ in climbs])
        calls = [spent for _, spent in climbs]
    *results, truth = (torch.cat(parts) for parts in zip(*ends, strict=True))
    errors = [square_error(x, truth).sqrt() for x in results]
    wanted = min(1.0, share + 2 * math.sqrt(share * (1 - share) / len(truth)))
    order = sorted(range(len(candidates)), key=calls.__getitem__)
    ways = [_Way(candidates[i], results[i], errors[i], calls[i]) for i in order]
    ladders = [_fit(chosen, tolerance, wanted) for n in (2, 3) for chosen in combinations(ways, n)]
    enough = [ladder for ladder in ladders if ladder.share >= wanted]
    if not enough:
        best = min(float(e.quantile(wanted)) for e in errors)
        raise ValueError(
            f"tolerance must be at least {best:.2g}, which the best candidate reaches for {wanted:.1%} of the probe; "
            f"got {tolerance:g}. Give candidates of more steps, and an exact one of more still."
        )
    least = min(ladder.cost for ladder in enough)
    return max((ladder for ladder in enough if ladder.cost <= slack * least), key=lambda ladder: ladder.order).rungs


@dataclass(frozen=True)
class _Way:
    """A candidate, where it carries the probe [B, *], how wrong that is [B], and its evaluations per sample."""

    rung: Rung
    end: Tensor
    error: Tensor
    calls: int


@dataclass(frozen=True)
class _Ladder:
    """Fitted rungs, their evaluations per sample, share within the tolerance, and how well they order the errors."""

    rungs: tuple[Rung, ...]
    cost: float
    share: float
    order: float


def _fit(ways: Sequence[_Way], tolerance: float, wanted: float) -> _Ladder:
    n, left = len(ways[0].error), torch.arange(len(ways[0].error), device=ways[0].error.device)
    rungs, cost = [ways[0].rung], ways[0].calls * n
    error, guess = torch.zeros_like(ways[0].error), torch.zeros_like(ways[0].error)
    for before, way in pairwise(ways):
        cost += way.calls * len(left)
        distance, wrong = square_error(way.end[left], before.end[left]).sqrt(), way.error[left]
        accept = math.inf if way is ways[-1] else _largest(distance, wrong <= tolerance, wanted)
        taken = distance <= accept
        scale, power = _line(distance[taken], wrong[taken])
        rungs.append(replace(way.rung, accept=accept, scale=scale, power=power))
        error[left[taken]], guess[left[taken]] = wrong[taken], scale * distance[taken] ** power
        left = left[~taken]
    ranks = torch.stack([v.argsort().argsort() for v in (error, guess)]).double()
    return _Ladder(tuple(rungs), cost / n, float((error <= tolerance).double().mean()), float(ranks.corrcoef()[0, 1]))


def _largest(distance: Tensor, good: Tensor, wanted: float) -> float:
    """The largest distance such that of those up to it the wanted share is good; -1 if there is none."""
    distance, order = distance.sort()
    share = good[order].double().cumsum(0) / torch.arange(1, len(order) + 1, device=order.device)
    enough = distance[share >= wanted]
    return float(enough[-1]) if len(enough) else -1.0


def _line(distance: Tensor, error: Tensor) -> tuple[float, float]:
    """Scale and power of error = scale distance^power: least squares in logarithms, with half of the errors above."""
    if len(distance) == 0:
        return 1.0, 1.0
    x, y = (v.double().clamp_min(1e-12).log() for v in (distance, error))
    spread = (x - x.mean()).square().sum()
    slope = float(((x - x.mean()) * y).sum() / spread) if len(x) >= 8 and spread > 0 else 0.0
    power = min(max(slope, 0.0), 1.0)
    return math.exp(float((y - power * x).median())), power
