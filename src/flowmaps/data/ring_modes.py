"""Data in the plane that look like images of many dimensions do from afar."""

import math

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.random import fold_in, normal, uniform
from ._dataset import Dataset

__all__ = ["ring_modes"]

SHARES = (0.05, 0.3, 0.65)
SPREAD = math.radians(10)


def ring_modes(size: int = 1024, dimensions: int = 625, split: str = "train", seed: int = 0) -> Dataset:
    """Three narrow modes on a thin ring, with 5, 30 and 65 % of the points, at random directions.

    Their lengths are those of n ~ N(0, I) in D dimensions; within a mode the directions spread evenly over 20 degrees,
    and a little beyond. The coupling "ring" is the source that belongs to it.

    Args:
        size: number of points.
        dimensions: D.
        split: "train" or "test"; different draws from the same modes.
        seed: of the draw.
    Returns:
        Points [2], labelled with their mode.
    Source: Lee, Kim & Lee, Is there a better source distribution than Gaussian? Exploring source distributions for
        image flow matching, 2025, arXiv:2512.18184, the two-dimensional simulation (released code,
        simulations/run_whole_simulation.py).
    """
    check_choice("split", split, ("train", "test"))
    if size < 1 or dimensions < 1:
        raise ValueError(f"size and dimensions must be at least 1; got {size} and {dimensions}.")
    like, draws = torch.empty(0), fold_in(seed, int(split == "test"))
    centre = 2 * math.pi * uniform((len(SHARES),), like, fold_in(seed, 2))
    counts = [round(share * size) for share in SHARES[:-1]]
    counts.append(size - sum(counts))
    label = torch.repeat_interleave(torch.arange(len(SHARES)), torch.tensor(counts))
    even = torch.cat([torch.linspace(-SPREAD, SPREAD, n) for n in counts])
    angle = centre[label] + even + SPREAD / 10 * normal((size,), like, draws)
    x = _lengths(size, dimensions, like, draws)[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return Dataset("ring modes", x, label, len(SHARES))


def _lengths(n: int, dimensions: int, like: Tensor, draws: torch.Generator) -> Tensor:
    square = torch.zeros(n)
    for _ in range(dimensions):
        square += normal((n,), like, draws).square()
    return square.sqrt()
