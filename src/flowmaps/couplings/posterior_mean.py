"""Restoration that starts from the best estimate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.random import Random, normal
from ..core.types import NoSource, Pair

__all__ = ["PosteriorMean"]


@dataclass(frozen=True)
class PosteriorMean:
    """x0 = f(y) + noise n, where f(y) is about E[x1 | y], the estimate of the data x1 from a measurement y.

    The flow sees the state alone, and carries the law of the estimates to that of the data along short paths; where it
    is the optimal transport, the result has the least square error, MMSE + W2^2, among those that look like data.
    Draws from the posterior have twice the MMSE.

    The condition is the measurement, in training and in sampling, and goes no further than here. In training it is what
    comes with the data, or `measure` makes it from the data instead. To restore: flow.sample(len(y), steps, cond=y).

    In Python f is any callable. In a recipe name a function of one's own that returns the coupling, coupling =
    "my_module:restoration", with conditional = false beside `measure`, and with labels, maps or a condition of one's
    own as measurements otherwise; such a run makes no pictures, for it has nothing to restore.

    Args:
        estimator: f, from measurements to states [B, *], trained to least square error; a module must be frozen.
        noise: standard deviation, which gives a law without density one.
        measure: (x1, generator) -> y, to degrade the data in training.
    Cost: 1 evaluation of the estimator, in training and in sampling.
    Source: Ohayon, Michaeli & Elad, Posterior-mean rectified flow: towards minimum MSE photo-realistic image
        restoration, 2024, arXiv:2410.00418; in the released code the noise is .1, and .025 for denoising.
    Differs: the released code clips the estimate to the range of images, which is left to f.
    """

    gaussian = False
    takes_condition = True

    estimator: Callable[[Any], Tensor]
    noise: float = 0.1
    measure: Callable[[Tensor, Random], Any] | None = None

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise must be >= 0; got {self.noise}.")
        f = self.estimator
        if isinstance(f, nn.Module) and any(p.requires_grad for p in f.parameters()):
            raise ValueError(
                "estimator must be frozen; some of its parameters train. Call estimator.requires_grad_(False)."
            )

    def __call__(self, x1: Tensor, cond: Any = None, *, generator: Random = None) -> Pair:
        """A pair for each datum x1 [B, *] and its measurement.

        Raises:
            ValueError: if there are a condition and `measure`, or neither.
        """
        if self.measure is not None:
            if cond is not None:
                raise ValueError(
                    "the data must have no condition beside measure; got one. Train with conditional=false."
                )
            cond = self.measure(x1, generator)
        return Pair(self.source(x1.shape, x1, cond, generator=generator), x1)

    def source(self, shape: Sequence[int], like: Tensor, cond: Any = None, *, generator: Random = None) -> Tensor:
        """Where to start from, [B, *]; the condition is the measurement.

        Raises:
            NoSource: if there is none.
            ValueError: if the estimates have another shape.
        """
        if cond is None:
            raise NoSource("posterior_mean must have measurements as its condition; got None. Pass them as cond.")
        with torch.no_grad():
            estimate = self.estimator(cond)
        if tuple(estimate.shape) != tuple(shape):
            raise ValueError(f"estimates must have the shape {tuple(shape)}; got {tuple(estimate.shape)}.")
        return estimate + self.noise * normal(shape, like, generator)
