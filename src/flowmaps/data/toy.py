"""Two-dimensional data whose pictures tell at a glance whether a map is right."""

import math

import torch
from torch import Generator, Tensor

from ..core.checks import check_choice
from ..core.random import fold_in, normal, uniform
from ..oracles.checkerboard import Checkerboard
from ._dataset import Dataset

__all__ = ["toy"]


def toy(kind: str = "checkerboard", size: int = 1_000_000, split: str = "train", seed: int = 0) -> Dataset:
    """Points in the plane, drawn once.

    Args:
        kind: "checkerboard" (on [-1, 1]^2), "eight_gaussians" (radius 2, standard deviation 0.15, labelled), "moons"
            (two half circles, labelled) or "spiral".
        size: number of points.
        split: "train" or "test"; different draws.
        seed: of the draw.
    Returns:
        Points [2].
    """
    check_choice("kind", kind, tuple(_DRAWS))
    check_choice("split", split, ("train", "test"))
    if size < 1:
        raise ValueError(f"size must be at least 1; got {size}.")
    x, labels = _DRAWS[kind](size, fold_in(seed, int(split == "test")))
    return Dataset(f"toy {kind}", x, labels, 0 if labels is None else int(labels.max()) + 1)


def _checkerboard(n: int, generator: Generator) -> tuple[Tensor, None]:
    return Checkerboard().sample(n, generator), None


def _eight_gaussians(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    label = torch.randint(8, (n,), generator=generator)
    angle = label * math.pi / 4
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * normal((n, 2), torch.empty(0), generator), label


def _moons(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    label = torch.randint(2, (n,), generator=generator)
    angle = math.pi * (uniform((n,), torch.empty(0), generator) + label)
    centre = torch.stack([label - 0.5, (0.5 - label) * 0.5], 1)
    points = torch.stack([angle.cos(), angle.sin()], 1) + centre
    return 1.2 * points + 0.08 * normal((n, 2), points, generator), label


def _spiral(n: int, generator: Generator) -> tuple[Tensor, None]:
    angle = 3 * math.pi * uniform((n,), torch.empty(0), generator).sqrt()
    points = torch.stack([angle.cos(), angle.sin()], 1) * (angle / (3 * math.pi))[:, None]
    return 2 * points + 0.05 * normal((n, 2), points, generator), None


_DRAWS = {"checkerboard": _checkerboard, "eight_gaussians": _eight_gaussians, "moons": _moons, "spiral": _spiral}
