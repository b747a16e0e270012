"""Guidance towards what is rare in the data."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.regression import Distance, Square
from ..core.shapes import fill_time
from .classifier import Classifier

__all__ = ["Minority"]


class Minority(FlowMap):
    """Classifier guidance towards a class of the minority score, such as its highest quantile; no jumps.

    b_t(x) shifted by scale grad_x log p(rank | x, t), for a classifier of noisy states. It is trained on data whose
    labels are `minority_ranks` of their `minority_score`.

    Args:
        model: the map that is guided; its velocity is used.
        classifier: from states [B, *] and times [B] to logits [B, classes].
        rank: the class to go to; -1 is the last one, the rarest.
        scale: of the gradient; 0 is none.
        earliest: as in "classifier".
        interpolant: the path the map was trained on, with a source N(0, I) and no latent noise.
    Cost: 1 network evaluation, and the gradient of the classifier with respect to the state.
    Source: Um, Lee & Ye, Don't play favorites: minority guidance for diffusion models, 2023, arXiv:2301.12334, and the
        released code, classifier_sample.py.
    Differs: a velocity on any path.
    """

    def __init__(
        self, model: FlowMap, classifier: Callable[[Tensor, Tensor], Tensor], rank: int = -1, scale: float = 3.5,
        earliest: float = 0.01, interpolant: Interpolant = Linear(),
    ) -> None:  # fmt: skip
        super().__init__()

        def log_prob(x: Tensor, t: Tensor, cond: Any) -> Tensor:
            return classifier(x, t).log_softmax(1)[:, rank]

        self.classifier = classifier  # so that a module moves with this one
        self.guided = Classifier(model, log_prob, scale, True, earliest, interpolant)

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.guided.mean_velocity(x, s, t, cond)

    def null_condition(self, batch: int) -> Any:
        return self.guided.null_condition(batch)


@torch.no_grad()
def minority_score(
    model: FlowMap, x1: Tensor, cond: Any = None, *, t: float = 0.14, repeats: int = 5, distance: Distance = Square(),
    interpolant: Interpolant = Linear(), generator: Random = None,
) -> Tensor:  # fmt: skip
    """How badly one denoising reconstructs data: E d(E[x1 | I_t], x1) over the noise [B]; high for rare data.

    Args:
        model: a map; its velocity gives the denoised state.
        x1: data [B, *].
        cond: condition, batch first.
        t: time at which noise is added; the default is the level of the released code.
        repeats: draws of the noise.
        distance: between reconstruction and data; perceptual for images.
        interpolant: the path, with a source N(0, I) and no latent noise.
        generator: draws the noise.
    Cost: `repeats` network evaluations.
    """
    time, total = fill_time(t, x1), torch.zeros(())
    for _ in range(repeats):
        x = interpolant.state(normal(x1.shape, x1, generator).to(x1.dtype), x1, time)
        total = total + distance(interpolant.data_from_velocity(model.velocity(x, time, cond), x, time), x1)
    return total / repeats


def minority_ranks(score: Tensor, classes: int = 100) -> Tensor:
    """Class 0 ... classes - 1 of each score [B], by quantiles of all of them: each class holds the same number."""
    return score.argsort().argsort() * classes // len(score)
