"""Restoration that starts from the best estimate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.random import Random, normal
from ..core.types import Pair

__all__ = ["PosteriorMean"]


@dataclass(frozen=True)
class PosteriorMean:
    """x0 = f(y) + noise n, where f(y) is about E[x1 | y], the estimate of the data x1 from a measurement y.

    The flow sees the state alone, and carries the law of the estimates to that of the data along short paths; where it
    is the optimal transport, the result has the least square error, MMSE + W2^2, among those that look like data.
    Draws from the posterior have twice the MMSE.

    In training the condition is the measurement, unless `measure` makes it from the data; in sampling it is. The pair
    has no condition, unless `measure` leaves one to pass on.

    Args:
        estimator: f, from measurements to states [B, *], trained to least square error; it is not trained here.
        noise: standard deviation, which gives a law without density one.
        measure: (x1, generator) -> y, to degrade the data in training.
    Source: Ohayon, Michaeli & Elad, Posterior-mean rectified flow: towards minimum MSE photo-realistic image
        restoration, 2024, arXiv:2410.00418, with noise .1, and .025 for denoising.
    """

    estimator: Callable[[Any], Tensor]
    noise: float = 0.1
    measure: Callable[[Tensor, Random], Any] | None = None

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must be >= 0; got {self.noise}.")

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *] and its measurement."""
        if self.measure is None:
            return Pair(self.source(x1.shape, x1, cond, generator=generator), x1)
        y = self.measure(x1, generator)
        return Pair(self.source(x1.shape, x1, y, generator=generator), x1, cond)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Where to start from, [B, *]; the condition is the measurement.

        Raises:
            ValueError: if there is none, or the estimates have another shape.
        """
        if cond is None:
            raise ValueError("posterior_mean must have measurements as its condition; got None. Pass them as cond.")
        with torch.no_grad():
            estimate = self.estimator(cond)
        if tuple(estimate.shape) != tuple(shape):
            raise ValueError(f"estimates must have the shape {tuple(shape)}; got {tuple(estimate.shape)}.")
        return estimate + self.noise * normal(shape, like, generator)
