"""What multistep methods share: the evaluations they keep, and polynomials through them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.shapes import expand_time


@dataclass(frozen=True)
class History:
    """The last evaluations, newest first.

    Args:
        nodes: where they were made, [B, k], float64: times, or any other variable that grows with time.
        values: what they gave, [B, *] each.
    """

    nodes: Tensor
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.values)


def mixed(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sum of values [B, *], each with its weight [B, k]: [B, *]."""
    total = torch.zeros_like(values[0])
    for value, w in zip(values, weights.unbind(1), strict=True):
        total = total + expand_time(w, value).to(value.dtype) * value
    return total


def remember(history: History | None, node: Tensor, value: Tensor, most: int) -> History:
    """The history with one more evaluation, at a node [B], without those older than the last `most`."""
    if history is None:
        return History(node.double()[:, None], (value,))
    nodes = torch.cat([node.double()[:, None], history.nodes], 1)
    return History(nodes[:, :most], (value, *history.values)[:most])


def lagrange(nodes: Tensor, points: Tensor) -> Tensor:
    """Weights of the polynomial through values at nodes, evaluated at points.

    Nodes that are not finite, or that repeat a newer one (a step of no length), are left out: the degree is lower
    there.

    Args:
        nodes: [B, k], newest first.
        points: [B, g].
    Returns:
        [B, g, k].
    """
    gaps = nodes[:, :, None] - nodes[:, None, :]
    out = ~nodes.isfinite() | (gaps == 0).tril(-1).any(2)
    skip = out[:, None, :] | torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
    ratio = (points[:, :, None, None] - nodes[:, None, None, :]) / torch.where(skip, 1.0, gaps)[:, None]
    return torch.where(out[:, None], 0.0, torch.where(skip[:, None], 1.0, ratio).prod(3))


def gauss_legendre(points: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Places in [0, 1] and weights of the quadrature that is exact up to degree 2 points - 1.

    Source: Golub & Welsch, Calculation of Gauss quadrature rules, 1969.
    """
    i = torch.arange(1, points, dtype=torch.float64, device=like.device)
    off = i / (4 * i**2 - 1).sqrt()
    places, vectors = torch.linalg.eigh(off.diag(1) + off.diag(-1))
    return (places + 1) / 2, vectors[0] ** 2


def mean_weights(nodes: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Weights [B, k] of slopes at nodes [B, k] in the mean over [s, t] of the polynomial through them."""
    places, masses = gauss_legendre(2, nodes)  # exact up to the degree 3 of four nodes
    points = s.double()[:, None] + (t - s).double()[:, None] * places
    return (lagrange(nodes, points) * masses[:, None]).sum(1)
