"""How a prediction is pulled towards a target: the distance, and what is done to a correction before it becomes one."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .shapes import expand_time, square_error


class Distance(Protocol):
    """Error [B] of predictions [B, *] against targets [B, *]."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


class Stabiliser(Protocol):
    """Tames a correction [B, *], sample by sample, without gradient."""

    def __call__(self, g: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Square:
    """Mean square per dimension: the distance whose minimum is the conditional mean."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """|a - b|^2 / D, [B]."""
        return square_error(a, b)


@dataclass(frozen=True)
class Unchanged:
    """The correction as it is."""

    def __call__(self, g: Tensor) -> Tensor:
        """The correction, unchanged."""
        return g


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(|a - b|^2 + c^2) - c with c = scale sqrt(D): the square for small errors, the length for large ones.

    Args:
        scale: c per square root of the dimension; towards 0 it is the plain length.
        each: whether every coordinate is a sample of its own, with c = scale, and the mean of them is taken.
    Source: Song & Dhariwal, Improved techniques for training consistency models, 2023, arXiv:2310.14189, Section 3.3,
        with c = 0.00054 sqrt(D).
    """

    scale: float = 0.00054
    each: bool = False

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be > 0, or the gradient at a perfect fit is undefined; got {self.scale}.")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [B], a sum over dimensions under the root, or a mean of roots."""
        square = (a - b).to(torch.promote_types(a.dtype, torch.float32)).square().flatten(1)
        if self.each:
            return ((square + self.scale**2).sqrt() - self.scale).mean(1)
        c = self.scale * a[0].numel() ** 0.5
        return (square.sum(1) + c**2).sqrt() - c


@dataclass(frozen=True)
class Normalised:
    """The correction over its length: g / (|g| + offset), or with `mean` over its root mean square.

    Args:
        offset: the length below which it is left nearly as it is.
        mean: whether the length is per dimension, so that it does not depend on the number of dimensions.
    Source: Lu & Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2024, arXiv:2410.11081,
        Section 4.2, tangent normalization with c = 0.1.
    """

    offset: float = 0.1
    mean: bool = False

    def __post_init__(self) -> None:
        if self.offset <= 0:
            raise ValueError(f"offset must be > 0, so that no correction divides by zero; got {self.offset}.")

    def __call__(self, g: Tensor) -> Tensor:
        """The normalised correction [B, *]."""
        length = g.to(torch.promote_types(g.dtype, torch.float32)).square().flatten(1).sum(1).sqrt()
        if self.mean:
            length = length / g[0].numel() ** 0.5
        return g / (expand_time(length, g) + self.offset)


def ramp(step: int, length: int) -> float:
    """A factor that rises from 0 to 1 over the first `length` images; 1 at once for length 0."""
    return min(1.0, step / length) if length else 1.0
