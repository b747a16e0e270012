"""Jumps as long as the map can be trusted: tolerance in, evaluations and an error estimate out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .flow_map import FlowMap
from .shapes import expand_time
from .types import map_condition


@dataclass(frozen=True)
class Adapted:
    """What tolerance sampling returns.

    Args:
        x: states at time 1 [B, *].
        evaluations: of the network, per sample [B].
        error: estimate of the error of x [B], root mean square per dimension.
    """

    x: Tensor
    evaluations: Tensor
    error: Tensor


@torch.no_grad()
def sample_to_tolerance(
    model: FlowMap, x: Tensor, tolerance: float, *, cond: Any = None, least: float = 1 / 64, safety: float = 4.0
) -> Adapted:
    """Carry each sample from time 0 to 1 in jumps that pass a check, each sample in its own.

    A jump from s to t is taken if it lands near to where its two halves land, within its part of the tolerance:
    |X_{s,t}(x) - X_{m,t}(X_{s,m}(x))| <= sqrt(t - s) tolerance / safety, root mean square per dimension. The halves are
    then kept, as the better of the two; otherwise the first half is tried by itself. After a jump the next is tried
    twice as long. The root, because errors of a learned map at different times are nearly independent. The error
    estimate of a sample is the sum of its checks, as if they were not, those of jumps included that were taken at the
    least span without passing.

    The many-step solution of the map's own velocity is what is estimated: whether that velocity is right, no check of
    this kind can see. Nor does it see an error that a jump and its halves share; `safety` stands for those. Errors that
    all point one way, such as a solver's, may exceed the tolerance by the root of the number of jumps over `safety`;
    the estimate says so.

    Args:
        model: the flow map.
        x: states at time 0 [B, *].
        tolerance: of a sample, root mean square per dimension, in units of the data.
        cond: condition, batch first.
        least: shortest jump that is halved.
        safety: how many times better than the tolerance a jump must look; 1 trusts the check.
    Cost: 3 evaluations for a first try, 2 more for each halving (the half is known), 3 for each later jump.
    Source: ours; local error control by comparing a step with two halves is classical, for example Hairer, Nørsett &
        Wanner, Solving ordinary differential equations I, 1993, Section II.4.
    """
    if tolerance <= 0:
        raise ValueError(f"tolerance must be > 0; got {tolerance}.")
    n, root = len(x), x[0].numel() ** 0.5
    time, span = x.new_zeros(n, dtype=torch.float64), x.new_ones(n, dtype=torch.float64)
    evaluations, error = torch.zeros(n, dtype=torch.long, device=x.device), x.new_zeros(n, dtype=torch.float64)
    # After a halving the first half is the next try, and known already.
    x, whole, known = x.clone(), torch.zeros_like(x), torch.zeros(n, dtype=torch.bool, device=x.device)
    while bool((time < 1).any()):
        new = (time < 1) & ~known
        if bool(new.any()):
            end = torch.minimum(time + span, torch.ones_like(time))
            whole[new] = _jump(model, x[new], time[new], end[new], _chosen(cond, new))
        at = (time < 1).nonzero()[:, 0]
        s, h = time[at], torch.minimum(span[at], 1 - time[at])
        half = _jump(model, x[at], s, s + h / 2, _chosen(cond, at))
        two = _jump(model, half, s + h / 2, s + h, _chosen(cond, at))
        gap = (two - whole[at]).double().square().flatten(1).sum(1).sqrt() / root
        evaluations[at] += 3 - known[at].long()
        accept = (gap <= tolerance * h.sqrt() / safety) | (h <= least)
        whole[at], known[at], span[at] = half, ~accept, torch.where(accept, 2 * h, h / 2)
        taken, reached = at[accept], (s + h)[accept]
        x[taken], error[taken] = two[accept], error[taken] + gap[accept]
        time[taken] = torch.where(1 - reached < 1e-12, 1.0, reached)
    return Adapted(x, evaluations, error)


def _chosen(cond: Any, i: Tensor) -> Any:
    def selected(c: Tensor) -> Tensor:
        return c[i]

    return map_condition(selected, cond)


def _jump(model: FlowMap, x: Tensor, s: Tensor, t: Tensor, cond: Any) -> Tensor:
    return x + expand_time(t - s, x).to(x.dtype) * model.mean_velocity(x, s.to(x.dtype), t.to(x.dtype), cond)
