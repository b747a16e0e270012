"""How the features of a segment's start change on the way through it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.flow_map import FlowMap
from ..core.interpolant import Interpolant, Linear
from ..core.random import Random, normal
from ..core.recurrent import Recurrent
from ..core.report import report
from ..core.shapes import square_error
from ..core.times import TimeLaw, Uniform
from ..core.types import Pair, Weighting
from ..core.weighting import Unweighted

__all__ = ["FeatureResidual"]


@dataclass(frozen=True)
class FeatureResidual:
    """Feature residual approximation: a small network learns what a trained trunk's features are later in a segment.

    E |f(I_a) + (s - a) / (b - a) g(I_s) - f(I_s)|^2 for s in the segment [a, b), I_a and I_s on one path, f without
    gradient or dropout: nothing but g is trained, from a network that has been, and f(I_a) is exact at the start. A run
    takes that network from its teacher, with from_teacher = true.

    Args:
        interpolant: the path.
        times: law of s.
        weighting: what the error of a sample counts.
    Cost: 2 evaluations of the trunk without gradient, and 1 of g with gradient.
    Source: Park, Lee, Joo & Kim, Blockwise flow matching: improving flow matching models for efficient high-quality
        generation, 2025, arXiv:2510.21167, feature residual approximation, and its released code.
    Differs: times are drawn from a law, there as many in each segment, which is the same for a uniform one.
    Raises:
        ValueError: if the map's network has no segments.
    """

    learns_map: ClassVar[bool] = False  # what it trains saves evaluations, and is no map
    needs_trained: ClassVar[bool] = True  # the residuals of a trunk that knows nothing are of no use

    interpolant: Interpolant = Linear()
    times: TimeLaw = Uniform()
    weighting: Weighting = Unweighted()

    def __call__(self, model: FlowMap, pair: Pair, *, step: int = 0, generator: Random = None) -> Tensor:
        """Loss per sample [B], mean square per number of the features."""
        net: Any = model.net if isinstance(model, Recurrent) else None
        if getattr(net, "approximate", None) is None or pair.x1 is None:
            raise ValueError(
                "feature residuals need data and a network of segments; got "
                f"{'none' if pair.x1 is None else type(model).__name__}. Use map.name='recurrent', "
                "net.name='blockwise_dit'."
            )
        s = self.times(len(pair), pair.x0, generator)
        start = net.segment(s).to(s.dtype) / net.segments
        z = normal(pair.x0.shape, pair.x0, generator) if self.interpolant.latent else None
        x, first = (self.interpolant.state(pair.x0, pair.x1, r, z) for r in (s, start))
        learning = net.trunk.training
        net.trunk.eval()  # it is frozen: without dropout, as in sampling
        with torch.no_grad():
            f, f_first = net.features(x, s, s, pair.cond), net.features(first, start, start, pair.cond)
        net.trunk.train(learning)
        error = square_error(net.approximate(x, s, pair.cond, f_first), f)
        report("feature_residual", error)
        return self.times.reweighted(s, self.weighting(error, s, s))
