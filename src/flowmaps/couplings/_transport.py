"""Optimal transport between two batches of equal size: exact assignments and entropic plans."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.random import Random, uniform
from ..core.types import Pair, map_condition

FLOOR = 1e-30  # a float32 that can be inverted


def square_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 [N, M], a sum over dimensions, of states [N, *] and [M, *], in float32 or better."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    a, b = a.detach().flatten(1).to(dtype), b.detach().flatten(1).to(dtype)
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _first(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials f, g [N] with f_i + g_j <= cost_ij, with equality somewhere in each row and column."""
    f = cost.amin(1)
    return f, (cost - f[:, None]).amin(0)


def _improved(cost: Tensor, f: Tensor, g: Tensor, regularisation: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Potentials after iterations of Sinkhorn's algorithm: exp((f_i + g_j - cost_ij) / r) has columns that sum to 1."""
    kernel = ((f[:, None] + g - cost) / regularisation).exp()
    u = v = torch.ones_like(g)
    for _ in range(iterations):
        u = 1 / (kernel @ v).clamp_min(FLOOR)
        v = 1 / (u @ kernel).clamp_min(FLOOR)
    return f + regularisation * u.log(), g + regularisation * v.log()


def assignment(cost: Tensor) -> Tensor:
    """The permutation p [N] that minimises the sum of cost[p_j, j], exactly, for a cost [N, N].

    Potentials added to rows and columns do not change which permutation is best. A few iterations of Sinkhorn's
    algorithm give potentials that are nearly optimal, after which the exact solver finds most of its work done.
    """
    from scipy.optimize import linear_sum_assignment

    reduced = cost.cpu().double()
    if len(cost) > 96:  # below, the exact solver is as fast as the iterations
        f, g = _first(cost)
        scale = float((cost - f[:, None] - g).mean())
        for share in (0.1, 0.02) if scale > 0 else ():
            f, g = _improved(cost, f, g, share * scale, 6)
        reduced = reduced - f.cpu().double()[:, None] - g.cpu().double()
    return torch.as_tensor(linear_sum_assignment(reduced.T.numpy())[1], device=cost.device)


def sinkhorn(cost: Tensor, regularisation: float, tolerance: float = 1e-3, iterations: int = 10_000) -> Tensor:
    """The plan P [N, N] with rows and columns that sum to 1 and minimises sum P cost + regularisation P (log P - 1).

    Args:
        cost: [N, N].
        regularisation: in units of the cost.
        tolerance: mean error of the sums of rows at which it stops; those of columns are exact.
        iterations: after which it stops in any case.
    """
    f, g = _first(cost)
    level = float((cost - f[:, None] - g).mean())
    while level > regularisation:  # from a blurred plan, whose potentials are found at once, to a sharper one
        f, g = _improved(cost, f, g, level, 10)
        level /= 4
    plan = cost
    for _ in range(0, iterations, 20):
        f, g = _improved(cost, f, g, regularisation, 20)
        plan = ((f[:, None] + g - cost) / regularisation).exp()
        if (plan.sum(1) - 1).abs().mean() < tolerance:
            break
    return plan


def drawn(plan: Tensor, u: Tensor) -> Tensor:
    """For each column of a plan [N, M] one row, drawn with the column's probabilities by uniform numbers u [M]: [M]."""
    below = plan.T.cumsum(1)
    return torch.searchsorted(below, (u * below[:, -1])[:, None]).squeeze(1).clamp_max(len(plan) - 1)


def transported(
    pair: Pair, match: Callable[[Tensor, Tensor], Tensor], within_conditions: bool, generator: Random
) -> Pair:
    """The pairs with their sources exchanged; data and conditions keep their places.

    Args:
        pair: a coupled draw, whose sources are exchangeable.
        match: for the cost [N, N] of sources (rows) and data (columns) and uniform numbers [N], the row of each column.
        within_conditions: exchange only among equal conditions.
        generator: randomness.
    """
    assert pair.x1 is not None
    u = uniform((len(pair),), pair.x1, generator)
    order = torch.empty(len(pair), dtype=torch.long, device=pair.x1.device)
    groups = alike(pair.cond if within_conditions else None, pair.x1)
    if len(groups) == len(pair) > 1:
        warnings.warn(
            f"no two of the {len(pair)} conditions of a batch are alike: no sources are exchanged. Use larger batches, "
            "or, if conditions are images, set within_conditions=false, which biases conditional samples.",
            stacklevel=2,
        )
    with torch.autocast(u.device.type, enabled=False):  # half of the digits of a distance are its neighbour's too
        for i in groups:
            order[i] = i[match(square_distances(pair.x0[i], pair.x1[i]), u[i])]
    return dataclasses.replace(pair, x0=pair.x0[order])


def as_rows(cond: Any, like: Tensor) -> Tensor:
    """Conditions of any build as one row of numbers each [B, K], to be compared; K = 1 where there are none."""
    parts = [torch.zeros(len(like), 1, dtype=torch.float64)]

    def keep(c: Tensor) -> Tensor:
        parts.append(c.reshape(len(c), -1).cpu().double())
        return c

    map_condition(keep, cond)
    return torch.cat(parts, 1)


def alike(cond: Any, like: Tensor) -> list[Tensor]:
    """Indices of the samples of `like` [B, *], one tensor for each condition that occurs."""
    _, group = torch.unique(as_rows(cond, like), dim=0, return_inverse=True)
    order = group.argsort(stable=True).to(like.device)
    return list(order.split(group.bincount().tolist()))
